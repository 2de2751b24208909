//! Filters of `ls` and `watch`: names and versions, each a text or a pattern such as `user-*`.

use std::collections::BTreeSet;

use globset::{Glob, GlobMatcher};
use leasehold::ServiceName;

use crate::{cli::parse, error::Failure};

/// Smallest similarity of a suggested name, from 0 to 1, and number of suggestions, at most.
const MIN_SIMILARITY: f64 = 0.8;
const MAX_SUGGESTIONS: usize = 5;

/// The services to show.
#[derive(Debug, Clone)]
pub(super) enum Names {
    All,
    One(ServiceName),
    Like(Pattern),
}

impl Names {
    /// Parses the argument NAME.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, Failure> {
        Ok(match text {
            None => Self::All,
            Some(text) if Pattern::has_wildcard(text) => Self::Like(Pattern::parse("NAME", text)?),
            Some(text) => Self::One(parse("NAME", text)?),
        })
    }

    /// The one service to read from etcd; `None` for all.
    pub(super) fn scope(&self) -> Option<&ServiceName> {
        match self {
            Self::One(name) => Some(name),
            Self::All | Self::Like(_) => None,
        }
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one.as_str() == name,
            Self::Like(pattern) => pattern.matches(name),
        }
    }

    /// Sentence for the case that no service has such a name, with those of `all` that are similar.
    pub(super) fn unknown(&self, all: &BTreeSet<String>) -> String {
        let (start, text) = match self {
            Self::All => return "nothing is registered under this layout".to_owned(),
            Self::One(name) => (format!("no service is registered as {name}"), name.as_str()),
            Self::Like(pattern) => (format!("no service matches {}", pattern.text), pattern.text.as_str()),
        };
        let near = similar(text, all.iter().map(String::as_str));
        match (near.is_empty(), all.len()) {
            (_, 0) => format!("{start}; there is none at all under this layout"),
            (false, _) => format!("{start}; there is {}", near.join(", ")),
            (true, 1) => format!("{start}; there is 1 other"),
            (true, count) => format!("{start}; there are {count} others"),
        }
    }
}

/// A text with `*`, `?`, `[a-z]` or `{a,b}`, or without them.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    glob: GlobMatcher,
}

impl Pattern {
    fn has_wildcard(text: &str) -> bool {
        text.contains(['*', '?', '[', '{'])
    }

    /// Parses an argument; the error names its flag.
    pub(super) fn parse(flag: &str, text: &str) -> Result<Self, Failure> {
        let wrong = |error: globset::Error| Failure::usage(format!("{flag}: {text:?} is no pattern: {}", error.kind()));
        let glob = Glob::new(text).map_err(wrong)?.compile_matcher();
        Ok(Self { text: text.to_owned(), glob })
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        self.glob.is_match(text) || self.text == text
    }
}

/// Names that are similar to another one, the most similar first.
fn similar<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let plain: String = name.chars().filter(|c| !"*?[]{}".contains(*c)).collect();
    let likeness = |other: &str| match !plain.is_empty() && (other.contains(&plain) || plain.contains(other)) {
        true => 1.0,
        false => strsim::jaro_winkler(&plain, other),
    };
    let mut like: Vec<_> =
        all.map(|other| (likeness(other), other)).filter(|(like, _)| *like >= MIN_SIMILARITY).collect();
    like.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    like.into_iter().map(|(_, other)| other).take(MAX_SUGGESTIONS).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Names, Pattern};

    fn names(text: &str) -> Names {
        Names::parse(Some(text)).unwrap()
    }

    #[test]
    fn a_name_is_one_service_and_a_pattern_many() {
        assert_eq!(names("user").scope().map(|name| name.as_str()), Some("user"));
        assert!(names("user").matches("user") && !names("user").matches("user-cache"));
        let many = names("user*");
        assert!(many.scope().is_none() && many.matches("user") && many.matches("user-cache"));
        assert!(!many.matches("a-user"));
        assert!(names("{user,order}-?").matches("order-1") && !names("[ab]*").matches("c"));
        assert!(Names::parse(None).unwrap().matches("x"));
        // A version may have the characters of a pattern.
        assert!(Pattern::parse("--version", "v1[x]").unwrap().matches("v1[x]"));
        for (bad, sentence) in [("user[", "NAME: \"user[\" is no pattern: unclosed"), ("a/b", "NAME: name must")] {
            let failure = Names::parse(Some(bad)).unwrap_err();
            assert!(failure.code() == 64 && failure.sentence().starts_with(sentence), "{}", failure.sentence());
        }
    }

    #[test]
    fn an_unknown_name_comes_with_similar_ones() {
        let all: BTreeSet<_> = ["order", "orders", "user", "user-cache", "greeter"].map(str::to_owned).into();
        let said = |text: &str| names(text).unknown(&all);
        assert_eq!(said("ordr"), "no service is registered as ordr; there is order, orders");
        assert_eq!(said("cache"), "no service is registered as cache; there is user-cache");
        assert_eq!(said("greter"), "no service is registered as greter; there is greeter");
        assert_eq!(said("zzz"), "no service is registered as zzz; there are 5 others");
        assert_eq!(said("cache*"), "no service matches cache*; there is user-cache");
        let none = names("user").unknown(&BTreeSet::new());
        assert_eq!(none, "no service is registered as user; there is none at all under this layout");
    }
}
