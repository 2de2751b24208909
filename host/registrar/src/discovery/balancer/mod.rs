//! Picks a node of a view for each call: by weight, by latency where it is wanted, and not one that just failed.

mod candidates;
mod pick;
mod snapshot;
mod stride;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

pub use self::pick::Pick;
use crate::{
    discovery::{
        balancer::{
            candidates::{Candidate, Taste},
            snapshot::Table,
        },
        view::View,
    },
    node::Addr,
};

/// How nodes are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// In proportion to their weights, evenly spread.
    #[default]
    Weighted,
    /// The better of two random ones, by observed latency, calls in progress and weight ("The Power of Two Choices in
    /// Randomized Load Balancing", Mitzenmacher, 2001). For nodes whose speeds differ.
    LeastLatency,
}

/// Picks nodes of a [`View`], and learns from what becomes of the calls.
#[derive(Debug)]
pub struct Balancer {
    view: View,
    taste: Taste,
    choice: Choice,
    table: Mutex<Arc<Table>>,
    /// Held by whoever makes the next table. The others go on with the one that is there.
    making: Mutex<()>,
}

impl Balancer {
    /// A balancer by weight.
    pub fn new(view: View) -> Self {
        let (taste, choice) = (Taste::default(), Choice::default());
        Self { view, taste, choice, table: Mutex::default(), making: Mutex::default() }
    }

    /// The same with another way to choose.
    #[must_use]
    pub fn choosing(self, choice: Choice) -> Self {
        Self { choice, ..self }
    }

    /// The same with nodes preferred whose metadata has all of these, as `zone` may be; the version of a node counts as its
    /// `version`. Others are picked while none of those can be.
    #[must_use]
    pub fn preferring(self, metadata: Vec<(String, String)>) -> Self {
        Self { taste: Taste { prefer: metadata, ..self.taste }, ..self }
    }

    /// The same without the nodes that say that they speak TLS, for callers that do not.
    #[must_use]
    pub fn without_tls(self) -> Self {
        Self { taste: Taste { plain: true, ..self.taste }, ..self }
    }

    /// What it picks from.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// A node for the next call, other than those in `except`; `None` when there is no other.
    ///
    /// A node that failed is left out for 1 s, and up to 30 s if it goes on failing, as long as there is another: if all
    /// have failed, the failures say more about the way to them.
    pub fn pick(&self, except: &[Addr]) -> Option<Pick> {
        let table = self.table();
        // Nothing of the node is read unless there is an exception: there are many nodes, and few are at hand.
        let is_wanted = |candidate: &Candidate| except.iter().all(|addr| *addr != candidate.node().addr);
        let is_fine = |candidate: &Candidate| is_wanted(candidate) && !candidate.is_out();
        let fine = table.tiers.iter().find_map(|tier| match self.choice {
            Choice::Weighted => tier.next(&table.parts, is_fine),
            Choice::LeastLatency => tier.better_of_two(&table.parts, is_fine),
        });
        let any = || table.tiers.last()?.next(&table.parts, is_wanted);
        fine.or_else(any).map(Candidate::picked)
    }

    /// The table of the view's present generation, or the one before while somebody else makes it.
    fn table(&self) -> Arc<Table> {
        let table = self.current();
        if table.is_good_for(self.view.generation()) {
            return table;
        }
        let making = match self.making.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if table.made.is_some() => return table,
            // There is none before the first.
            Err(TryLockError::WouldBlock) => self.making.lock().unwrap_or_else(PoisonError::into_inner),
        };
        // Somebody else may just have made it.
        let before = self.current();
        let generation = self.view.generation();
        if before.is_good_for(generation) {
            return before;
        }
        let table = Arc::new(Table::of(generation, &self.view.nodes(), &self.taste, &before));
        *self.kept() = table.clone();
        drop(making);
        table
    }

    fn current(&self) -> Arc<Table> {
        self.kept().clone()
    }

    fn kept(&self) -> MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::Instant;

    use super::{Balancer, Table};
    use crate::discovery::view::{Picture, View};

    #[test]
    fn nobody_waits_for_a_table_but_the_first() {
        let layouts = ["seed".parse().unwrap()];
        let picture = Picture::new("user".parse().unwrap(), "".parse().unwrap(), &layouts, Duration::from_secs(1));
        let balancer = Balancer::new(View::of(&Arc::new(picture)).unwrap());
        let old = Table { generation: 7, made: Some((Instant::now(), Duration::ZERO)), ..Table::default() };
        *balancer.kept() = Arc::new(old);
        let making = balancer.making.lock().unwrap();
        assert_eq!(balancer.table().generation, 7);
        drop(making);
        assert_eq!(balancer.table().generation, 0);
    }
}
