//! Every key of the layouts, whether a node stands there or not: listed, or followed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    discovery::watcher::{Follower, News, Step},
    error::{Error, Unavailable},
    etcd::{Etcd, Failure, Found},
    layout::{Layout, memo::Last},
    node::{Invalid, ServerNode, ServiceName, Version},
};

/// Leases that are asked about at a time.
const LOOKS: usize = 32;

/// One key in etcd, as [`Registrar::list`](crate::Registrar::list) found it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The key; bytes that are not UTF-8 are replaced.
    pub key: String,
    /// The value as it stands there.
    pub value: Vec<u8>,
    /// The node, or why the value is not one.
    pub node: Result<ServerNode, Invalid>,
    /// The lease, 0 for none: such a key outlives its host.
    pub lease: i64,
}

/// How long a lease lasts, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLeft {
    /// From a renewal on; zero for a lease that is gone.
    pub granted: Duration,
    /// If it is not renewed.
    pub left: Duration,
}

/// What a [`Following`] tells.
#[derive(Debug, Clone)]
pub enum Told {
    /// What happened, in order: at first that everything was put which stands there.
    Changes(Vec<KeyEvent>),
    /// All that stands there has been told: at first, and again after a break.
    Current,
    /// etcd cannot be followed at the moment; that goes on being tried.
    Lost(Unavailable),
}

/// What happened to one key.
#[derive(Debug, Clone)]
pub enum KeyEvent {
    /// It was put, or found again after a break, changed or not.
    Put(Listed),
    /// It is gone.
    Deleted(String),
}

/// What happens to the keys of the layouts; see [`Registrar::follow`](crate::Registrar::follow). Dropping it ends that.
#[derive(Debug)]
pub struct Following {
    pub(crate) told: mpsc::Receiver<Told>,
}

impl Following {
    /// What is told next. Fails with [`Error::Ended`] when the registrar has. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Told, Error> {
        self.told.recv().await.ok_or(Error::Ended)
    }
}

/// The layouts, each with what the keys begin with that are looked at.
#[derive(Clone)]
pub(crate) struct Ranges(Vec<(Layout, String)>);

impl Ranges {
    /// All keys, or those of one service, or of one version of it.
    pub(crate) fn new(layouts: &[Layout], what: Option<&(ServiceName, Version)>) -> Self {
        let prefix = |layout: &Layout| match what {
            None => layout.root(),
            Some((name, version)) => layout.prefix(name, version),
        };
        Self(layouts.iter().map(|layout| (layout.clone(), prefix(layout))).collect())
    }

    /// What every key begins with; no key begins with two of them.
    fn prefixes(&self) -> Vec<String> {
        let mut prefixes: Vec<_> = self.0.iter().map(|(_, prefix)| prefix.clone()).collect();
        prefixes.sort();
        prefixes.dedup_by(|longer, shorter| longer.starts_with(&*shorter));
        prefixes
    }

    /// A key, and which layout it belongs to. Garbage to one may be a node to another that shares its prefix.
    fn listed(&self, found: Found) -> (usize, Listed) {
        let here = self.0.iter().enumerate().filter(|(_, (_, prefix))| found.key.starts_with(prefix.as_bytes()));
        let mut parsed = here.map(|(index, (layout, _))| (index, layout.parse(&found.key, &found.value)));
        let first = parsed.next().expect("it was read under one of them");
        let (index, node) = match first {
            (_, Ok(_)) => first,
            garbage => parsed.find(|(_, node)| node.is_ok()).unwrap_or(garbage),
        };
        let key = String::from_utf8_lossy(&found.key).into_owned();
        (index, Listed { key, value: found.value, node, lease: found.lease })
    }
}

/// Every key, those of the first layout first.
pub(crate) async fn list(etcd: &Etcd, ranges: &Ranges) -> Result<Vec<Listed>, Failure> {
    let mut all = Vec::new();
    for prefix in ranges.prefixes() {
        all.extend(etcd.read(&prefix, |_, found| ranges.listed(found)).await?.found);
    }
    all.sort_by_key(|(layout, _)| *layout);
    Ok(all.into_iter().map(|(_, listed)| listed).collect())
}

