//! The choice among candidates: by weight, or the better of two.
//!
//! By weight is static stride scheduling, as gRPC does it (gRFC A58, "Static Stride Scheduler"): as smooth as smooth
//! weighted round robin, without its walk over all nodes at every pick.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::discovery::balancer::candidates::{Candidate, Part};

/// Picks that may meet a node that is left out, before one is looked for.
const MAX_TRIES: usize = 8;

/// Candidates among which the choice is by weight.
#[derive(Debug)]
pub(super) struct Tier {
    is_preferred: bool,
    /// Where the members of each part end, in the order of all.
    ends: Vec<u32>,
    /// By weight.
    strides: Vec<u16>,
    sequence: AtomicU32,
}

impl Tier {
    pub(super) fn of(is_preferred: bool, parts: &[Arc<Part>]) -> Self {
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.len(is_preferred) as u32;
            Some(*end)
        });
        let heaviest = parts.iter().map(|part| part.heaviest[usize::from(is_preferred)]).max().unwrap_or(1);
        // The heaviest is picked in every round, the others in their share of the rounds.
        let strides = (0..=heaviest).map(|weight| (weight * u32::from(u16::MAX) / heaviest) as u16);
        // In any round, so that many clients do not begin with the same node, nor one with the same nodes after each change.
        let sequence = AtomicU32::new(fastrand::u32(..));
        Self { is_preferred, ends: ends.collect(), strides: strides.collect(), sequence }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.last().map_or(0, |end| *end as usize)
    }

    pub(super) fn at<'a>(&self, parts: &'a [Arc<Part>], index: usize) -> &'a Candidate {
        let part = self.ends.partition_point(|end| *end as usize <= index);
        let begin = part.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        parts[part].at(self.is_preferred, index - begin)
    }

    /// The next in turn that `is_fine`.
    pub(super) fn next<'a>(
        &self,
        parts: &'a [Arc<Part>],
        is_fine: impl Fn(&Candidate) -> bool,
    ) -> Option<&'a Candidate> {
        let tries = (0..MAX_TRIES).map(|_| self.turn(parts));
        tries.into_iter().find(|candidate| is_fine(candidate)).or_else(|| {
            let from = fastrand::usize(..self.len());
            let others = (from..self.len()).chain(0..from).map(|index| self.at(parts, index));
            others.into_iter().find(|candidate| is_fine(candidate))
        })
    }

    /// Whose turn it is.
    fn turn<'a>(&self, parts: &'a [Arc<Part>]) -> &'a Candidate {
        let count = self.len() as u64;
        const WHOLE: u64 = u16::MAX as u64;
        loop {
            let sequence = u64::from(self.sequence.fetch_add(1, Ordering::Relaxed));
            let (index, round) = (sequence % count, sequence / count);
            let candidate = self.at(parts, index as usize);
            let stride = u64::from(self.strides[candidate.weight as usize]);
            // Members of one weight have their pauses in different rounds.
            let offset = index * (WHOLE / 2);
            if (stride * round + offset) % WHOLE >= WHOLE - stride {
                return candidate;
            }
        }
    }

    pub(super) fn better_of_two<'a>(
        &self,
        parts: &'a [Arc<Part>],
        is_fine: impl Fn(&Candidate) -> bool,
    ) -> Option<&'a Candidate> {
        let draw = || self.at(parts, fastrand::usize(..self.len()));
        let mut fine = (0..MAX_TRIES).map(|_| draw()).filter(|candidate| is_fine(candidate));
        let Some(one) = fine.next() else { return self.next(parts, is_fine) };
        let Some(two) = fine.find(|two| !std::ptr::eq(*two, one)) else { return Some(one) };
        Some(if one.cost() <= two.cost() { one } else { two })
    }
}
