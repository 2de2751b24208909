//! The service and the version that a request names, or that a split sends it to.

use http::HeaderMap;
use leasehold::{ServiceName, Version};
use leasehold_wasmtime::Names;

use crate::config::{CallRule, Split};

/// Service and version that a request names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(super) name: ServiceName,
    pub(super) version: Version,
}

impl Target {
    pub(crate) fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The version; empty for all versions.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// Parses a host without its suffix: a name, or a version and a name; `None` unless the name is permitted.
    pub(crate) fn parse(named: &str, permitted: &Names) -> Option<Self> {
        let target = |version: &str, name: &str| {
            let target = Self { name: name.parse().ok()?, version: version.parse().ok()? };
            permitted.allow(&target.name).then_some(target)
        };
        // Names may have dots too, and so may versions.
        let versions = || named.match_indices('.').find_map(|(dot, _)| target(&named[..dot], &named[dot + 1..]));
        target("", named).or_else(versions)
    }

    /// The version that a call to a service goes to: the one with its header, or the one at `percent` of the shares.
    pub(super) fn split(self, rule: &CallRule, headers: &HeaderMap, percent: u32) -> Self {
        if !self.is_split(rule) {
            return self;
        }
        let has_header = |split: &&Split| {
            split.header.as_ref().is_some_and(|(name, value)| headers.get_all(name).iter().any(|sent| sent == value))
        };
        let mut shares = 0;
        let is_at = |split: &&Split| {
            shares += split.share;
            percent < shares
        };
        let split = rule.split.iter().find(has_header).or_else(|| rule.split.iter().find(is_at));
        Self { version: split.map_or(self.version, |split| split.version.clone()), ..self }
    }

    /// Detects a target that gets what is left of the calls to a service.
    pub(super) fn is_split(&self, rule: &CallRule) -> bool {
        self.version.as_str().is_empty() && !rule.split.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{CallRule, Split, Target};

    #[test]
    fn a_split_is_exact_and_a_header_comes_first() {
        let split = |version: &str, share, header: Option<(&str, &str)>| Split {
            version: version.parse().unwrap(),
            share,
            header: header.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())),
        };
        let rule = CallRule {
            split: [split("v2", 5, None), split("v3", 1, Some(("x-canary", "1"))), split("v4", 0, None)].into(),
            ..CallRule::default()
        };
        let version = |of: &str, headers: &HeaderMap, percent| {
            let target = Target { name: "user".parse().unwrap(), version: of.parse().unwrap() };
            target.split(&rule, headers, percent).version.to_string()
        };
        let none = HeaderMap::new();
        let of = |meant: &str| (0..100).filter(|percent| version("", &none, *percent) == meant).count();
        assert_eq!([of("v2"), of("v3"), of("v4"), of("")], [5, 1, 0, 94]);
        let canary: HeaderMap = [("x-canary".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
        assert!((0..100).all(|percent| version("", &canary, percent) == "v3"));
        assert_eq!(version("v1", &canary, 0), "v1", "the caller has named a version");
        let mut rng = fastrand::Rng::with_seed(1);
        let calls = (0..10_000).filter(|_| version("", &none, rng.u32(..100)) == "v2").count();
        assert!((400..=600).contains(&calls), "{calls} of 10,000 calls are 5 % within 1 %");
    }
}