/// How long leases last without a renewal, as far as etcd tells `within` that time.
pub(crate) async fn times_left(etcd: &Etcd, leases: HashSet<i64>, within: Duration) -> HashMap<i64, TimeLeft> {
    let looks = leases.into_iter().map(|lease| async move {
        match etcd.look_at(lease, false, within).await {
            Ok(view) => Some((lease, TimeLeft { granted: view.ttl, left: view.remaining })),
            Err(Failure::LeaseGone) => Some((lease, TimeLeft { granted: Duration::ZERO, left: Duration::ZERO })),
            Err(_) => None,
        }
    });
    let looks = stream::iter(looks).buffer_unordered(LOOKS).take_until(sleep(within));
    looks.filter_map(std::future::ready).collect().await
}

/// Tells what stands there and what happens, until nobody listens any more.
pub(crate) async fn tell(
    etcd: Etcd,
    ranges: Ranges,
    patience: Duration,
    mut rng: fastrand::Rng,
    told: mpsc::Sender<Told>,
) {
    let prefixes = ranges.prefixes();
    let mut followed: Vec<_> = prefixes.iter().map(|_| Followed::default()).collect();
    let steps = prefixes.into_iter().enumerate().map(|(index, prefix)| {
        let ranges = ranges.clone();
        let take = move |_: &mut Last, found| ranges.listed(found).1;
        let follower = Follower::new(etcd.clone(), prefix, patience, take, rng.fork());
        let steps = stream::unfold(follower, |mut follower| async { Some((follower.next().await, follower)) });
        Box::pin(steps.map(move |step| (index, step)))
    });
    let mut steps = stream::select_all(steps);
    let telling = async {
        let mut is_lost = false;
        while let Some((index, step)) = steps.next().await {
            let is_reading = matches!(step, Step::Read(_));
            let events = match step {
                Step::Read(reading) => followed[index].read(reading.found),
                Step::Changed(news) => followed[index].changed(news),
                Step::Broken(failure) => {
                    followed[index].is_current = false;
                    if !std::mem::replace(&mut is_lost, true) {
                        let _ = told.send(Told::Lost(failure.into())).await; // Closed: it ends below.
                    }
                    continue;
                }
            };
            if !events.is_empty() {
                let _ = told.send(Told::Changes(events)).await;
            }
            if is_reading && followed.iter().all(|followed| followed.is_current) {
                is_lost = false;
                let _ = told.send(Told::Current).await;
            }
        }
    };
    tokio::select! {
        () = telling => {}
        () = told.closed() => {}
    }
}

/// What was told of the keys under one prefix.
#[derive(Default)]
struct Followed {
    keys: HashSet<String>,
    is_current: bool,
}

impl Followed {
    fn read(&mut self, found: Vec<Listed>) -> Vec<KeyEvent> {
        let keys: HashSet<_> = found.iter().map(|listed| listed.key.clone()).collect();
        let mut gone: Vec<_> = self.keys.difference(&keys).cloned().collect();
        gone.sort();
        (self.keys, self.is_current) = (keys, true);
        gone.into_iter().map(KeyEvent::Deleted).chain(found.into_iter().map(KeyEvent::Put)).collect()
    }

    fn changed(&mut self, news: Vec<News<Listed>>) -> Vec<KeyEvent> {
        let event = |news: News<Listed>| match news {
            News::Put(listed) => {
                self.keys.insert(listed.key.clone());
                KeyEvent::Put(listed)
            }
            News::Deleted(key) => {
                let key = String::from_utf8_lossy(&key).into_owned();
                self.keys.remove(&key);
                KeyEvent::Deleted(key)
            }
        };
        news.into_iter().map(event).collect()
    }
}
