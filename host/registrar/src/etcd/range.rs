//! Reads all keys under a prefix as of one revision: in pages, several at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use etcd_client::{GetOptions, GetResponse};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::task::yield_now;

use super::{Etcd, Failure, Found, MAX_ANSWER};
use crate::etcd::latency::Verb;

/// Number of keys in the first page of a prefix, and in a page that is requested again.
const FIRST_PAGE: i64 = 1000;
/// Largest number of keys in a page.
const MAX_PAGE: i64 = 20_000;
/// Size that a page should have, estimated from the page before it.
const PAGE_BYTES: usize = 2 << 20;
/// Replacement for a value that is too large to read: not UTF-8, so invalid in every layout.
const UNREAD: u8 = 0xff;
/// Rough size of what etcd sends with each key and value, in bytes.
const KEY_OVERHEAD: usize = 40;
/// Largest number of pages that are requested at a time.
const MAX_REQUESTED: usize = 4;
/// Largest number of pages that are requested or being parsed.
const MAX_PAGES: usize = 2 * MAX_REQUESTED;
/// Characters before which the rest of a range is split to be read concurrently: digits, and where keys have letters, these
/// letters, which divide hexadecimal numbers and words.
const DIGITS: &[u8] = b"123456789";
const LETTERS: &[u8] = b"aceimqu";
/// Number of keys that are parsed before the task yields to others on its thread.
const YIELD_AFTER: usize = 256;

/// All keys under a prefix, in order, as of one revision.
#[derive(Debug)]
pub(crate) struct RangeSnapshot<T> {
    pub(crate) entries: Vec<T>,
    pub(crate) revision: i64,
}

/// Keys from `from` up to, not including, `end`, as in etcd's API.
struct Range {
    from: Vec<u8>,
    end: Vec<u8>,
}

/// The first keys of a range.
struct Page {
    range: Range,
    response: GetResponse,
    /// Set when the value was too large to read.
    has_no_values: bool,
}

impl Etcd {
    /// Reads and parses every key under a prefix as of one revision. Each page gets a parser of its own from `parser`.
    ///
    /// Pages are requested concurrently, and parsed while etcd reads others.
    pub(crate) async fn read<T, P: FnMut(Found) -> T>(
        &self,
        prefix: &str,
        parser: impl Fn() -> P,
    ) -> Result<RangeSnapshot<T>, Failure> {
        let end = range_end(prefix.as_bytes());
        // In etcd's API an empty key means no key, and the byte 0 the first of all.
        let from = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let mut rest = VecDeque::from([Range { from, end }]);
        let (mut revision, mut limit) = (0, FIRST_PAGE);
        let mut parsed: BTreeMap<Vec<u8>, Vec<T>> = BTreeMap::new();
        let (mut requested, mut parsing) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut unread = None;
        loop {
            if unread == Some(0) {
                // Pages that are still requested are empty.
                rest.clear();
                requested.clear();
            }
            while requested.len() < MAX_REQUESTED
                && requested.len() + parsing.len() < MAX_PAGES
                && let Some(range) = rest.pop_front()
            {
                requested.push(self.page(range, limit, revision));
            }
            let mut page = tokio::select! {
                biased;
                Some(page) = requested.next() => page?,
                Some((from, entries)) = parsing.next() => {
                    parsed.insert(from, entries);
                    continue;
                }
                else => break,
            };
            if revision == 0 {
                revision = page.response.header().map_or(0, |header| header.revision());
            }
            let in_page = i64::try_from(page.response.kvs().len()).unwrap_or(i64::MAX);
            unread = Some(unread.unwrap_or(page.response.count()) - in_page);
            // The last page of a range may be small or empty, which says nothing about other ranges.
            if page.response.more() {
                limit = page.next_limit();
                rest.extend(page.rest(limit));
            }
            let mut parse = parser();
            parsing.push(async move {
                let mut entries = Vec::with_capacity(page.response.kvs().len());
                for kv in page.response.take_kvs() {
                    let found = Found::from(kv);
                    let found = if page.has_no_values { Found { value: vec![UNREAD], ..found } } else { found };
                    entries.push(parse(found));
                    if entries.len() % YIELD_AFTER == 0 {
                        yield_now().await;
                    }
                }
                (page.range.from, entries)
            });
        }
        Ok(RangeSnapshot { entries: parsed.into_values().flatten().collect(), revision })
    }

    /// Requests the first keys of a range as of a revision, or as of now for 0: fewer than `limit` if they are too large
    /// together, and one without its value if that alone is too large.
    async fn page(&self, range: Range, mut limit: i64, revision: i64) -> Result<Page, Failure> {
        let page = |limit, keys_only| {
            let options = GetOptions::new().with_range(range.end.clone()).with_limit(limit).with_revision(revision);
            let options = if keys_only { options.with_keys_only() } else { options };
            let from = range.from.clone();
            self.call(Verb::Read, self.request_timeout, move |client| {
                let (from, options) = (from.clone(), options.clone());
                async move { client.kv_client().max_decoding_message_size(MAX_ANSWER).get(from, Some(options)).await }
            })
        };
        let (response, has_no_values) = loop {
            match page(limit, false).await {
                Err(Failure::TooLarge { .. }) if limit == 1 => break (page(1, true).await?, true),
                Err(Failure::TooLarge { .. }) => limit = (limit / 4).max(1),
                // A smaller page may arrive in time.
                Err(_) if limit > FIRST_PAGE => limit = FIRST_PAGE,
                response => break (response?, false),
            }
        };
        Ok(Page { range, response, has_no_values })
    }
}

