//! Cheap: a component is compiled once, and a start takes milliseconds. `make bench-startup` checks the target on an idle machine.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use leasehold_end_to_end::{
    Host,
    config::{config, plain},
    http::get,
    startup::{measure, median},
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Limit for a start on a loaded machine.
const LENIENT: Duration = Duration::from_secs(1);

/// Services of one component.
const SERVICES: usize = 100;

/// Runs a configuration with its own cache, and waits until it is ready.
async fn ready(config: &Value, cache: &Path) -> Host {
    let cache = cache.to_str().expect("a temporary directory has a plain name");
    let mut host = Host::spawn_with(config, &["-v"], &[("XDG_CACHE_HOME", cache)]);
    host.says("ready").await;
    host
}

#[tokio::test]
async fn cheap_many_services_of_one_component_are_one_compilation_and_the_next_start_is_none() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-cache-").expect("a temporary directory");
    let many = config(&world, (0..SERVICES).map(|index| plain(&format!("plain-{index}"))));
    for (compiled, cached) in [(1, 0), (0, 1)] {
        let mut host = ready(&many, folder.path()).await;
        let loaded = host.says("components are loaded").await;
        assert_eq!((&loaded["compiled"], &loaded["cached"]), (&json!(compiled), &json!(cached)), "{loaded}");
        assert_eq!(get(&host.url("plain-0")).await.body, "hello\n");
        assert_eq!(host.stop().await.code, Some(0));
    }
    let mode = fs::metadata(folder.path().join("leasehold")).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn sandboxed_a_cache_where_others_may_write_is_not_used() {
    let world = World::real().await;
    let folder = TempDir::with_prefix("leasehold-cache-").expect("a temporary directory");
    let cache = folder.path().join("leasehold");
    fs::create_dir(&cache).expect("the directory is our own");
    fs::set_permissions(&cache, Permissions::from_mode(0o777)).expect("the directory is our own");
    let mut host = ready(&config(&world, [plain("plain")]), folder.path()).await;
    let said = host.says("components are compiled at every start").await["message"].to_string();
    assert!(said.contains("others may write there"), "{said}");
    assert_eq!(get(&host.url("plain")).await.body, "hello\n");
    assert_eq!(host.stop().await.code, Some(0));
    assert_eq!(fs::read_dir(&cache).expect("it is there").count(), 0, "something was left there");
}

#[expect(clippy::print_stdout, reason = "a figure to look at")]
#[tokio::test]
async fn cheap_from_the_start_of_the_process_to_the_key_in_etcd() {
    let times = measure(&World::real().await, 10).await;
    let median = median(&times);
    println!("process start to key visible: median {median:.1?} of {times:.1?}");
    assert!(median <= LENIENT, "{times:?}");
}
