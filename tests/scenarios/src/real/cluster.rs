//! A real etcd of several members, each of which can be killed and restarted.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use etcd_client::Client;
use tempfile::TempDir;

use super::process::{Process, free_ports};
use super::{START, TRIES, connect};
use crate::wait::wait_for;

/// A cluster on loopback that ends with the test.
#[derive(Debug)]
pub struct Cluster {
    directory: TempDir,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    client: u16,
    peer: u16,
    process: Option<Process>,
}

impl Member {
    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    fn peer_url(&self) -> String {
        format!("{}=http://127.0.0.1:{}", self.name, self.peer)
    }
}

impl Cluster {
    /// Starts that many members and waits until they have a leader.
    ///
    /// # Panics
    /// If they do not start.
    pub async fn start(size: usize) -> Self {
        for _ in 0..TRIES {
            let mut cluster = Self::new(size);
            for index in 0..size {
                cluster.launch(index);
            }
            if cluster.settles().await {
                return cluster;
            }
        }
        panic!("the cluster did not start in {TRIES} tries, each time on other ports");
    }

    /// The endpoints of all members, including members that are down.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// A client of the harness on all members, with a deadline on every call.
    pub async fn client(&self) -> Client {
        let client = connect(&self.endpoints(), None).await;
        client.expect("a client without a user calls nothing")
    }

    /// Waits until all running members agree on a leader, and returns that member.
    pub async fn leader(&self) -> usize {
        let mut leader = None;
        wait_for("the cluster has a leader", START, async || {
            leader = self.agreed_leader().await;
            leader.is_some()
        })
        .await;
        leader.expect("it was just there")
    }

    /// Kills a member (SIGKILL).
    pub fn kill(&mut self, member: usize) {
        self.members[member].process = None;
    }

    /// Restarts a killed member with its data and waits until it follows the leader.
    ///
    /// # Panics
    /// If it does not start, or if there is no quorum to follow.
    pub async fn restart(&mut self, member: usize) {
        self.restart_without_waiting(member);
        for _ in 0..TRIES {
            if self.settles().await {
                return;
            }
            self.restart_without_waiting(member);
        }
        panic!("member {member} did not come back:\n{}", self.log(member));
    }

    /// Restarts a killed member with its data; a single member is no quorum.
    pub fn restart_without_waiting(&mut self, member: usize) {
        self.kill(member);
        self.launch(member);
    }

    /// The log of a member.
    pub fn log(&self, member: usize) -> String {
        let log = fs::read(self.path(member, "log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn new(size: usize) -> Self {
        let member = |index: usize| {
            let [client, peer] = free_ports();
            Member { name: format!("member-{index}-{client}"), client, peer, process: None }
        };
        Self {
            directory: TempDir::with_prefix("leasehold-cluster-").expect("a temporary directory"),
            members: (0..size).map(member).collect(),
        }
    }

    fn path(&self, member: usize, what: &str) -> PathBuf {
        self.directory.path().join(format!("{member}.{what}"))
    }

    fn launch(&mut self, index: usize) {
        let all: Vec<String> = self.members.iter().map(Member::peer_url).collect();
        let member = &self.members[index];
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let data = self.path(index, "data").display().to_string();
        let arguments = [
            format!("--name={}", member.name),
            format!("--data-dir={data}"),
            "--logger=zap".to_owned(),
            format!("--listen-client-urls={}", member.endpoint()),
            format!("--advertise-client-urls={}", member.endpoint()),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", all.join(",")),
            format!("--initial-cluster-token={}", self.members[0].name),
        ];
        let process = Process::spawn(&arguments, &self.path(index, "log"));
        self.members[index].process = Some(process);
    }

    /// Waits until all running members agree on the leader; returns false if a member ended.
    async fn settles(&mut self) -> bool {
        let deadline = Duration::from_millis(50);
        let mut agreed = false;
        wait_for("the members agree on a leader", START, async || {
            tokio::time::sleep(deadline).await;
            let running = |member: &mut Member| member.process.as_mut().is_none_or(Process::is_running);
            let all = self.members.iter_mut().all(running);
            agreed = all && self.agreed_leader().await.is_some();
            agreed || !all
        })
        .await;
        agreed
    }

    async fn agreed_leader(&self) -> Option<usize> {
        let mut leader = None;
        let mut ids = Vec::new();
        for member in self.members.iter().filter(|member| member.process.is_some()) {
            let mut client = connect(&[member.endpoint()], None).await.ok()?;
            let status = tokio::time::timeout(Duration::from_secs(2), client.status());
            let status = status.await.ok()?.ok()?;
            let named = status.leader();
            if named == 0 || leader.is_some_and(|leader| leader != named) {
                return None;
            }
            leader = Some(named);
            ids.push((status.header()?.member_id(), &member.name));
        }
        let (_, name) = ids.into_iter().find(|(id, _)| Some(*id) == leader)?;
        self.members.iter().position(|member| member.name == *name)
    }
}
