//! What a view is told, and what its handles read.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::info;

use crate::{
    discovery::{
        node_set::{Key, Keys, Known, What},
        nodes::Nodes,
        watcher::News,
    },
    error::{Error, Unavailable},
    etcd::{Etcd, Failure, Found},
    layout::{Layout, template::memo::ParseMemo},
    node::{ServerNode, ServiceName, Version},
};

/// How long what was known is kept after etcd lost its data: more than four renewal intervals at the default TTL, and it
/// takes a service one to come back.
const GRACE: Duration = Duration::from_secs(15);

/// What a view is told, and what its handles read.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(super) name: ServiceName,
    pub(super) version: Version,
    /// Where nodes are looked for, in the order of preference: what the keys of a layout begin with.
    pub(super) places: Vec<(Layout, String)>,
    pub(super) patience: Duration,
    /// Counts changes of the nodes; for whoever only wants to know whether there was one.
    generation: AtomicU64,
    pub(super) told: watch::Sender<()>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    sights: Vec<Sight>,
    /// Where they are not just those of one layout: made when asked for, so that a burst of changes costs one.
    merged: Option<Nodes>,
    ended: bool,
}

/// What stands under the prefix of one layout.
#[derive(Debug, Default)]
pub(super) struct Sight {
    known: Keys,
    /// Known from before the data of etcd were lost, until the time.
    kept: Option<(Instant, Keys)>,
    revision: i64,
    /// etcd's last word.
    heard: Option<Instant>,
    pub(super) trouble: Option<Unavailable>,
}

impl Picture {
    pub(crate) fn new(name: ServiceName, version: Version, layouts: &[Layout], patience: Duration) -> Self {
        let place = |layout: &Layout| (layout.clone(), layout.prefix(&name, &version));
        let places = layouts.iter().map(place).collect();
        let sights = layouts.iter().map(|_| Sight::default()).collect();
        let seen = Mutex::new(Seen { sights, merged: None, ended: false });
        Self { name, version, places, patience, generation: AtomicU64::new(0), told: watch::channel(()).0, seen }
    }

    /// Tells of each change; `None` when the tasks behind it have ended, or are about to.
    pub(super) fn subscribe(&self) -> Option<watch::Receiver<()>> {
        let seen = self.seen();
        (!seen.ended).then(|| self.told.subscribe())
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// When etcd has confirmed all of it.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.seen().sights.iter().map(|sight| sight.heard).min()?
    }

    pub(super) fn trouble(&self) -> Option<Unavailable> {
        self.seen().sights.iter().find_map(|sight| sight.trouble.clone())
    }

    pub(super) fn garbage(&self) -> usize {
        self.seen().sights.iter().map(|sight| sight.known.garbage()).sum()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.seen().ended
    }

    /// Whether all is read; what etcd refused for good is an error.
    pub(super) fn reading(&self) -> Option<Result<(), Error>> {
        let seen = self.seen();
        if seen.sights.iter().all(|sight| sight.heard.is_some()) {
            return Some(Ok(()));
        }
        if seen.ended {
            return Some(Err(Error::Ended));
        }
        let refused = |sight: &Sight| sight.trouble.clone().filter(Unavailable::is_denied);
        seen.sights.iter().find_map(refused).map(|refused| Err(Error::Unavailable(refused)))
    }

