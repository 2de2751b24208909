//! The process of the readers: `viewer ENDPOINT...` opens views and waits for changes on command.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use etcd_client::Client;
use leasehold::{KeyWatch, Layout, Options, Registrar, ServerNode, Version, View, WatchEvent, Weight};
use leasehold_scenarios::growth::{options, service};
use tokio::task::JoinSet;

use crate::children::{number, serve};

/// The readers, each with a connection of its own.
struct Viewer {
    endpoints: Vec<String>,
    /// Registrars of the views, which end with them.
    readers: Vec<Registrar>,
    views: Vec<View>,
    followers: Vec<KeyWatch>,
    /// Ports of the nodes so far that were put to be seen.
    port: u16,
}

pub(crate) async fn main(arguments: &[String]) -> Result<()> {
    let mut viewer = Viewer {
        endpoints: arguments.to_vec(),
        readers: Vec::new(),
        views: Vec::new(),
        followers: Vec::new(),
        port: 0,
    };
    serve(async |words| viewer.execute(&words).await).await
}

impl Viewer {
    async fn execute(&mut self, words: &[String]) -> Result<Vec<f64>> {
        match words[0].as_str() {
            "views" => self.views(number(words, 1)?).await,
            "see" => self.see(number(words, 1)?, number(words, 2)?).await,
            "follow" => self.follow(number(words, 1)?).await,
            "followed" => self.followed(number(words, 1)?).await,
            "close" => {
                self.views.clear();
                self.followers.clear();
                for reader in self.readers.drain(..) {
                    reader.shutdown(Duration::from_secs(5)).await?;
                }
                Ok(vec![])
            }
            word => bail!("unknown command {word}"),
        }
    }

    /// A registrar without registrations, at the next member.
    fn reader(&mut self) -> Result<Registrar> {
        self.endpoints.rotate_left(1);
        let options = options(self.endpoints.clone());
        let registrar = Registrar::start(Options { request_timeout: Duration::from_secs(60), ..options })?;
        self.readers.push(registrar.clone());
        Ok(registrar)
    }

    /// Opens views of that many services in one registrar: seconds until all are ready, and their nodes.
    async fn views(&mut self, count: usize) -> Result<Vec<f64>> {
        let reader = self.reader()?;
        let begun = Instant::now();
        let mut opening = JoinSet::new();
        for number in 0..count {
            let reader = reader.clone();
            opening.spawn(async move { view(&reader, number).await });
        }
        while let Some(view) = opening.join_next().await {
            self.views.push(view??);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let nodes: usize = self.views.iter().map(|view| view.nodes().len()).sum();
        Ok(vec![seconds, nodes as f64])
    }

    /// Opens a view of one service in each of `count` registrars, puts a node of it `times`, and measures the time until all
    /// views have it: the median and the longest in milliseconds, and the median until etcd confirms the put.
    async fn see(&mut self, count: usize, times: usize) -> Result<Vec<f64>> {
        let layout = Layout::default();
        let mut views = Vec::new();
        for _ in 0..count {
            views.push(view(&self.reader()?, 0).await?);
        }
        let mut client = Client::connect(&self.endpoints, None).await?;
        let (mut confirmed, mut seen) = (Vec::new(), Vec::new());
        for _ in 0..times {
            self.port += 1;
            let node = ServerNode::new(&service(0), &format!("10.9.9.9:{}", self.port))?;
            let key = layout.key(&node);
            let wanted = views[0].nodes().len() + 1;
            let begun = Instant::now();
            let mut waiting = JoinSet::new();
            for view in &views {
                let mut view = view.fresh();
                waiting.spawn(async move {
                    while view.nodes().len() != wanted {
                        view.changed().await?;
                    }
                    anyhow::Ok(())
                });
            }
            client.put(key.as_str(), layout.value(&node, Weight::MAX), None).await?;
            confirmed.push(begun.elapsed().as_secs_f64() * 1000.0);
            while let Some(outcome) = waiting.join_next().await {
                outcome??;
            }
            seen.push(begun.elapsed().as_secs_f64() * 1000.0);
            client.delete(key.as_str(), None).await?;
            for view in &views {
                let mut view = view.fresh();
                while view.nodes().len() == wanted {
                    view.changed().await?;
                }
            }
        }
        confirmed.sort_by(f64::total_cmp);
        seen.sort_by(f64::total_cmp);
        Ok(vec![seen[times / 2], seen[times - 1], confirmed[times / 2]])
    }

    /// Opens a watch of every key in each of `count` registrars: seconds until all have every key, and the keys of one.
    async fn follow(&mut self, count: usize) -> Result<Vec<f64>> {
        let mut opening = JoinSet::new();
        let begun = Instant::now();
        for _ in 0..count {
            let reader = self.reader()?;
            opening.spawn(async move {
                let mut follower = reader.watch_keys(None).await?;
                let mut keys = 0;
                loop {
                    match follower.next().await? {
                        WatchEvent::Changes(changes) => keys += changes.len(),
                        WatchEvent::Synced => return Ok((follower, keys)),
                        WatchEvent::Interrupted(why) => bail!("a watch was interrupted: {why}"),
                    }
                }
            });
        }
        let mut keys = 0;
        while let Some(opened) = opening.join_next().await {
            let (follower, its_keys) = opened??;
            self.followers.push(follower);
            keys = its_keys;
        }
        Ok(vec![begun.elapsed().as_secs_f64(), keys as f64])
    }

    /// Waits until each of these watches has had that many further changes: seconds.
    async fn followed(&mut self, changes: usize) -> Result<Vec<f64>> {
        let begun = Instant::now();
        let mut waiting = JoinSet::new();
        for mut follower in self.followers.drain(..) {
            waiting.spawn(async move {
                let mut left = changes;
                while left > 0 {
                    match follower.next().await? {
                        WatchEvent::Changes(changes) => left = left.saturating_sub(changes.len()),
                        WatchEvent::Synced => {}
                        WatchEvent::Interrupted(why) => bail!("a watch was interrupted: {why}"),
                    }
                }
                Ok(follower)
            });
        }
        while let Some(follower) = waiting.join_next().await {
            self.followers.push(follower??);
        }
        Ok(vec![begun.elapsed().as_secs_f64()])
    }
}

/// A view of a service that is ready.
async fn view(registrar: &Registrar, number: usize) -> Result<View> {
    let view = registrar.watch(&service(number).parse()?, &Version::default()).await?;
    view.ready().await?;
    Ok(view)
}
