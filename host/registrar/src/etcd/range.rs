//! Reads a range of keys, be it large: in pages, side by side, as of one revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use etcd_client::{GetOptions, GetResponse};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::task::yield_now;

use super::{Etcd, Failure, Found, MAX_ANSWER};
use crate::{etcd::latency::Verb, layout::template::memo::ParseMemo};

/// Keys to the first page when a prefix is read, and to one that had to be asked for again.
const FIRST_PAGE: i64 = 1000;
/// Keys to a page, at most.
const MAX_PAGE: i64 = 20_000;
/// What a page should come to, judged by those before it.
const PAGE_BYTES: usize = 2 << 20;
/// What stands for a value that is longer: not UTF-8, and so a node in no layout.
const UNREAD: u8 = 0xff;
/// What etcd says of a key beside it and its value, roughly, in bytes.
const KEY_OVERHEAD: usize = 40;
/// Pages that etcd is asked for at a time.
const ASKED: usize = 4;
/// The same, and those that are taken from.
const PAGES: usize = 2 * ASKED;
/// Where what follows a page is cut to be read side by side: before these digits, and where keys have letters before these,
/// which part those of hexadecimal numbers and others.
const DIGITS: &[u8] = b"123456789";
const LETTERS: &[u8] = b"aceimqu";
/// Keys that are taken from a page before others have a turn on this thread.
const TURN: usize = 256;

/// Every key under a prefix, in order, as of one revision.
#[derive(Debug)]
pub(crate) struct Reading<T> {
    pub(crate) found: Vec<T>,
    pub(crate) revision: i64,
}

/// Keys from one to another, without that one, as etcd writes them.
struct Range {
    from: Vec<u8>,
    end: Vec<u8>,
}

/// The first keys of a range.
struct Page {
    range: Range,
    answer: GetResponse,
    /// Whether the values are too large to be read.
    is_without_values: bool,
}

impl Etcd {
    /// Every key under a prefix, as of one revision: what `take` makes of it.
    ///
    /// Pages are read side by side, and while etcd gathers some, others are taken from.
    pub(crate) async fn read<T>(
        &self,
        prefix: &str,
        take: impl Fn(&mut ParseMemo, Found) -> T,
    ) -> Result<Reading<T>, Failure> {
        let end = end_of(prefix.as_bytes());
        // etcd takes an empty key for none, and the byte 0 for the first of all.
        let from = if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() };
        let mut rest = VecDeque::from([Range { from, end }]);
        let (mut revision, mut limit) = (0, FIRST_PAGE);
        let mut taken: BTreeMap<Vec<u8>, Vec<T>> = BTreeMap::new();
        let (mut asked, mut taking) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut unread = None;
        loop {
            if unread == Some(0) {
                // Pages that are still asked for are empty.
                rest.clear();
                asked.clear();
            }
            while asked.len() < ASKED
                && asked.len() + taking.len() < PAGES
                && let Some(range) = rest.pop_front()
            {
                asked.push(self.page(range, limit, revision));
            }
            let mut page = tokio::select! {
                biased;
                Some(page) = asked.next() => page?,
                Some((from, found)) = taking.next() => {
                    taken.insert(from, found);
                    continue;
                }
                else => break,
            };
            if revision == 0 {
                revision = page.answer.header().map_or(0, |header| header.revision());
            }
            let in_page = i64::try_from(page.answer.kvs().len()).unwrap_or(i64::MAX);
            unread = Some(unread.unwrap_or(page.answer.count()) - in_page);
            // The last keys of a range, which may be few or none, say nothing of those in others.
            if page.answer.more() {
                limit = page.next_limit();
                rest.extend(page.rest(limit));
            }
            let take = &take;
            taking.push(async move {
                let (mut found, mut last) = (Vec::with_capacity(page.answer.kvs().len()), ParseMemo::default());
                for kv in page.answer.take_kvs() {
                    let kv = Found::from(kv);
                    let kv = if page.is_without_values { Found { value: vec![UNREAD], ..kv } } else { kv };
                    found.push(take(&mut last, kv));
                    if found.len() % TURN == 0 {
                        yield_now().await;
                    }
                }
                (page.range.from, found)
            });
        }
        Ok(Reading { found: taken.into_values().flatten().collect(), revision })
    }

    /// The first keys of a range, as of a revision, or of now if that is 0: fewer than asked for where they are large, and
    /// one without its value where that alone is too large.
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
        let (answer, is_without_values) = loop {
            match page(limit, false).await {
                Err(Failure::TooLarge { .. }) if limit == 1 => break (page(1, true).await?, true),
                Err(Failure::TooLarge { .. }) => limit = (limit / 4).max(1),
                // It may have been too much for the time.
                Err(_) if limit > FIRST_PAGE => limit = FIRST_PAGE,
                answer => break (answer?, false),
            }
        };
        Ok(Page { range, answer, is_without_values })
    }
}

