//! Orders of the rows of the full-screen view.

use std::cmp::Reverse;

use crate::{
    cli::lease_state::LeaseState,
    commands::{node_row::NodeRow, order::AddressOrder},
};

/// Order of the rows that did not change just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Address,
    Weight,
    State,
    Ttl,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Name, Self::Address, Self::Weight, Self::State, Self::Ttl];

    /// The order after this one.
    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// Place of a row in this order.
    pub(super) fn key(self, row: &NodeRow) -> SortKey {
        match self {
            Self::Name => SortKey::Name,
            Self::Address => SortKey::Address(AddressOrder::of(&row.addr)),
            Self::Weight => SortKey::Weight(Reverse(row.weight)),
            Self::State => SortKey::State(Reverse(row.state)),
            Self::Ttl => SortKey::Ttl(row.ttl_seconds.unwrap_or(u64::MAX)),
        }
    }

    /// The column that is sorted.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Address => "ADDR",
            Self::Weight => "WEIGHT",
            Self::State => "STATE",
            Self::Ttl => "TTL",
        }
    }
}

/// Place of a row before its name counts: the heaviest, the worst and the shortest come first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SortKey {
    Name,
    Address(AddressOrder),
    Weight(Reverse<Option<u32>>),
    State(Reverse<LeaseState>),
    Ttl(u64),
}
