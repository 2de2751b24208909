//! One value per key, however many callers ask for it at the same moment.
//!
//! The first caller of a key makes its value while the others wait for it. When making it fails, or its caller is dropped
//! halfway, the next one tries. Once closed, nothing is made any more.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::OnceCell;

/// A bounded table of values, each made once.
#[derive(Debug)]
pub(crate) struct Slots<K, V> {
    table: Mutex<Table<K, V>>,
    most: usize,
}

#[derive(Debug)]
struct Table<K, V> {
    slots: HashMap<K, Slot<V>>,
    closed: bool,
}

#[derive(Debug)]
struct Slot<V> {
    cell: Arc<OnceCell<V>>,
    /// Callers that wait for the value. A slot without any and without a value is empty.
    callers: usize,
}

/// What can be asked of a value in a slot.
pub(crate) trait Occupant: Clone {
    /// Whether its time is over, so that its key is free for another one.
    fn has_ended(&self) -> bool;
}

/// What `occupy` came to.
#[derive(Debug)]
pub(crate) enum Occupied<V> {
    /// This call made the value.
    Made(V),
    /// It was there already.
    Found(V),
}

/// Why `occupy` did not try, or what making the value failed with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Vacant<E> {
    /// The table is full.
    Full,
    /// The table is closed.
    Closed,
    /// The value could not be made.
    Failed(E),
}

impl<K: Clone + Eq + Hash, V: Occupant> Slots<K, V> {
    pub(crate) fn new(most: usize) -> Self {
        Self { table: Mutex::new(Table { slots: HashMap::new(), closed: false }), most }
    }

    /// The value of `key`, made by `make` unless it is there.
    pub(crate) async fn occupy<E, F>(&self, key: &K, make: impl FnOnce() -> F) -> Result<Occupied<V>, Vacant<E>>
    where
        F: Future<Output = Result<V, E>>,
    {
        let caller = self.enter(key)?;
        let mut made = false;
        let value = caller
            .cell
            .get_or_try_init(|| async {
                // The table may have been closed while this caller waited for another one's failure.
                if self.table().closed {
                    return Err(Vacant::Closed);
                }
                made = true;
                make().await.map_err(Vacant::Failed)
            })
            .await?;
        let value = value.clone();
        Ok(if made { Occupied::Made(value) } else { Occupied::Found(value) })
    }

    /// The values that are there now and have not ended, in no particular order.
    pub(crate) fn present(&self) -> Vec<V> {
        let mut table = self.table();
        table.prune();
        table.slots.values().filter_map(|slot| slot.cell.get().cloned()).collect()
    }

    /// Lets nothing more be made, and hands back what each key comes to; one that is being made is waited for.
    pub(crate) fn close(&self) -> Vec<impl Future<Output = Option<V>> + use<K, V>> {
        let mut table = self.table();
        table.closed = true;
        table.prune();
        let cells = table.slots.values().map(|slot| Arc::clone(&slot.cell));
        cells.map(|cell| async move { cell.get_or_try_init(|| async { Err(()) }).await.ok().cloned() }).collect()
    }

    fn enter<E>(&self, key: &K) -> Result<Caller<'_, K, V>, Vacant<E>> {
        let mut table = self.table();
        if table.closed {
            return Err(Vacant::Closed);
        }
        table.prune();
        if !table.slots.contains_key(key) && table.slots.len() >= self.most {
            return Err(Vacant::Full);
        }
        let slot = table.slots.entry(key.clone()).or_insert_with(Slot::empty);
        slot.callers += 1;
        Ok(Caller { slots: self, key: key.clone(), cell: Arc::clone(&slot.cell) })
    }

    fn table(&self) -> MutexGuard<'_, Table<K, V>> {
        self.table.lock().expect("nothing panics while it holds the table")
    }
}

impl<K, V: Occupant> Table<K, V> {
    fn prune(&mut self) {
        self.slots.retain(|_, slot| match slot.cell.get() {
            Some(value) => !value.has_ended(),
            None => slot.callers > 0,
        });
    }
}

impl<V> Slot<V> {
    fn empty() -> Self {
        Self { cell: Arc::new(OnceCell::new()), callers: 0 }
    }
}

/// A caller in a slot. Its drop is what makes a cancelled call leave nothing behind.
struct Caller<'a, K: Clone + Eq + Hash, V: Occupant> {
    slots: &'a Slots<K, V>,
    key: K,
    cell: Arc<OnceCell<V>>,
}

