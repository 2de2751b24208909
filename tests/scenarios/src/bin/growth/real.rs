//! A fleet on a real etcd of three members: registered, held, followed, deployed, through a change of the leader, and stopped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, ConnectOptions, GetOptions};
use leasehold_scenarios::{
    growth::Size,
    real::{Cluster, Etcd, changes, revision},
};
use tokio::time::sleep;

use crate::{children::Process, etcd::Metrics};

const MEMBERS: usize = 3;
/// Time for which the cost of holding is measured.
const HOLD: Duration = Duration::from_secs(30);
/// Pause between the writes of another client in a busy etcd.
const FOREIGN_WRITE: Duration = Duration::from_millis(100);
/// Services that one registrar views; of each, one instance stands on every host.
const VIEWS: usize = 1000;
/// Registrars that view the same service, and the changes of it.
const VIEWERS: usize = 50;
const CHANGES: usize = 100;
/// Registrars that follow every key.
const FOLLOWERS: usize = 10;
/// Time after a fault, beside a TTL, in which a lost lease would take its keys along.
const GRACE: Duration = Duration::from_secs(5);

/// Longest time for the recovery of every key, and for a compaction.
const RECOVERY: Duration = Duration::from_secs(240);

/// The cluster and the processes at it.
struct Run {
    size: Size,
    ttl: Duration,
    cluster: Cluster,
    client: Client,
    hosts: Process,
}

