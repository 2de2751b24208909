//! The steps with each library.

use std::time::Duration;

use leasehold_end_to_end::{
    Host,
    config::{TTL, WEIGHT, config, endpoint, hostile, plain, service, with},
    http::get,
    paths,
};
use leasehold_scenarios::world::{SOON, World};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    ecosystem::{Ecosystem, Transport},
    peer::{Instance, Peer},
};

/// Response of the service under test over HTTP.
const HELLO: &str = "hello\n";
/// Response of the service under test to a gRPC health check.
const SERVING: &str = "SERVING";
/// The health response as a message on the wire.
const SERVING_BYTES: &str = "\0\0\0\0\x02\x08\x01";
/// Number of calls that must succeed while nothing changes: enough to reach each instance.
const CALLS: usize = 20;
/// Pause between these calls. A client that starts its watch at the first call should have it after the last.
const PAUSE: Duration = Duration::from_millis(25);
/// Number of replacements of the instance during the calls.
const RESTARTS: usize = 3;
/// Longest time that a client may go on calling a stopped instance: longer than any poll interval.
const FORGETTING: Duration = Duration::from_secs(8);
/// Texts of errors for failed connections.
const DIALLED: [&str; 3] = ["refused", "connection has been closed by peer", "connection reset by peer"];
/// Second weight of the component.
const MOVED: u64 = 42;

/// A step, and the column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its resolver shows the instance, with all that the layout carries.
    Finds,
    /// Its client reaches the instance.
    Calls,
    /// Its resolver shows a changed weight.
    Weight,
    /// Its resolver follows a rolling restart, and its client sees no failed call.
    Rolling,
    /// Its resolver shows that the last instance is gone.
    Gone,
    /// Its client does not call a stopped instance.
    Forgets,
    /// Its resolver and its client find an instance that starts after the last one stopped.
    Returns,
    /// `leasehold ls` shows its registration.
    Registers,
    /// A component calls its server by name.
    Reached,
    /// Its registration is gone after its server ended.
    Leaves,
}

impl Step {
    /// All steps, in order.
    pub(crate) const ALL: [Self; 10] = [
        Self::Finds,
        Self::Calls,
        Self::Weight,
        Self::Rolling,
        Self::Gone,
        Self::Forgets,
        Self::Returns,
        Self::Registers,
        Self::Reached,
        Self::Leaves,
    ];
}

