//! Map whose values are created once, however many callers request a key at the same moment.
//!
//! The first caller of a key creates its value while the others wait. If it fails, or is dropped halfway, the next caller
//! tries. After `close` nothing is created any more. Crates for caches evict values when they are full; here a value leaves when
//! it has ended, and a full map is an error.

use std::{collections::HashMap, future::Future, hash::Hash, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OnceCell;

/// Bounded map of values, each created once.
#[derive(Debug)]
pub(crate) struct OnceMap<K, V> {
    table: Mutex<Table<K, V>>,
    capacity: usize,
}

#[derive(Debug)]
struct Table<K, V> {
    entries: HashMap<K, Entry<V>>,
    closed: bool,
}

#[derive(Debug)]
struct Entry<V> {
    cell: Arc<OnceCell<V>>,
    /// Callers that wait for the value. Without callers and without a value the entry is empty.
    callers: usize,
}

/// A value that ends at some time.
pub(crate) trait Ends: Clone {
    /// Returns true if the value has ended, so that its key is free for another one.
    fn has_ended(&self) -> bool;
}

/// Outcome of `get_or_create`.
#[derive(Debug)]
pub(crate) enum Outcome<V> {
    /// This call created the value.
    Created(V),
    /// The value existed.
    Existing(V),
}

/// Reason why `get_or_create` did not try, or the error of the creation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GetError<E> {
    /// The map is full.
    Full,
    /// The map is closed.
    Closed,
    /// The value could not be created.
    Failed(E),
}

impl<K: Clone + Eq + Hash, V: Ends> OnceMap<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { table: Mutex::new(Table { entries: HashMap::new(), closed: false }), capacity }
    }

    /// The value of `key`, created by `create` unless it exists.
    pub(crate) async fn get_or_create<E, F>(
        &self,
        key: &K,
        create: impl FnOnce() -> F,
    ) -> Result<Outcome<V>, GetError<E>>
    where
        F: Future<Output = Result<V, E>>,
    {
        let caller = self.enter(key)?;
        let mut created = false;
        let value = caller
            .cell
            .get_or_try_init(|| async {
                // The map may have been closed while this caller waited for another one's failure.
                if self.table().closed {
                    return Err(GetError::Closed);
                }
                created = true;
                create().await.map_err(GetError::Failed)
            })
            .await?;
        let value = value.clone();
        Ok(if created { Outcome::Created(value) } else { Outcome::Existing(value) })
    }

    /// Values that have not ended, in no particular order.
    pub(crate) fn present(&self) -> Vec<V> {
        let mut table = self.table();
        table.prune();
        table.entries.values().filter_map(|entry| entry.cell.get().cloned()).collect()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.table().closed
    }

    /// Refuses further creations, and returns the value of each key; a creation in progress is waited for.
    pub(crate) fn close(&self) -> Vec<impl Future<Output = Option<V>> + use<K, V>> {
        let mut table = self.table();
        table.closed = true;
        table.prune();
        let cells = table.entries.values().map(|entry| Arc::clone(&entry.cell));
        cells.map(|cell| async move { cell.get_or_try_init(|| async { Err(()) }).await.ok().cloned() }).collect()
    }

    fn enter<E>(&self, key: &K) -> Result<Caller<'_, K, V>, GetError<E>> {
        let mut table = self.table();
        if table.closed {
            return Err(GetError::Closed);
        }
        table.prune();
        if !table.entries.contains_key(key) && table.entries.len() >= self.capacity {
            return Err(GetError::Full);
        }
        let entry = table.entries.entry(key.clone()).or_insert_with(Entry::empty);
        entry.callers += 1;
        Ok(Caller { map: self, key: key.clone(), cell: Arc::clone(&entry.cell) })
    }

    fn table(&self) -> MutexGuard<'_, Table<K, V>> {
        self.table.lock()
    }
}

impl<K, V: Ends> Table<K, V> {
    fn prune(&mut self) {
        self.entries.retain(|_, entry| match entry.cell.get() {
            Some(value) => !value.has_ended(),
            None => entry.callers > 0,
        });
    }
}

impl<V> Entry<V> {
    fn empty() -> Self {
        Self { cell: Arc::new(OnceCell::new()), callers: 0 }
    }
}

