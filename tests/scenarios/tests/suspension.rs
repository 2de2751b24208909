//! A host in a process of its own: suspended, killed, and ended in order.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use etcd_client::{Client, GetOptions};
use leasehold_scenarios::{real::Etcd, wait_for, world::SOON};
use tokio::time::Instant;

/// TTL of the leases.
const TTL: Duration = Duration::from_secs(2);
/// Delay of etcd in noticing an expired lease: its own tick, and a loaded machine.
const TICK: Duration = Duration::from_secs(2);
/// Registrations of the host.
const COUNT: i64 = 10;

/// A host that ends with the test: its input ends with the test process, and the host ends with its input.
struct Host(Child);

impl Host {
    fn start(etcd: &Etcd) -> Self {
        let arguments = [etcd.endpoint(), TTL.as_secs().to_string(), COUNT.to_string()];
        let mut host = Command::new(env!("CARGO_BIN_EXE_host"));
        let host = host.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut host = Self(host);
        assert_eq!(host.line(), "ready\n");
        host
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &self.0.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn count(client: &mut Client) -> i64 {
    let all = Some(GetOptions::new().with_prefix().with_count_only());
    client.get("/service-", all).await.unwrap().count()
}

#[expect(clippy::print_stdout, reason = "figures are for whoever reads the run")]
fn report(what: &str, took: Duration) {
    println!("{what}: {took:.2?}");
}

#[tokio::test]
async fn isolated_a_host_that_was_suspended_is_registered_within_a_second_of_waking() {
    let etcd = Box::pin(Etcd::start()).await;
    let host = Host::start(&etcd);
    let mut client = etcd.client().await;
    for _ in 0..3 {
        assert_eq!(count(&mut client).await, COUNT);
        let suspended = Instant::now();
        host.signal("STOP");
        wait_for("its keys are gone", TTL + TICK, async || count(&mut client).await == 0).await;
        tokio::time::sleep_until(suspended + 3 * TTL).await;
        host.signal("CONT");
        let awake = Instant::now();
        wait_for("its keys are back", SOON, async || count(&mut client).await == COUNT).await;
        let took = awake.elapsed();
        report("back after waking", took);
        assert!(took <= Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test]
async fn no_gap_when_a_host_is_suspended_within_the_ttl() {
    let etcd = Box::pin(Etcd::start()).await;
    let host = Host::start(&etcd);
    let mut client = etcd.client().await;
    let since = leasehold_scenarios::real::revision(&mut client).await;
    for _ in 0..3 {
        host.signal("STOP");
        tokio::time::sleep(TTL / 2).await;
        host.signal("CONT");
        tokio::time::sleep(TTL / 2).await;
    }
    assert_eq!(leasehold_scenarios::real::changes(&mut client, since).await, []);
}

#[tokio::test]
async fn never_beyond_the_ttl_when_the_host_is_killed() {
    let etcd = Box::pin(Etcd::start()).await;
    let host = Host::start(&etcd);
    let mut client = etcd.client().await;
    assert_eq!(count(&mut client).await, COUNT);
    host.signal("KILL");
    let killed = Instant::now();
    wait_for("its keys are gone", TTL + TICK, async || count(&mut client).await == 0).await;
    report("gone after the host was killed", killed.elapsed());
}

#[tokio::test]
async fn gone_when_the_host_ends() {
    let etcd = Box::pin(Etcd::start()).await;
    let mut host = Host::start(&etcd);
    drop(host.0.stdin.take());
    assert_eq!(host.line(), "gone\n");
    let mut client = etcd.client().await;
    assert_eq!(count(&mut client).await, 0);
    assert!(client.leases().await.unwrap().leases().is_empty());
    assert!(host.0.wait().unwrap().success());
}