impl<K: Clone + Eq + Hash, V: Occupant> Drop for Caller<'_, K, V> {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        // A slot whose value ended may have given way to a new one, which this caller never entered.
        if let Some(slot) = table.slots.get_mut(&self.key)
            && Arc::ptr_eq(&slot.cell, &self.cell)
        {
            slot.callers -= 1;
        }
        table.prune();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use tokio::sync::oneshot;

    use super::{Occupant, Occupied, Slots, Vacant};

    #[derive(Debug, Clone, Default)]
    struct Value(Arc<AtomicBool>);

    impl Value {
        fn end(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl Occupant for Value {
        fn has_ended(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn slots(most: usize) -> Slots<&'static str, Value> {
        Slots::new(most)
    }

    async fn make() -> Result<Value, &'static str> {
        Ok(Value::default())
    }

    async fn fail() -> Result<Value, &'static str> {
        Err("no")
    }

    #[tokio::test]
    async fn a_value_is_made_once() {
        let slots = slots(1);
        assert!(matches!(slots.occupy(&"a", make).await, Ok(Occupied::Made(_))));
        assert!(matches!(slots.occupy(&"a", fail).await, Ok(Occupied::Found(_))));
        assert_eq!(slots.present().len(), 1);
    }

    #[tokio::test]
    async fn callers_at_the_same_moment_share_one_value() {
        let slots = slots(1);
        let (go, gate) = oneshot::channel::<()>();
        let slow = slots.occupy(&"a", || async {
            gate.await.unwrap();
            make().await
        });
        let open = async {
            tokio::task::yield_now().await;
            go.send(()).unwrap();
        };
        let (first, second, ()) = tokio::join!(slow, slots.occupy(&"a", fail), open);
        assert!(matches!(first, Ok(Occupied::Made(_))));
        assert!(matches!(second, Ok(Occupied::Found(_))));
    }

    #[tokio::test]
    async fn a_failure_leaves_the_slot_free() {
        let slots = slots(1);
        assert_eq!(slots.occupy(&"a", fail).await.unwrap_err(), Vacant::Failed("no"));
        assert!(slots.occupy(&"b", make).await.is_ok());
    }

    #[tokio::test]
    async fn a_dropped_caller_lets_the_next_one_try() {
        let slots = slots(1);
        let mut stuck = Box::pin(slots.occupy(&"a", pending::<Result<Value, &str>>));
        let mut next = Box::pin(slots.occupy(&"a", make));
        tokio::select! {
            biased;
            _ = &mut stuck => unreachable!("it never ends"),
            _ = &mut next => unreachable!("it waits for the first"),
            () = tokio::task::yield_now() => {}
        }
        drop(stuck);
        assert!(matches!(next.await, Ok(Occupied::Made(_))));
    }

    #[tokio::test]
    async fn one_more_than_the_limit_is_refused_until_one_ends() {
        let slots = slots(1);
        let Ok(Occupied::Made(value)) = slots.occupy(&"a", make).await else { panic!("must be made") };
        assert_eq!(slots.occupy(&"b", make).await.unwrap_err(), Vacant::Full);
        value.end();
        assert!(slots.present().is_empty());
        assert!(slots.occupy(&"b", make).await.is_ok());
    }

    #[tokio::test]
    async fn a_value_that_ended_gives_way_to_a_new_one() {
        let slots = slots(1);
        let Ok(Occupied::Made(value)) = slots.occupy(&"a", make).await else { panic!("must be made") };
        value.end();
        assert!(matches!(slots.occupy(&"a", make).await, Ok(Occupied::Made(_))));
    }

    #[tokio::test]
    async fn closing_waits_for_what_is_being_made_and_refuses_the_rest() {
        let slots = slots(2);
        let (go, gate) = oneshot::channel::<()>();
        let slow = slots.occupy(&"a", || async {
            gate.await.unwrap();
            make().await
        });
        let close = async {
            tokio::task::yield_now().await;
            let closing = slots.close();
            assert_eq!(slots.occupy(&"b", make).await.unwrap_err(), Vacant::Closed);
            go.send(()).unwrap();
            let mut values = Vec::new();
            for value in closing {
                values.extend(value.await);
            }
            values
        };
        let (made, closed) = tokio::join!(slow, close);
        assert!(made.is_ok());
        assert_eq!(closed.len(), 1);
    }
}
