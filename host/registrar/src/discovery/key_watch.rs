//! Every key of the layouts, followed.

use std::{collections::HashSet, time::Duration};

use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::{
    discovery::{
        list::{Listed, Ranges},
        watcher::{Follower, News, Step},
    },
    error::{Error, Unavailable},
    etcd::Etcd,
    layout::template::memo::ParseMemo,
};

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
        let take = move |_: &mut ParseMemo, found| ranges.listed(found).1;
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
