//! The nodes that one `leasehold keep` keeps, each in a task of its own, and what a reload changes among them.

use std::collections::{HashMap, HashSet};

use futures::future::join_all;
use leasehold::{Layout, Registrar};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::node::{News, Node};
use crate::{
    config::{Kept, KeptNode},
    error::Failure,
    process::systemd,
};

/// All nodes.
pub(super) struct Nodes {
    registrar: Registrar,
    layouts: Vec<Layout>,
    alive: Vec<Alive>,
    news: mpsc::UnboundedReceiver<(u64, News)>,
    reports: mpsc::UnboundedSender<(u64, News)>,
    /// Nodes that have not been registered since the start.
    awaited: HashSet<u64>,
    is_ready: bool,
    next: u64,
    tasks: TaskTracker,
}

/// A node whose task runs.
struct Alive {
    number: u64,
    /// Its keys, by which a reload recognizes it.
    keys: Vec<String>,
    wanted: watch::Sender<KeptNode>,
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Nodes {
    pub(super) fn start(registrar: Registrar, kept: Kept, tasks: TaskTracker) -> Self {
        let (reports, news) = mpsc::unbounded_channel();
        let mut nodes = Self {
            registrar,
            layouts: kept.registrar.layouts,
            alive: Vec::new(),
            news,
            reports,
            awaited: HashSet::new(),
            is_ready: false,
            next: 0,
            tasks,
        };
        kept.nodes.into_iter().for_each(|node| nodes.add(node));
        nodes
    }

    fn add(&mut self, kept: KeptNode) {
        let (number, end) = (self.next, CancellationToken::new());
        self.next += 1;
        self.awaited.insert(number);
        let keys = kept.keys(&self.layouts);
        let (wanted, seen) = watch::channel(kept);
        let node = Node::new(number, self.registrar.clone(), self.reports.clone());
        let task = self.tasks.spawn(node.live(seen, end.clone()));
        self.alive.push(Alive { number, keys, wanted, end, task });
    }

    /// Waits until no node is left that may be registered, and returns the last failure. Reports readiness once each node has
    /// been registered.
    pub(super) async fn fail(&mut self) -> Failure {
        loop {
            // The channel stays open: one of its senders is here.
            let Some((number, news)) = self.news.recv().await else { continue };
            self.awaited.remove(&number);
            if let News::Failed(failure) = news {
                self.alive.retain(|alive| alive.number != number);
                if self.alive.is_empty() {
                    return failure;
                }
                tracing::error!("not kept: {}", failure.sentence());
            }
            if !self.is_ready {
                self.report_readiness();
            }
        }
    }

    /// Reports readiness once no node is awaited any more.
    fn report_readiness(&mut self) {
        self.is_ready |= self.awaited.is_empty();
        if self.is_ready {
            systemd::ready(&self.tasks);
        }
    }

    /// Keeps the nodes of the file as it is now. A file with a mistake changes nothing; etcd and layouts are those of the start.
    pub(super) async fn reload(&mut self, read: Result<Kept, Failure>) {
        if self.is_ready {
            systemd::reloading(&self.tasks).await;
        }
        match read {
            Ok(kept) if kept.registrar.layouts != self.layouts => {
                tracing::error!(event = "reload_failed", "the nodes stay as they are: registry.layout needs a restart");
            }
            Ok(kept) => {
                kept.notes.iter().for_each(|note| tracing::warn!("{note}"));
                self.replace(kept.nodes).await;
            }
            Err(failure) => {
                tracing::error!(event = "reload_failed", "the nodes stay as they are: {}", failure.sentence());
            }
        }
        self.report_readiness();
    }

    async fn replace(&mut self, nodes: Vec<KeptNode>) {
        let mut wanted: HashMap<_, _> = nodes.into_iter().map(|node| (node.keys(&self.layouts), node)).collect();
        let (mut stay, mut go) = (Vec::new(), Vec::new());
        let mut changed = 0;
        for alive in self.alive.drain(..) {
            let Some(node) = wanted.remove(&alive.keys) else {
                go.push(alive);
                continue;
            };
            changed += usize::from(alive.wanted.send_if_modified(|before| {
                let is_new = *before != node;
                *before = node;
                is_new
            }));
            stay.push(alive);
        }
        self.alive = stay;
        let (added, removed) = (wanted.len(), go.len());
        self.awaited.retain(|number| !go.iter().any(|alive| alive.number == *number));
        // A node that comes may have a key of another that goes, under one of several layouts.
        end(go).await;
        wanted.into_values().for_each(|node| self.add(node));
        tracing::info!(
            event = "reloaded",
            added,
            removed,
            changed,
            "reloaded: {added} added, {removed} removed, {changed} changed"
        );
    }

    /// Takes all keys out of etcd.
    pub(super) async fn take_back(&mut self) {
        end(self.alive.drain(..).collect()).await;
    }
}

/// Ends the lives of nodes, all at once.
async fn end(nodes: Vec<Alive>) {
    nodes.iter().for_each(|alive| alive.end.cancel());
    // A life ends with a log line, whatever etcd says.
    join_all(nodes.into_iter().map(|alive| alive.task)).await;
}