impl Page {
    /// How many keys the next pages should have: as many as come to [`PAGE_BYTES`].
    fn next_limit(&self) -> i64 {
        let all = self.answer.kvs();
        let bytes: usize = all.iter().map(|kv| kv.key().len() + kv.value().len() + KEY_OVERHEAD).sum();
        let fits = (PAGE_BYTES * all.len()).checked_div(bytes).unwrap_or_default();
        i64::try_from(fits).unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
    }

    /// What of the range comes after it, in pieces if that is much.
    fn rest(&self, limit: i64) -> Vec<Range> {
        let (Some(first), Some(last)) = (self.answer.kvs().first(), self.answer.kvs().last()) else {
            return Vec::new();
        };
        let left = self.answer.count() - i64::try_from(self.answer.kvs().len()).unwrap_or(i64::MAX);
        let mut bounds = vec![[last.key(), &[0]].concat()];
        if left > 2 * limit {
            bounds.extend(cuts(&self.range, first.key(), last.key()));
        }
        bounds.push(self.range.end.clone());
        bounds.windows(2).map(|pair| Range { from: pair[0].clone(), end: pair[1].clone() }).collect()
    }
}

/// Where to cut what is left of a range after its `first` to `last` keys: where these differ, in what begins as the last one
/// does there, and where the range begins.
fn cuts(range: &Range, first: &[u8], last: &[u8]) -> Vec<Vec<u8>> {
    let same = |other: &[u8]| last.iter().zip(other).take_while(|(a, b)| a == b).count();
    let differ = same(first);
    let letters = if last[differ..].iter().any(u8::is_ascii_alphabetic) { LETTERS } else { &[] };
    let places = BTreeSet::from([differ + 1, differ, same(&range.from)]);
    let at = |place: usize| DIGITS.iter().chain(letters).map(move |cut| [&last[..place], &[*cut]].concat());
    let all = places.into_iter().rev().filter(|place| *place <= last.len()).flat_map(at);
    all.filter(|cut| **cut > *last && (**cut < *range.end || range.end == [0])).collect()
}

/// The first key after all that begin with `prefix`, as etcd writes the end of a range.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|&byte| byte < u8::MAX) {
        None => vec![0],
        Some(last) => [&prefix[..last], &[prefix[last] + 1]].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Range, cuts, end_of};

    #[test]
    fn what_is_cut_is_in_order_and_within_the_range() {
        let of = |from: &str, end: &str, first: &str, last: &str| {
            let range = Range { from: from.into(), end: end.into() };
            let cuts = cuts(&range, first.as_bytes(), last.as_bytes());
            assert!(cuts.is_sorted() && cuts.iter().all(|cut| **cut > *last.as_bytes()), "{cuts:?}");
            assert!(end == "\0" || cuts.iter().all(|cut| **cut < *end.as_bytes()), "{cuts:?}");
            cuts.into_iter().map(|cut| String::from_utf8(cut).unwrap()).collect::<Vec<_>>().join(" ")
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
        assert_eq!(end_of(b"/user/"), b"/user0");
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
        assert_eq!(end_of(b""), b"\0");
    }
}
