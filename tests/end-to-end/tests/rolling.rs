//! Rolling restarts and drains under load: a client that watches etcd sees no failed request.

use std::{path::Path, time::Duration};

use leasehold_end_to_end::{
    Host, Program,
    config::{config, free_address, plain, service, with},
    follower::{Call, Follower, Tally},
    http::{get, post},
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Delay until the client acts on a change.
const LAG: Duration = Duration::from_millis(200);
/// Drain delay of the host: the lag, and extra time for a loaded machine.
const SETTLE: &str = "1500ms";
/// Number of responses that prove that the load goes on.
const ANSWERS: usize = 50;

/// Services of each host: the first is called over HTTP, the second over gRPC.
const NAMES: [&str; 2] = ["plain", "grpc-greeter"];

fn services(settle_time: &str) -> [Value; 2] {
    let grpc = with(service("grpc-greeter", "grpc-greeter"), json!({ "register": "host" }));
    [plain("plain"), grpc].map(|service| with(service, json!({ "limits": { "settle_time": settle_time } })))
}

/// These services at addresses that the next host uses, too.
fn at_fixed_addresses(settle_time: &str) -> [Value; 2] {
    services(settle_time).map(|service| with(service, json!({ "listen": free_address() })))
}

async fn host(world: &World, services: &[Value; 2]) -> Host {
    Host::ready(&with(config(world, services.clone()), json!({ "admin": { "listen": "127.0.0.1:0" } }))).await
}

/// The clients of both services.
struct Clients([Follower; 2]);

impl Clients {
    /// Calls both services over HTTP/1.1, HTTP/2 and gRPC, until `end`.
    async fn of(world: &World) -> Self {
        let [mut http, mut grpc] = [Follower::of(world, NAMES[0], LAG).await, Follower::of(world, NAMES[1], LAG).await];
        [Call::Http1, Call::Http1, Call::Http2, Call::Http2].into_iter().for_each(|call| http.calls(call));
        [Call::Grpc, Call::Grpc, Call::GrpcStream].into_iter().for_each(|call| grpc.calls(call));
        Self([http, grpc])
    }

    async fn know(&self, host: &Host) {
        for (name, follower) in NAMES.iter().zip(&self.0) {
            let addr = host.addr(name);
            let knows = async || follower.instances().known().contains(&addr);
            wait_for("the clients know the new instance", SOON, knows).await;
        }
    }

    async fn go_on(&self) {
        for follower in &self.0 {
            let so_far = follower.answered();
            wait_for("the load goes on", SOON, async || follower.answered() >= so_far + ANSWERS).await;
        }
    }

    async fn end(self) -> [Tally; 2] {
        let [http, grpc] = self.0;
        [http.ends().await, grpc.ends().await]
    }

    async fn end_well(self) {
        for Tally { answered, failures } in self.end().await {
            assert!(failures.is_empty(), "{} failed: {failures:#?}", failures.len());
            assert!(answered >= 2 * ANSWERS, "{answered} answers are not a load");
        }
    }
}

async fn stopped(host: Host) {
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.wrote("cut off"), "{ended:?}");
}

#[tokio::test]
async fn rolling_ten_restarts_of_each_host_fail_no_request() {
    let world = World::real().await;
    let (anywhere, here) = (services(SETTLE), at_fixed_addresses(SETTLE));
    let (mut one, mut other) = (host(&world, &anywhere).await, host(&world, &here).await);
    let clients = Clients::of(&world).await;
    for _ in 0..10 {
        // One host is replaced by a host that starts before the former ends, as an orchestrator does. The other host restarts
        // at the same address, as a supervisor does.
        let fresh = host(&world, &anywhere).await;
        clients.know(&fresh).await;
        stopped(std::mem::replace(&mut one, fresh)).await;
        stopped(other).await;
        other = host(&world, &here).await;
        clients.know(&other).await;
    }
    clients.end_well().await;
}

#[tokio::test]
async fn rolling_without_time_to_settle_fails_requests() {
    let world = World::real().await;
    let hasty = services("1ms");
    let (one, other) = (host(&world, &hasty).await, host(&world, &hasty).await);
    let clients = Clients::of(&world).await;
    clients.go_on().await;
    stopped(one).await;
    clients.know(&other).await;
    clients.go_on().await;
    for Tally { answered, failures } in clients.end().await {
        assert!(!failures.is_empty(), "{answered} answers, and the other tests prove nothing");
    }
}

#[tokio::test]
async fn rolling_services_that_are_drained_by_command_fail_no_request() {
    let world = World::real().await;
    let [one, other] = [host(&world, &services(SETTLE)).await, host(&world, &services(SETTLE)).await];
    let clients = Clients::of(&world).await;
    clients.know(&other).await;
    clients.go_on().await;

    let (admin, folder) = (one.admin(), TempDir::with_prefix("leasehold-drain-").expect("a temporary directory"));
    let run = ["drain", "plain", "--admin", admin.as_str()];
    let ended = Program::spawn(Path::new(&paths::leasehold()), run, folder.path()).ends().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(ended.stdout, format!("plain on {} is drained\n", one.addr("plain")));
    clients.go_on().await;
    let readyz = get(&format!("{admin}readyz")).await;
    assert_eq!((readyz.status, readyz.body.as_str()), (200, "ready\n"), "the other service is served");

    let drained = post(&format!("{admin}drain/grpc-greeter")).await;
    let row = &drained.json()[0];
    assert_eq!((drained.status, &row["all_answered"]), (200, &json!(true)), "{row}");
    clients.go_on().await;
    clients.end_well().await;
}