/// Measures a fleet of this size, with leases of `ttl` seconds, and prints a line for each figure.
pub(crate) async fn measure(size: Size, ttl: usize) -> Result<()> {
    let begun = Instant::now();
    let cluster = Box::pin(Cluster::start(MEMBERS)).await;
    let mut client = cluster.client().await;
    line(&format!("real, {size}: etcd {} of {MEMBERS} members", client.status().await?.version()));
    let mut arguments = vec![size.keys.to_string(), size.hosts.to_string(), ttl.to_string()];
    arguments.extend(cluster.endpoints());
    let hosts = Process::start("hosts", &arguments)?;
    let ttl_of_all = Duration::from_secs(u64::try_from(ttl)?);
    let mut run = Run { size, ttl: ttl_of_all, cluster, client, hosts };
    run.register().await?;
    run.hold("while nothing changes", false).await?;
    run.hold("while another client writes ten keys a second", true).await?;
    run.follow().await?;
    run.deploy().await?;
    Box::pin(run.compact()).await?;
    Box::pin(run.lose_a_member()).await?;
    run.stop().await?;
    drop(run);
    Box::pin(recover(size, ttl)).await?;
    line(&format!("{:.0} s in all", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Measures the way back of a fleet whose etcd, of one member, loses its data.
async fn recover(size: Size, ttl: usize) -> Result<()> {
    let mut etcd = Box::pin(Etcd::start()).await;
    let arguments = [size.keys.to_string(), size.hosts.to_string(), ttl.to_string(), etcd.endpoint()];
    let mut hosts = Process::start("hosts", &arguments)?;
    let [registered] = hosts.run("register").await?;
    Box::pin(etcd.restart(false)).await;
    let (begun, mut client) = (Instant::now(), etcd.client().await);
    let total = size.total();
    while count(&mut client).await? < total {
        ensure!(
            begun.elapsed() < RECOVERY,
            "of {total} keys {} are back after {RECOVERY:?}",
            count(&mut client).await?
        );
        sleep(Duration::from_millis(50)).await;
    }
    let back = begun.elapsed().as_secs_f64();
    let leases = client.leases().await?.leases().len();
    line(&format!(
        "one member: registered in {registered:.1} s; restarted without its data, all keys are back after {back:.1} s, \
         {:.0} a second, with {leases} leases",
        total as f64 / back
    ));
    let [stopped] = hosts.run("stop").await?;
    line(&format!("  stop all: {stopped:.1} s"));
    Ok(())
}

/// Number of the fleet's keys in etcd.
async fn count(client: &mut Client) -> Result<usize> {
    let all = GetOptions::new().with_prefix().with_count_only();
    Ok(usize::try_from(client.get("/service-", Some(all)).await?.count())?)
}

impl Run {
    async fn register(&mut self) -> Result<()> {
        let (empty, before) = (self.hosts.memory()?, self.metrics()?);
        let [seconds] = self.hosts.run("register").await?;
        self.all_are_in_etcd().await?;
        let total = self.size.total() as f64;
        let committed = self.committed(&before)?;
        line(&format!(
            "register all: {seconds:.1} s, {:.0} keys and {:.0} entries of etcd's log a second",
            total / seconds,
            committed / seconds
        ));
        let leases = self.client.leases().await?.leases().len();
        let memory = (self.hosts.memory()? - empty) as f64 / total;
        line(&format!("{leases} leases; memory of the registrars: {memory:.0} bytes for each registration"));
        let some = self.client.get("/service-0/", Some(GetOptions::new().with_prefix().with_limit(1))).await?;
        let one = some.kvs().first().context("a key")?;
        line(&format!("the first key has {} bytes, its value {}", one.key().len(), one.value().len()));
        self.show_members()
    }

    /// Measures the cost of holding, in an etcd that is quiet or that another client writes to.
    async fn hold(&mut self, when: &str, is_busy: bool) -> Result<()> {
        let (cpu, before, from) = (self.hosts.cpu()?, self.metrics()?, revision(&mut self.client).await);
        let begun = Instant::now();
        while begun.elapsed() < HOLD {
            if is_busy {
                self.client.put("foreign", "", None).await?;
                sleep(FOREIGN_WRITE).await;
            } else {
                sleep(HOLD.saturating_sub(begun.elapsed())).await;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let percent = |cpu: f64| 100.0 * cpu / seconds;
        let spent = self.spent(&before)?;
        let renewed: f64 = spent.iter().map(|member| member.renewed).sum();
        let sent: f64 = spent.iter().map(|member| member.sent).sum();
        let members: Vec<_> = spent.iter().map(|member| format!("{:.1}", percent(member.cpu))).collect();
        line(&format!(
            "held for {seconds:.0} s {when}: {:.1} renewals a second, {} revisions; the registrars use {:.2} % of a core, \
             the members {} %; etcd sends {:.0} KiB a second",
            renewed / seconds,
            revision(&mut self.client).await - from,
            percent(self.hosts.cpu()? - cpu),
            members.join(", "),
            sent / 1024.0 / seconds
        ));
        self.all_are_in_etcd().await
    }

    /// Measures views and watches of every key.
    async fn follow(&mut self) -> Result<()> {
        let before = self.metrics()?;
        let mut viewer = Process::start("viewer", &self.cluster.endpoints())?;
        let [seconds, keys] = viewer.run("follow 1").await?;
        line(&format!("the first view of all {keys} keys: {seconds:.2} s"));
        let [] = viewer.run("close").await?;
        let services = VIEWS.min(self.size.keys);
        let [seconds, nodes] = viewer.run(&format!("views {services}")).await?;
        line(&format!("{services} views of one registrar, with {nodes} nodes: ready in {seconds:.2} s"));
        let [] = viewer.run("close").await?;
        let [median, longest, confirmed] = viewer.run(&format!("see {VIEWERS} {CHANGES}")).await?;
        line(&format!(
            "{VIEWERS} registrars view one service, {CHANGES} changes: all have a change after {median:.1} ms (median), \
             {longest:.1} ms at most; etcd confirms it after {confirmed:.1} ms"
        ));
        let [] = viewer.run("close").await?;
        let [seconds, keys] = viewer.run(&format!("follow {FOLLOWERS}")).await?;
        line(&format!("{FOLLOWERS} registrars read all {keys} keys at once: {seconds:.2} s"));
        self.show_growth(&before)?;
        let before = self.metrics()?;
        let changes = 2 * self.size.keys;
        let begun = Instant::now();
        viewer.send(&format!("followed {changes}")).await?;
        let [deployed] = self.hosts.run("deploy 1").await?;
        let [_] = viewer.response().await?;
        let seconds = begun.elapsed().as_secs_f64();
        let sent: f64 = self.spent(&before)?.iter().map(|member| member.sent).sum();
        let events = (changes * FOLLOWERS) as f64;
        line(&format!(
            "one host is deployed in {deployed:.2} s, and {FOLLOWERS} followers have its {changes} events after {seconds:.2} s: \
             {:.0} events a second, {:.0} bytes each, {:.1} MiB a second",
            events / seconds,
            sent / events,
            sent / seconds / 1_048_576.0
        ));
        Ok(())
    }

    async fn deploy(&mut self) -> Result<()> {
        let before = self.metrics()?;
        let [seconds] = self.hosts.run(&format!("deploy {}", self.size.hosts)).await?;
        self.all_are_in_etcd().await?;
        let committed = self.committed(&before)?;
        line(&format!(
            "deploy all, host by host: {seconds:.1} s, {:.0} keys gone and back a second; {committed:.0} entries of etcd's log",
            self.size.total() as f64 / seconds
        ));
        self.show_members()
    }

    /// Compacts etcd and defragments its members.
    async fn compact(&mut self) -> Result<()> {
        let now = revision(&mut self.client).await;
        let begun = Instant::now();
        let physical = etcd_client::CompactionOptions::new().with_physical();
        // On a busy machine it takes longer than the harness waits for other calls.
        let patient = ConnectOptions::new().with_timeout(RECOVERY);
        Client::connect(self.cluster.endpoints(), Some(patient.clone())).await?.compact(now, Some(physical)).await?;
        line(&format!("compacted in {:.1} s", begun.elapsed().as_secs_f64()));
        self.show_members()?;
        let begun = Instant::now();
        for endpoint in self.cluster.endpoints() {
            Client::connect([endpoint], Some(patient.clone())).await?.defragment().await?;
        }
        line(&format!("{MEMBERS} members defragmented in {:.1} s", begun.elapsed().as_secs_f64()));
        self.show_members()
    }

    /// Kills the leader, and starts it again when another one has led for longer than a TTL.
    async fn lose_a_member(&mut self) -> Result<()> {
        let since = revision(&mut self.client).await;
        let leader = self.cluster.leader().await;
        self.cluster.kill(leader);
        let begun = Instant::now();
        self.cluster.leader().await;
        let elected = begun.elapsed().as_secs_f64();
        sleep(self.ttl + GRACE).await;
        let begun = Instant::now();
        self.cluster.restart(leader).await;
        let restarted = begun.elapsed().as_secs_f64();
        sleep(self.ttl + GRACE).await;
        self.client = self.cluster.client().await;
        let changes = changes(&mut self.client, since).await;
        let deleted = changes.iter().filter(|change| change.is_delete).count();
        line(&format!(
            "the leader is killed: another one after {elected:.1} s; the member is back {restarted:.1} s after its start; \
             {deleted} DELETE events, {} others",
            changes.len() - deleted
        ));
        ensure!(deleted == 0, "watchers saw {deleted} DELETE events");
        self.all_are_in_etcd().await
    }

    async fn stop(&mut self) -> Result<()> {
        let before = self.metrics()?;
        let [seconds] = self.hosts.run("stop").await?;
        let left = count(&mut self.client).await?;
        ensure!(left == 0, "{left} keys are left");
        let committed = self.committed(&before)?;
        line(&format!("stop all: {seconds:.1} s, with {committed:.0} entries of etcd's log"));
        Ok(())
    }

    /// Fails unless every key is in etcd and every registration knows, at most one renewal interval later: the renewal of a lease
    /// may have been late while all wrote.
    async fn all_are_in_etcd(&mut self) -> Result<()> {
        let (begun, total) = (Instant::now(), self.size.total());
        loop {
            let [registered] = self.hosts.run("registered").await?;
            let found = count(&mut self.client).await?;
            if found == total && registered == total as f64 {
                return Ok(());
            }
            ensure!(begun.elapsed() < self.ttl / 3, "of {total}, {found} are in etcd, {registered} registered");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn metrics(&self) -> Result<Vec<Metrics>> {
        self.cluster.endpoints().iter().map(|endpoint| Metrics::read(endpoint)).collect()
    }

    fn spent(&self, before: &[Metrics]) -> Result<Vec<Metrics>> {
        Ok(self.metrics()?.into_iter().zip(before).map(|(after, before)| after - *before).collect())
    }

    /// Entries of the log that were committed since.
    fn committed(&self, before: &[Metrics]) -> Result<f64> {
        Ok(self.spent(before)?.iter().map(|member| member.committed).fold(0.0, f64::max))
    }

    fn show_members(&self) -> Result<()> {
        let mib = |bytes: f64| bytes / 1_048_576.0;
        for (index, Metrics { memory, database: [file, in_use], .. }) in self.metrics()?.into_iter().enumerate() {
            line(&format!(
                "  member {index}: database {:.0} MiB, {:.0} MiB of it in use; memory {:.0} MiB",
                mib(file),
                mib(in_use),
                mib(memory)
            ));
        }
        Ok(())
    }

    fn show_growth(&self, before: &[Metrics]) -> Result<()> {
        let grown: Vec<_> =
            self.spent(before)?.iter().map(|member| format!("{:.0}", member.memory / 1_048_576.0)).collect();
        line(&format!("  the members' memory has grown by {} MiB meanwhile", grown.join(", ")));
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "a command speaks to its user")]
fn line(text: &str) {
    println!("{text}");
}