/// State of one library during the steps.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) ecosystem: &'static Ecosystem,
    pub(crate) world: &'a World,
    pub(crate) peer: Peer,
    host: Option<Host>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(ecosystem: &'static Ecosystem, world: &'a World, peer: Peer) -> Self {
        Self { ecosystem, world, peer, host: None }
    }

    /// Runs a step; returns `None` if the library does not have the feature.
    pub(crate) async fn take(&mut self, step: Step) -> Option<Result<(), String>> {
        let calls = self.ecosystem.transport != Transport::Own;
        match step {
            Step::Calls | Step::Forgets if !calls => None,
            Step::Weight if !self.ecosystem.weight => None,
            Step::Finds => Some(self.finds().await),
            Step::Calls => Some(self.calls().await),
            Step::Weight => Some(self.weight().await),
            Step::Rolling => Some(self.rolling(calls).await),
            Step::Gone => Some(self.gone().await),
            Step::Forgets => Some(self.forgets().await),
            Step::Returns => Some(self.returns(calls).await),
            Step::Registers => Some(self.registers().await),
            Step::Reached => Some(self.reached().await),
            Step::Leaves => Some(self.leaves().await),
        }
    }

    async fn finds(&mut self) -> Result<(), String> {
        let name = self.name();
        let host = self.start(self.service()).await;
        let addr = host.addr(&name);
        self.host = Some(host);
        self.peer.watch(&self.ecosystem.dialled(&name)).await?;
        let expected = Instance {
            addr,
            version: self.ecosystem.version.to_owned(),
            weight: if self.ecosystem.weight { u64::from(WEIGHT) } else { 0 },
            ..Instance::default()
        };
        let zone = self.ecosystem.metadata.then(|| "b".to_owned());
        let is_expected = |seen: &Instance| {
            // Libraries may add their own metadata, such as GoFrame's protocol.
            let bare = Instance { metadata: expected.metadata.clone(), ..seen.clone() };
            bare == expected && seen.metadata.get("zone") == zone.as_ref()
        };
        self.peer.sees(&self.ecosystem.dialled(&name), |seen| seen.len() == 1 && is_expected(&seen[0])).await
    }

    async fn calls(&mut self) -> Result<(), String> {
        let name = self.name();
        for _ in 0..CALLS {
            self.call(&name).await?;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn weight(&mut self) -> Result<(), String> {
        let name = format!("{}-moving", self.ecosystem.name);
        let host = self.start(hostile(&name)).await;
        let act = async |name_of: &str| get(&format!("{}act/{name_of}", host.url(&name))).await.json();
        act("register").await;
        self.peer.watch(&self.ecosystem.dialled(&name)).await?;
        let weighs = |weight: u64| move |seen: &[Instance]| seen.len() == 1 && seen[0].weight == weight;
        self.peer.sees(&self.ecosystem.dialled(&name), weighs(WEIGHT.into())).await?;
        act("twice").await;
        self.peer.sees(&self.ecosystem.dialled(&name), weighs(MOVED)).await?;
        host.stop().await;
        Ok(())
    }

    async fn rolling(&mut self, calls: bool) -> Result<(), String> {
        let name = self.name();
        let mut failed = Vec::new();
        for _ in 0..RESTARTS {
            let next = self.start(self.service()).await;
            let addr = next.addr(&name);
            let before = self.host.replace(next).expect("an earlier step started it");
            self.peer.sees(&self.ecosystem.dialled(&name), |seen| seen.len() == 2).await?;
            let (over, mut is_over) = oneshot::channel();
            let stopping = async {
                before.stop().await;
                let _ = over.send(()); // The calls may have ended with an error.
            };
            let calling = async {
                while calls && is_over.try_recv().is_err() {
                    if let Err(error) = answered(&mut self.peer, &self.ecosystem.dialled(&name)).await {
                        failed.push(error);
                    }
                }
            };
            tokio::join!(stopping, calling);
            self.peer.sees(&self.ecosystem.dialled(&name), |seen| seen.len() == 1 && seen[0].addr == addr).await?;
        }
        match failed.first() {
            None => Ok(()),
            Some(first) => Err(format!("{} calls failed, the first: {first}", failed.len())),
        }
    }

    async fn gone(&mut self) -> Result<(), String> {
        let name = self.name();
        self.host.take().expect("an earlier step started it").stop().await;
        self.peer.sees(&self.ecosystem.dialled(&name), <[_]>::is_empty).await
    }

    async fn forgets(&mut self) -> Result<(), String> {
        let name = self.name();
        let deadline = Instant::now() + FORGETTING;
        loop {
            match self.peer.call(&self.ecosystem.dialled(&name)).await {
                Err(error) if !DIALLED.iter().any(|word| error.contains(word)) => return Ok(()),
                called if Instant::now() > deadline => return Err(format!("it still calls it: {called:?}")),
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn returns(&mut self, calls: bool) -> Result<(), String> {
        let name = self.name();
        let host = self.start(self.service()).await;
        let addr = host.addr(&name);
        self.peer.sees(&self.ecosystem.dialled(&name), |seen| seen.len() == 1 && seen[0].addr == addr).await?;
        if calls {
            // A client may find it later than its resolver.
            let deadline = Instant::now() + SOON;
            while let Err(error) = self.call(&name).await {
                if Instant::now() > deadline {
                    return Err(error);
                }
                sleep(Duration::from_millis(100)).await;
            }
            self.calls().await?;
        }
        host.stop().await;
        Ok(())
    }

    async fn registers(&mut self) -> Result<(), String> {
        let name = self.own();
        let mut own = Instance {
            addr: String::new(),
            version: self.ecosystem.version.to_owned(),
            weight: 30,
            metadata: [("zone".to_owned(), "c".to_owned())].into(),
        };
        own.addr = self.peer.register(&name, &own, self.ecosystem.transport == Transport::Grpc).await?;
        // GoFrame's default for a missing version.
        let version = own.version.trim_start_matches("latest");
        let is_own = |row: &Value| {
            let weight = if self.ecosystem.weight { json!(own.weight) } else { Value::Null };
            let zone = if self.ecosystem.metadata { json!("c") } else { Value::Null };
            row["addr"] == own.addr
                && row["version"] == version
                && row["weight"] == weight
                && row["metadata"]["zone"] == zone
                && row["lease"].is_string()
        };
        self.listed(&name, |rows| rows.len() == 1 && is_own(&rows[0])).await
    }

    async fn reached(&self) -> Result<(), String> {
        let name = self.own();
        let caller = with(hostile("caller"), json!({ "allow": { "discover": [name] } }));
        let layouts = json!({ "registry": { "layout": self.ecosystem.layout() } });
        let host = Host::ready(&with(config(self.world, [caller]), layouts)).await;
        let (act, expected) = match self.ecosystem.transport {
            Transport::Grpc => ("check", SERVING_BYTES),
            Transport::Http | Transport::Own => ("call", HELLO),
        };
        let answer = get(&format!("{}{act}/{name}.leasehold", host.url("caller"))).await.json();
        host.stop().await;
        if answer["text"] == expected { Ok(()) } else { Err(answer.to_string()) }
    }

    async fn leaves(&mut self) -> Result<(), String> {
        self.peer.deregister().await?;
        self.listed(&self.own(), <[_]>::is_empty).await
    }

    /// Name of the library's own service.
    fn own(&self) -> String {
        format!("{}-own", self.ecosystem.name)
    }

    /// Name of the watched service.
    fn name(&self) -> String {
        format!("{}-user", self.ecosystem.name)
    }

    /// Configuration of the watched service.
    fn service(&self) -> Value {
        let name = self.name();
        match self.ecosystem.transport {
            Transport::Grpc => with(service(&name, "grpc-greeter"), json!({ "register": "host" })),
            Transport::Http | Transport::Own => plain(&name),
        }
    }

    /// Starts a host with that service, under the library's layout.
    async fn start(&self, service: Value) -> Host {
        let limits = json!({ "settle_time": self.ecosystem.settle_time });
        let mut published = json!({ "layout": self.ecosystem.layout_of_calls(), "limits": limits });
        if service["register"] == "host" {
            published["version"] = json!(self.ecosystem.version);
            published["metadata"] = json!({ "zone": "b" });
        }
        Host::ready(&config(self.world, [with(service, published)])).await
    }

    async fn call(&mut self, name: &str) -> Result<(), String> {
        answered(&mut self.peer, &self.ecosystem.dialled(name)).await
    }

    /// Waits until the output of `leasehold ls` for a service fits.
    async fn listed(&self, name: &str, fits: impl Fn(&[Value]) -> bool) -> Result<(), String> {
        let etcd = endpoint(self.world);
        let deadline = Instant::now() + SOON;
        loop {
            let mut ls = Command::new(paths::leasehold());
            let output = ls.args(["ls", name, "--json", "--etcd", &etcd, "--layout", self.ecosystem.layout]).output();
            let listed = output.await.map_err(|error| error.to_string())?;
            let rows: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap_or_default();
            if fits(&rows) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("ls shows {} {}", json!(rows), String::from_utf8_lossy(&listed.stderr)));
            }
            sleep(Duration::from_secs(TTL) / 10).await;
        }
    }
}

async fn answered(peer: &mut Peer, name: &str) -> Result<(), String> {
    let answer = peer.call(name).await?;
    if [HELLO, SERVING].contains(&answer.as_str()) { Ok(()) } else { Err(format!("it answered {answer:?}")) }
}
