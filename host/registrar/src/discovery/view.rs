//! A watched view of the nodes of one service: read once, followed from there, read again after a break.
//!
//! Whatever happens to etcd, a view keeps what it knows: an outage takes no node out of it. Two things do: etcd's word
//! that a key was deleted, and a reading after a break that lacks it. To an etcd that lost its data services are about to
//! return: what was known stays in the view beside what it has for a [`GRACE`].

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::{info, warn};

use crate::{
    discovery::{
        node_set::{Key, Keys, Known, What},
        watcher::{Follower, News, Step},
    },
    error::{Error, Unavailable},
    etcd::{Etcd, Failure, Found, Reading},
    layout::{Layout, memo::Last},
    node::{Addr, ServerNode, ServiceName, Version},
};

/// How long what was known is kept after etcd lost its data: more than four renewal intervals at the default TTL, and it
/// takes a service one to come back.
const GRACE: Duration = Duration::from_secs(15);

/// The nodes of one service as etcd has them, followed in the background for as long as a handle lives.
///
/// Cloning clones the handle; each has its own [`changed`](Self::changed).
#[derive(Debug, Clone)]
pub struct View {
    picture: Arc<Picture>,
    generations: watch::Receiver<()>,
}

/// Nodes at one time, in the order of their keys. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Nodes(pub(crate) Keys);

/// One difference between two looks at a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// A node came.
    Joined(ServerNode),
    /// It changed: its weight, its metadata.
    Changed(ServerNode),
    /// It went.
    Left(ServerNode),
}

/// What a view is told, and what its handles read.
#[derive(Debug)]
pub(crate) struct Picture {
    name: ServiceName,
    version: Version,
    /// Where nodes are looked for, in the order of preference: what the keys of a layout begin with.
    places: Vec<(Layout, String)>,
    patience: Duration,
    /// Counts changes of the nodes; for whoever only wants to know whether there was one.
    generation: AtomicU64,
    told: watch::Sender<()>,
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
struct Sight {
    known: Keys,
    /// Known from before the data of etcd were lost, until the time.
    kept: Option<(Instant, Keys)>,
    revision: i64,
    /// etcd's last word.
    heard: Option<Instant>,
    trouble: Option<Unavailable>,
}

impl Nodes {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.nodes()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of them say that they speak TLS.
    pub fn secured(&self) -> usize {
        self.known().filter(|known| known.is_secured()).count()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &ServerNode> + Clone {
        self.known().filter_map(|known| known.node())
    }

    /// At most so many: where there are more, those from a place among them on, in the order of their keys and around. Places
    /// are all of `u32`, spread evenly: who keeps one is given the same nodes as long as they stay, but for very few.
    pub fn some(&self, most: usize, place: u32) -> impl Iterator<Item = &ServerNode> {
        let at = |all: usize| (all as u128 * u128::from(place)) >> u32::BITS;
        let from = if self.len() > most { usize::try_from(at(self.0.iter().count())).unwrap_or(0) } else { 0 };
        let all = self.0.iter().skip(from).chain(self.0.iter().take(from));
        all.filter_map(|known| known.node()).take(most)
    }

    /// Those among them that have a node.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Arc<Known>> + Clone {
        self.0.iter().filter(|known| known.node().is_some())
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl View {
    /// The service.
    pub fn name(&self) -> &ServiceName {
        &self.picture.name
    }

    /// The version; empty for all.
    pub fn version(&self) -> &Version {
        &self.picture.version
    }

    /// Returns once etcd was read for the first time; at once if it was.
    ///
    /// Fails with [`Error::Unavailable`] when etcd refuses the user, or when it was not read within the request timeout,
    /// and with [`Error::Ended`] when the registrar has ended before. The view goes on trying.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut told = self.generations.clone();
        let reading = async {
            loop {
                told.borrow_and_update();
                if let Some(outcome) = self.picture.reading() {
                    return outcome;
                }
                if told.changed().await.is_err() {
                    return Err(Error::Ended);
                }
            }
        };
        let after = self.picture.patience;
        match timeout(after, reading).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.trouble().map_or(Error::Timeout { what: "resolve", after }, Error::Unavailable)),
        }
    }

    /// The nodes as last known, in the order of their keys; none before the view is ready. Never waits.
    ///
    /// A node that stands under several layouts is there once, as the first of them has it.
    pub fn nodes(&self) -> Nodes {
        self.picture.nodes()
    }