impl Page {
    /// Number of keys that the next pages should have to come to [`PAGE_BYTES`].
    fn next_limit(&self) -> i64 {
        let all = self.response.kvs();
        let bytes: usize = all.iter().map(|kv| kv.key().len() + kv.value().len() + KEY_OVERHEAD).sum();
        let fits = (PAGE_BYTES * all.len()).checked_div(bytes).unwrap_or_default();
        i64::try_from(fits).unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
    }

    /// The rest of the range after this page, split if it is large.
    fn rest(&self, limit: i64) -> Vec<Range> {
        let (Some(first), Some(last)) = (self.response.kvs().first(), self.response.kvs().last()) else {
            return Vec::new();
        };
        let left = self.response.count() - i64::try_from(self.response.kvs().len()).unwrap_or(i64::MAX);
        let mut bounds = vec![[last.key(), &[0]].concat()];
        if left > 2 * limit {
            bounds.extend(splits(&self.range, first.key(), last.key()));
        }
        bounds.push(self.range.end.clone());
        bounds.windows(2).map(|pair| Range { from: pair[0].clone(), end: pair[1].clone() }).collect()
    }
}

/// Keys at which to split the rest of a range after its `first` to `last` keys: at the character where these two differ, at
/// the next one, and where the last key differs from the beginning of the range.
fn splits(range: &Range, first: &[u8], last: &[u8]) -> Vec<Vec<u8>> {
    let shared = |other: &[u8]| last.iter().zip(other).take_while(|(a, b)| a == b).count();
    let differ = shared(first);
    let letters = if last[differ..].iter().any(u8::is_ascii_alphabetic) { LETTERS } else { &[] };
    let places = BTreeSet::from([differ + 1, differ, shared(&range.from)]);
    let at = |place: usize| DIGITS.iter().chain(letters).map(move |split| [&last[..place], &[*split]].concat());
    let all = places.into_iter().rev().filter(|place| *place <= last.len()).flat_map(at);
    all.filter(|split| **split > *last && (**split < *range.end || range.end == [0])).collect()
}

/// The first key after all that begin with `prefix`: the `range_end` of etcd's API.
pub(super) fn range_end(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|&byte| byte < u8::MAX) {
        None => vec![0],
        Some(last) => [&prefix[..last], &[prefix[last] + 1]].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Range, range_end, splits};

    #[test]
    fn splits_are_in_order_and_within_the_range() {
        let of = |from: &str, end: &str, first: &str, last: &str| {
            let range = Range { from: from.into(), end: end.into() };
            let splits = splits(&range, first.as_bytes(), last.as_bytes());
            assert!(splits.is_sorted() && splits.iter().all(|split| **split > *last.as_bytes()), "{splits:?}");
            assert!(end == "\0" || splits.iter().all(|split| **split < *end.as_bytes()), "{splits:?}");
            splits.into_iter().map(|split| String::from_utf8(split).unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("u/", "u0", "u/40", "u/79"), "u/8 u/9");
        assert_eq!(
            of("u/", "u0", "u/10.0.0.1", "u/10.0.17.9"),
            "u/10.0.18 u/10.0.19 u/10.0.2 u/10.0.3 u/10.0.4 u/10.0.5 u/10.0.6 u/10.0.7 u/10.0.8 u/10.0.9 \
             u/2 u/3 u/4 u/5 u/6 u/7 u/8 u/9"
        );
        assert_eq!(
            of("u/10.4", "u/10.6", "u/10.4.1", "u/10.49.1"),
            "u/10.491 u/10.492 u/10.493 u/10.494 u/10.495 u/10.496 u/10.497 u/10.498 u/10.499"
        );
        assert!(of("u/", "u0", "u/0a3", "u/0f7").starts_with("u/0f8 u/0f9 u/0fa u/0fc u/0fe u/0fi "));
        assert!(
            of("u/", "u0", "u/0a3", "u/0f7")
                .ends_with(" u/0u u/1 u/2 u/3 u/4 u/5 u/6 u/7 u/8 u/9 u/a u/c u/e u/i u/m u/q u/u")
        );
        assert!(of("\0", "\0", "a", "b").ends_with(" c e i m q u"));
        assert_eq!(of("u/", "u0", "u/z", "u/z"), "u/z1 u/z2 u/z3 u/z4 u/z5 u/z6 u/z7 u/z8 u/z9");
    }

    #[test]
    fn the_end_of_a_prefix_is_etcds() {
        assert_eq!(range_end(b"/user/"), b"/user0");
        assert_eq!(range_end(b"a\xff"), b"b");
        assert_eq!(range_end(b"\xff"), b"\0");
        assert_eq!(range_end(b""), b"\0");
    }
}