    pub(super) fn nodes(&self) -> Nodes {
        let seen = self.seen();
        match (seen.sights.as_slice(), &seen.merged) {
            ([Sight { known, kept: None, .. }], _) => return Nodes(known.clone()),
            (_, Some(merged)) => return merged.clone(),
            _ => {}
        }
        let kept = |sight: &Sight| sight.kept.as_ref().map(|(_, kept)| kept.clone());
        let sights: Vec<_> = seen.sights.iter().map(|sight| (kept(sight), sight.known.clone())).collect();
        let generation = self.generation.load(Ordering::Acquire);
        // Very many take a while, and the thread that leases are renewed on must not wait for that to tell what is new.
        drop(seen);
        let merged = merged(sights);
        let mut seen = self.seen();
        if self.generation.load(Ordering::Acquire) == generation {
            seen.merged = Some(merged.clone());
        }
        merged
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of one layout; `change` says whether that changed a node. Whoever follows is told the news.
    pub(super) fn tell(&self, layout: usize, change: impl FnOnce(&mut Sight) -> bool) {
        let mut seen = self.seen();
        // None: the view has ended, and this task is about to.
        let Some(sight) = seen.sights.get_mut(layout) else { return };
        let was_troubled = sight.trouble.is_some();
        let changed = change(sight);
        let is_news = changed || sight.trouble.is_some() != was_troubled;
        if changed {
            seen.merged = None;
            self.generation.fetch_add(1, Ordering::Release);
        }
        drop(seen);
        if is_news {
            self.told.send_replace(());
        }
    }

    /// A key that is known, when it was created, and a revision at which it stood.
    fn witness(&self, layout: usize) -> Option<(Key, i64, i64)> {
        let seen = self.seen();
        let sight = seen.sights.get(layout)?;
        let known = sight.known.iter().next()?;
        Some((known.key.clone(), known.created, sight.revision.max(known.created)))
    }

    /// Whether etcd, at `revision` now, has the data that it had: one that lost them is behind, or does not remember a key.
    pub(super) async fn recognises(&self, layout: usize, etcd: &Etcd, revision: i64) -> Result<bool, Failure> {
        let Some((key, created, at)) = self.witness(layout) else { return Ok(true) };
        if revision < at {
            return Ok(false);
        }
        match etcd.created(&key, at).await {
            Ok(remembered) => Ok(remembered == Some(created)),
            // Compacted: it has gone on from there.
            Err(Failure::Refused { .. }) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    pub(super) fn known(&self, layout: &Layout, memo: &mut ParseMemo, found: Found) -> Arc<Known> {
        // Not every layout has a name's keys, or a version's, to themselves under their prefix.
        let Self { name, version, .. } = self;
        let ours = |node: &ServerNode| node.name == *name && (version.as_str().is_empty() || node.version == *version);
        let what = match layout.read_with(memo, &found.key, &found.value) {
            Ok((node, is_secured)) if ours(&node) => {
                // A long name is shared by all.
                let node = ServerNode { name: name.clone(), ..node };
                if is_secured { What::Secured(node) } else { What::Node(node) }
            }
            Ok(_) => What::Other,
            Err(_) => What::Garbage,
        };
        Arc::new(Known { key: Key::from_vec(found.key), created: found.created, what })
    }

    /// Ends if nobody holds a handle any more; none is given out afterwards.
    pub(super) fn end_unless_wanted(&self) -> bool {
        let mut seen = self.seen();
        if self.told.is_closed() {
            seen.ended = true;
            seen.merged = None;
            seen.sights.clear();
        }
        seen.ended
    }

    pub(crate) fn end(&self) {
        self.seen().ended = true;
        self.told.send_replace(());
    }
}

/// The nodes of several layouts: what is kept of each, and what is known.
fn merged(sights: Vec<(Option<Keys>, Keys)>) -> Nodes {
    let is_one = sights.len() == 1;
    let mut places = HashSet::new();
    let mut is_new = |known: &Arc<Known>| {
        let node = known.node();
        is_one || node.is_some_and(|node| places.insert((node.version.clone(), node.addr.clone())))
    };
    let mut all: Vec<Arc<Known>> = Vec::new();
    for (kept, known) in sights {
        let of_sight = kept.map_or_else(|| known.clone(), |kept| kept.with(&known));
        all.extend(of_sight.iter().filter(|known| is_new(known)).cloned());
    }
    Nodes(Keys::of(all))
}

impl Sight {
    /// Takes over a reading: of the etcd that was known, or of one that has lost its data.
    pub(super) fn read(&mut self, now: Instant, revision: i64, keys: Keys, is_the_same: bool) {
        let before = std::mem::replace(&mut self.known, keys);
        if !is_the_same {
            info!(nodes = before.nodes(), "etcd has lost its data; what was known is kept for {GRACE:?}");
            let kept = self.kept.take().map(|(_, kept)| kept).unwrap_or_default();
            self.kept = Some((now + GRACE, kept.with(&before)));
        }
        self.revision = revision;
        self.heard = Some(now);
        self.trouble = None;
    }

    /// Whether that changed a node.
    pub(super) fn apply(&mut self, now: Instant, changes: Vec<News<Arc<Known>>>) -> bool {
        self.heard = Some(now);
        let mut changed = self.kept.take_if(|(until, _)| *until <= now).is_some();
        for news in changes {
            // Deleted, it is not coming back; put, it has.
            let key = match &news {
                News::Put(known) => &known.key,
                News::Deleted(key) => key.as_slice(),
            };
            let kept = self.kept.as_mut().and_then(|(_, kept)| kept.remove(key));
            let (is, was) = match news {
                News::Put(known) => (Some(known.clone()), self.known.insert(known)),
                News::Deleted(key) => (None, self.known.remove(&key)),
            };
            changed |= told(was.or(kept).as_ref()) != told(is.as_ref());
        }
        changed
    }
}

/// What is told of a key: the node, and whether it says that it speaks TLS.
fn told(known: Option<&Arc<Known>>) -> Option<(&ServerNode, bool)> {
    let known = known?;
    Some((known.node()?, known.is_secured()))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::Picture;

    #[test]
    fn the_task_of_a_second_layout_may_have_news_after_the_end() {
        let layouts = ["seed", "kratos"].map(|name| name.parse().unwrap());
        let picture = Picture::new("user".parse().unwrap(), "".parse().unwrap(), &layouts, Duration::from_secs(1));
        let picture = Arc::new(picture);
        drop(picture.subscribe().unwrap());
        assert!(picture.end_unless_wanted());
        picture.tell(1, |_| panic!("nobody knows of it any more"));
        assert!(picture.witness(1).is_none() && picture.subscribe().is_none());
    }
}