    /// How long ago etcd confirmed what is known; `None` before the view is ready. Up to about 5 s while all is well.
    pub fn age(&self) -> Option<Duration> {
        let seen = self.picture.seen();
        let heard = seen.sights.iter().map(|sight| sight.heard).min()??;
        Some(heard.elapsed())
    }

    /// Why the view is not kept up to date at the moment; `None` when it is.
    pub fn trouble(&self) -> Option<Unavailable> {
        self.picture.seen().sights.iter().find_map(|sight| sight.trouble.clone())
    }

    /// Where its nodes are looked for: the layouts, each with what their keys begin with.
    pub fn places(&self) -> &[(Layout, String)] {
        &self.picture.places
    }

    /// How many keys stand where the nodes do and are not ones.
    pub fn garbage(&self) -> usize {
        let seen = self.picture.seen();
        seen.sights.iter().map(|sight| sight.known.garbage()).sum()
    }

    /// Returns when something has changed since this handle was made, or since this last returned: the nodes, or whether
    /// they are up to date. Fails with [`Error::Ended`] when the registrar has.
    pub async fn changed(&mut self) -> Result<(), Error> {
        if self.picture.seen().ended {
            return Err(Error::Ended);
        }
        self.generations.changed().await.map_err(|_| Error::Ended)?;
        if self.picture.seen().ended { Err(Error::Ended) } else { Ok(()) }
    }

    /// What differs from an earlier look at the nodes: those that went, then those that came or changed.
    pub fn events_since(&self, before: &Nodes) -> Vec<NodeEvent> {
        let now = self.nodes();
        let place = |node: &ServerNode| (node.version.clone(), node.addr.clone());
        // A node may have moved to another key, so that what is where it was is looked at, too.
        let places: HashSet<_> = now.0.unshared(&before.0).filter_map(|known| known.node()).map(place).collect();
        let by_place = |nodes: &Nodes| -> BTreeMap<(Version, Addr), ServerNode> {
            let all = nodes.iter().map(|node| (place(node), node));
            all.filter(|(place, _)| places.contains(place)).map(|(place, node)| (place, node.clone())).collect()
        };
        let (was, is) = (by_place(before), by_place(&now));
        let left = was.iter().filter(|(place, _)| !is.contains_key(place));
        let left = left.map(|(_, node)| NodeEvent::Left(node.clone()));
        let came = is.iter().filter_map(|(place, node)| match was.get(place) {
            None => Some(NodeEvent::Joined(node.clone())),
            Some(old) if old != node => Some(NodeEvent::Changed(node.clone())),
            Some(_) => None,
        });
        left.chain(came).collect()
    }

    /// Differs after every change of the nodes.
    pub(crate) fn generation(&self) -> u64 {
        self.picture.generation.load(Ordering::Acquire)
    }
}

impl Picture {
    pub(crate) fn new(name: ServiceName, version: Version, layouts: &[Layout], patience: Duration) -> Self {
        let place = |layout: &Layout| (layout.clone(), layout.prefix(&name, &version));
        let places = layouts.iter().map(place).collect();
        let sights = layouts.iter().map(|_| Sight::default()).collect();
        let seen = Mutex::new(Seen { sights, merged: None, ended: false });
        Self { name, version, places, patience, generation: AtomicU64::new(0), told: watch::channel(()).0, seen }
    }

    /// A handle; `None` when the tasks behind it have ended, or are about to.
    pub(crate) fn view(self: &Arc<Self>) -> Option<View> {
        let seen = self.seen();
        (!seen.ended).then(|| View { picture: self.clone(), generations: self.told.subscribe() })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.seen().ended
    }

