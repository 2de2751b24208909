//! Schedules candidates by weight, or takes the better of two.
//!
//! Static stride scheduling as in gRPC (gRFC A58, "Static Stride Scheduler"): as smooth as smooth weighted round robin,
//! without a walk over all nodes at every pick.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::discovery::balancer::candidates::{Candidate, CandidateLeaf};

/// Number of scheduled candidates to try before searching for an available one.
const MAX_TRIES: usize = 8;

/// Schedule over all candidates, or over the preferred ones.
#[derive(Debug)]
pub(super) struct StrideSchedule {
    is_preferred: bool,
    /// Index after the last candidate of each leaf, counted over all leaves.
    ends: Vec<u32>,
    /// Strides by weight.
    strides: Vec<u16>,
    sequence: AtomicU32,
}

impl StrideSchedule {
    pub(super) fn new(is_preferred: bool, leaves: &[Arc<CandidateLeaf>]) -> Self {
        let ends = leaves.iter().scan(0, |end, leaf| {
            *end += leaf.len(is_preferred) as u32;
            Some(*end)
        });
        let heaviest = leaves.iter().map(|leaf| leaf.heaviest(is_preferred)).max().unwrap_or(1);
        // The heaviest candidate is picked in every round, the others in their share of the rounds.
        let strides = (0..=heaviest).map(|weight| (weight * u32::from(u16::MAX) / heaviest) as u16);
        // A random start keeps many clients from beginning with the same node, and one client from doing so after each change.
        let sequence = AtomicU32::new(fastrand::u32(..));
        Self { is_preferred, ends: ends.collect(), strides: strides.collect(), sequence }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.last().map_or(0, |end| *end as usize)
    }

    pub(super) fn get<'a>(&self, leaves: &'a [Arc<CandidateLeaf>], index: usize) -> &'a Candidate {
        let leaf = self.ends.partition_point(|end| *end as usize <= index);
        let begin = leaf.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        leaves[leaf].get(self.is_preferred, index - begin)
    }

    /// Returns the next scheduled candidate that `is_available`.
    pub(super) fn next<'a>(
        &self,
        leaves: &'a [Arc<CandidateLeaf>],
        is_available: impl Fn(&Candidate) -> bool,
    ) -> Option<&'a Candidate> {
        let tries = (0..MAX_TRIES).map(|_| self.advance(leaves));
        tries.into_iter().find(|candidate| is_available(candidate)).or_else(|| {
            let from = fastrand::usize(..self.len());
            let others = (from..self.len()).chain(0..from).map(|index| self.get(leaves, index));
            others.into_iter().find(|candidate| is_available(candidate))
        })
    }

    /// Advances the schedule to the next candidate.
    fn advance<'a>(&self, leaves: &'a [Arc<CandidateLeaf>]) -> &'a Candidate {
        let count = self.len() as u64;
        const WHOLE: u64 = u16::MAX as u64;
        loop {
            let sequence = u64::from(self.sequence.fetch_add(1, Ordering::Relaxed));
            let (index, round) = (sequence % count, sequence / count);
            let candidate = self.get(leaves, index as usize);
            let stride = u64::from(self.strides[candidate.weight as usize]);
            // Candidates of the same weight are skipped in different rounds.
            let offset = index * (WHOLE / 2);
            if (stride * round + offset) % WHOLE >= WHOLE - stride {
                return candidate;
            }
        }
    }

    /// Returns the cheaper of two random candidates that `is_available`.
    pub(super) fn better_of_two<'a>(
        &self,
        leaves: &'a [Arc<CandidateLeaf>],
        is_available: impl Fn(&Candidate) -> bool,
    ) -> Option<&'a Candidate> {
        let draw = || self.get(leaves, fastrand::usize(..self.len()));
        let mut drawn = (0..MAX_TRIES).map(|_| draw()).filter(|candidate| is_available(candidate));
        let Some(one) = drawn.next() else { return self.next(leaves, is_available) };
        let Some(two) = drawn.find(|two| !std::ptr::eq(*two, one)) else { return Some(one) };
        Some(if one.cost() <= two.cost() { one } else { two })
    }
}