/// A caller that waits for an entry. Its drop lets a cancelled call leave nothing behind.
struct Caller<'a, K: Clone + Eq + Hash, V: Ends> {
    map: &'a OnceMap<K, V>,
    key: K,
    cell: Arc<OnceCell<V>>,
}

impl<K: Clone + Eq + Hash, V: Ends> Drop for Caller<'_, K, V> {
    fn drop(&mut self) {
        let mut table = self.map.table();
        // An entry whose value ended may have given way to a new one, which this caller never entered.
        if let Some(entry) = table.entries.get_mut(&self.key)
            && Arc::ptr_eq(&entry.cell, &self.cell)
        {
            entry.callers -= 1;
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

    use super::{Ends, GetError, OnceMap, Outcome};

    #[derive(Debug, Clone, Default)]
    struct Value(Arc<AtomicBool>);

    impl Value {
        fn end(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl Ends for Value {
        fn has_ended(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn map(capacity: usize) -> OnceMap<&'static str, Value> {
        OnceMap::new(capacity)
    }

    async fn create() -> Result<Value, &'static str> {
        Ok(Value::default())
    }

    async fn fail() -> Result<Value, &'static str> {
        Err("no")
    }

    #[tokio::test]
    async fn a_value_is_created_once() {
        let map = map(1);
        assert!(matches!(map.get_or_create(&"a", create).await, Ok(Outcome::Created(_))));
        assert!(matches!(map.get_or_create(&"a", fail).await, Ok(Outcome::Existing(_))));
        assert_eq!(map.present().len(), 1);
    }

    #[tokio::test]
    async fn callers_at_the_same_moment_share_one_value() {
        let map = map(1);
        let (go, gate) = oneshot::channel::<()>();
        let slow = map.get_or_create(&"a", || async {
            gate.await.unwrap();
            create().await
        });
        let open = async {
            tokio::task::yield_now().await;
            go.send(()).unwrap();
        };
        let (first, second, ()) = tokio::join!(slow, map.get_or_create(&"a", fail), open);
        assert!(matches!(first, Ok(Outcome::Created(_))));
        assert!(matches!(second, Ok(Outcome::Existing(_))));
    }

    #[tokio::test]
    async fn a_failure_leaves_the_entry_empty() {
        let map = map(1);
        assert_eq!(map.get_or_create(&"a", fail).await.unwrap_err(), GetError::Failed("no"));
        assert!(map.get_or_create(&"b", create).await.is_ok());
    }

    #[tokio::test]
    async fn a_dropped_caller_lets_the_next_one_try() {
        let map = map(1);
        let mut stuck = Box::pin(map.get_or_create(&"a", pending::<Result<Value, &str>>));
        let mut next = Box::pin(map.get_or_create(&"a", create));
        tokio::select! {
            biased;
            _ = &mut stuck => unreachable!("it never ends"),
            _ = &mut next => unreachable!("it waits for the first"),
            () = tokio::task::yield_now() => {}
        }
        drop(stuck);
        assert!(matches!(next.await, Ok(Outcome::Created(_))));
    }

    #[tokio::test]
    async fn a_full_map_refuses_until_a_value_ends() {
        let map = map(1);
        let Ok(Outcome::Created(value)) = map.get_or_create(&"a", create).await else { panic!("must be created") };
        assert_eq!(map.get_or_create(&"b", create).await.unwrap_err(), GetError::Full);
        value.end();
        assert!(map.present().is_empty());
        assert!(map.get_or_create(&"b", create).await.is_ok());
    }

    #[tokio::test]
    async fn a_value_that_ended_is_created_anew() {
        let map = map(1);
        let Ok(Outcome::Created(value)) = map.get_or_create(&"a", create).await else { panic!("must be created") };
        value.end();
        assert!(matches!(map.get_or_create(&"a", create).await, Ok(Outcome::Created(_))));
    }

    #[tokio::test]
    async fn close_waits_for_creations_and_refuses_further_ones() {
        let map = map(2);
        let (go, gate) = oneshot::channel::<()>();
        let slow = map.get_or_create(&"a", || async {
            gate.await.unwrap();
            create().await
        });
        let close = async {
            tokio::task::yield_now().await;
            let closing = map.close();
            assert_eq!(map.get_or_create(&"b", create).await.unwrap_err(), GetError::Closed);
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