    /// Whether all is read; what etcd refused for good is an error.
    fn reading(&self) -> Option<Result<(), Error>> {
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

    fn nodes(&self) -> Nodes {
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
    fn tell(&self, layout: usize, change: impl FnOnce(&mut Sight) -> bool) {
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
    async fn recognises(&self, layout: usize, etcd: &Etcd, revision: i64) -> Result<bool, Failure> {
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

    fn known(&self, layout: &Layout, last: &mut Last, found: Found) -> Arc<Known> {
        // Not every layout has a name's keys, or a version's, to themselves under their prefix.
        let Self { name, version, .. } = self;
        let ours = |node: &ServerNode| node.name == *name && (version.as_str().is_empty() || node.version == *version);
        let what = match layout.read_next(last, &found.key, &found.value) {
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
    fn end_unless_wanted(&self) -> bool {
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
    fn read(&mut self, now: Instant, revision: i64, keys: Keys, is_the_same: bool) {
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
    fn apply(&mut self, now: Instant, changes: Vec<News<Arc<Known>>>) -> bool {
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

/// Follows one layout of a view, for as long as a handle lives.
pub(crate) async fn follow(picture: Arc<Picture>, index: usize, etcd: Etcd, rng: fastrand::Rng) {
    let (layout, prefix) = &picture.places[index];
    let take = |last: &mut Last, found| picture.known(layout, last, found);
    let mut follower = Follower::new(etcd.clone(), prefix.clone(), picture.patience, take, rng);
    let service = &picture.name;
    let life = async {
        let mut failures = 0;
        loop {
            let failure = match follower.next().await {
                Step::Read(Reading { found, revision }) => match picture.recognises(index, &etcd, revision).await {
                    Ok(is_the_same) => {
                        if std::mem::take(&mut failures) > 1 {
                            info!(%service, prefix, "a service is followed again");
                        }
                        let keys = Keys::of(found);
                        picture.tell(index, |sight| {
                            sight.read(Instant::now(), revision, keys, is_the_same);
                            true
                        });
                        continue;
                    }
                    Err(failure) => {
                        follower.doubt(&failure);
                        failure
                    }
                },
                Step::Changed(news) => {
                    picture.tell(index, |sight| sight.apply(Instant::now(), news));
                    continue;
                }
                Step::Broken(failure) => failure,
            };
            failures += 1;
            // A break that the next reading mends is none that anybody has to know.
            if failures == 2 {
                warn!(%service, prefix, "a service cannot be followed; its nodes stay as they were known: {failure}");
            }
            picture.tell(index, |sight| {
                sight.trouble = Some(failure.into());
                false
            });
        }
    };
    let unwanted = async {
        loop {
            picture.told.closed().await;
            if picture.end_unless_wanted() {
                return;
            }
        }
    };
    tokio::select! {
        never = life => never,
        () = unwanted => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc, time::Duration};

    use super::{Keys, Known, Nodes, Picture, ServerNode, What};

    fn crowd(numbers: impl Iterator<Item = usize>) -> Nodes {
        let known = |number| {
            let addr = format!("10.0.{}.{}:80", number / 250, number % 250);
            let what = What::Node(ServerNode::new("crowd", &addr).unwrap());
            Arc::new(Known { key: format!("{number:06}").into_bytes().into(), created: 1, what })
        };
        Nodes(Keys::of(numbers.map(known)))
    }

    #[test]
    fn who_keeps_a_place_is_given_the_same_nodes_and_places_cover_all() {
        let (all, most) = (crowd(0..10_000), 1000);
        let given = |nodes: &Nodes, place: u32| -> HashSet<String> {
            nodes.some(most, place).map(|node| node.addr.to_string()).collect()
        };
        let mut seen = HashSet::new();
        for place in (0..=u32::MAX).step_by(1 << 28) {
            let now = given(&all, place);
            assert_eq!(now.len(), most);
            assert_eq!(given(&all, place), now);
            // Some come and go, wherever.
            let later = given(&crowd((3..9_998).filter(|number| number % 5000 != 1)), place);
            assert_eq!(later.len(), most);
            assert!(later.intersection(&now).count() > most - 10, "{place}: {}", later.intersection(&now).count());
            seen.extend(now);
        }
        assert_eq!(seen.len(), 10_000);
        assert_eq!(given(&all, u32::MAX).len(), most);
        assert_eq!(given(&crowd(0..most), u32::MAX).len(), most);
        assert!(given(&crowd(0..0), 7).is_empty());
    }

    #[test]
    fn the_task_of_a_second_layout_may_have_news_after_the_end() {
        let layouts = ["seed", "kratos"].map(|name| name.parse().unwrap());
        let picture = Picture::new("user".parse().unwrap(), "".parse().unwrap(), &layouts, Duration::from_secs(1));
        let picture = Arc::new(picture);
        drop(picture.view().unwrap());
        assert!(picture.end_unless_wanted());
        picture.tell(1, |_| panic!("nobody knows of it any more"));
        assert!(picture.witness(1).is_none() && picture.view().is_none());
    }
}
