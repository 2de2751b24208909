//! Orders of nodes as people expect them: 10.0.0.9 before 10.0.0.10, and `v9` before `v10`.

use std::{cmp::Ordering, net::SocketAddr};

/// An address to sort by: IP addresses by their number, before hosts by their name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AddressOrder {
    Ip(SocketAddr),
    Host(Natural),
}

impl AddressOrder {
    pub(super) fn of(addr: &str) -> Self {
        addr.parse().map_or_else(|_| Self::Host(Natural(addr.to_owned())), Self::Ip)
    }
}

/// Text to sort by: digits count as the number that they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Natural(pub(super) String);

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        // Texts that differ in leading zeros alone still differ.
        natural(self.0.as_bytes(), other.0.as_bytes()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn natural(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        let ((run, rest), (other, other_rest)) = (part(a), part(b));
        if run.is_empty() || other.is_empty() {
            return run.len().cmp(&other.len());
        }
        let order = match (run[0].is_ascii_digit(), other[0].is_ascii_digit()) {
            (true, true) => number(run).cmp(&number(other)),
            _ => run.cmp(other),
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest, other_rest);
    }
}

/// The digits or the other characters at the beginning, and the rest.
fn part(text: &[u8]) -> (&[u8], &[u8]) {
    let is_number = text.first().is_some_and(u8::is_ascii_digit);
    let end = text.iter().position(|byte| byte.is_ascii_digit() != is_number);
    text.split_at(end.unwrap_or(text.len()))
}

/// Digits in the order of their numbers, however many.
fn number(digits: &[u8]) -> (usize, &[u8]) {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    (digits.len() - zeros, &digits[zeros..])
}

#[cfg(test)]
mod tests {
    use super::{AddressOrder, Natural};

    #[test]
    fn addresses_are_in_the_order_of_their_numbers() {
        let sorted = [
            "10.0.0.9:8000",
            "10.0.0.10:80",
            "10.0.0.10:8000",
            "10.0.7.8:8000",
            "10.0.7.88:8000",
            "[::1]:1",
            "[2001:db8::1]:1",
            "h:1",
            "h:10",
            "host-2:1",
            "host-10:1",
        ];
        let mut all = sorted;
        all.reverse();
        all.sort_by_cached_key(|addr| AddressOrder::of(addr));
        assert_eq!(all, sorted);
    }

    #[test]
    fn versions_are_in_the_order_of_their_numbers() {
        let sorted = ["", "1.9", "1.10", "1.10.1", "v1", "v2", "v9", "v010", "v10", "v10-rc1", "v99999999999999999999"];
        let mut all = sorted;
        all.reverse();
        all.sort_by_key(|version| Natural((*version).to_owned()));
        assert_eq!(all, sorted);
    }
}
