//! `run --dev`: a private etcd that shows every change, and ends with the host however the host ends.

use std::{fs, io, path::Path, process::Command};

use leasehold_end_to_end::{Ended, Host, Program, config::greeter, http::get, paths};
use leasehold_scenarios::{wait_for, world::SOON};
use serde_json::json;

/// True if a process has that folder among its arguments, as the private etcd has.
fn is_in_use(folder: &Path) -> bool {
    let folder = folder.to_str().unwrap();
    if Path::new("/proc/self/cmdline").exists() {
        let of_process = |entry: io::Result<fs::DirEntry>| fs::read(entry.unwrap().path().join("cmdline"));
        let mut all = fs::read_dir("/proc").unwrap().filter_map(|entry| of_process(entry).ok());
        return all.any(|arguments| String::from_utf8_lossy(&arguments).contains(folder));
    }
    let all = Command::new("ps").args(["-A", "-ww", "-o", "args"]).output().unwrap();
    assert!(all.status.success(), "ps does not work");
    String::from_utf8_lossy(&all.stdout).contains(folder)
}

async fn dev() -> Host {
    let mut host = Host::spawn(&json!({ "services": [greeter()] }), &["--dev"]);
    host.event("ready").await;
    host
}

#[tokio::test]
async fn visible_and_gone_with_a_private_etcd() {
    let mut host = dev().await;
    let (addr, url) = (host.addr("greeter"), host.url("greeter"));
    assert!(is_in_use(&host.temporary()));
    host.says(&format!("open {url}")).await;
    assert_eq!(get(&url).await.body, "hello\n");
    let shown = host.says("in etcd: /greeter/v1/").await;
    let shown = shown["message"].as_str().unwrap();
    let start =
        format!(r#"in etcd: /greeter/v1/{addr} = {{"name":"greeter","addr":"{addr}","version":"v1","weight":""#);
    assert!(shown.starts_with(&start), "{shown}");
    host.says("the lease is renewed").await;
    host.signal("INT");
    host.says("in etcd: no key of greeter").await;
    let temporary = host.temporary();
    assert_eq!(host.ends().await.code, Some(0));
    assert!(!is_in_use(&temporary));
}

/// Runs a command that does not say where etcd is, as this host's user.
async fn looking(arguments: &[&str], host: &Host) -> Ended {
    let nowhere = [("LEASEHOLD_ETCD", ""), ("ETCDCTL_ENDPOINTS", "")];
    Program::spawn_with(&paths::leasehold(), arguments, &host.temporary(), &nowhere).ends().await
}

#[tokio::test]
async fn found_by_commands_that_do_not_say_where_etcd_is() {
    let mut configuration = json!({ "services": [greeter()] });
    configuration["registry"] = json!({ "layout": "kratos" });
    let mut host = Host::spawn(&configuration, &["--dev"]);
    host.event("ready").await;
    let introduced = host.says("private etcd: ").await["message"].as_str().unwrap().to_owned();
    let endpoint = introduced.strip_prefix("private etcd: ").unwrap().split(',').next().unwrap().to_owned();
    host.says("look into it from another terminal: leasehold watch").await;
    let ls = looking(&["ls", "--json"], &host).await;
    assert!(ls.stdout.contains(&host.addr("greeter")) && ls.stdout.contains("kratos"), "{ls:?}");
    let using = format!("using the private etcd of leasehold run --dev, process {}, at {endpoint}", host.pid());
    assert!(ls.stderr.contains(&using), "{ls:?}");
    let doctor = looking(&["doctor", "--no-dial"], &host).await;
    assert!(doctor.code == Some(0) && doctor.stdout.contains(&endpoint), "{doctor:?}");
    // An argument wins.
    let elsewhere = looking(&["ls", "--etcd", "http://127.0.0.1:9"], &host).await;
    assert!(elsewhere.code == Some(69) && elsewhere.stderr.contains("http://127.0.0.1:9 cannot be reached"));
    let by_file = looking(&["ls", "--config", host.file().to_str().unwrap()], &host).await;
    assert!(!by_file.stderr.contains("private etcd"), "{by_file:?}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn gone_with_a_host_that_is_killed() {
    let host = dev().await;
    let temporary = host.temporary();
    assert!(is_in_use(&temporary));
    host.signal("KILL");
    wait_for("etcd and its folder are gone", SOON, async || {
        !is_in_use(&temporary) && fs::read_dir(&temporary).unwrap().next().is_none()
    })
    .await;
    assert_eq!(host.ends().await.code, None);
}

#[tokio::test]
async fn gone_after_a_start_that_fails() {
    let mut failing = greeter();
    failing["allow"] = json!({ "names": ["somebody-else"] });
    let host = Host::spawn(&json!({ "services": [failing] }), &["--dev"]);
    let temporary = host.temporary();
    let ended = host.ends().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("lifecycle.start failed: register greeter"), "{ended:?}");
    assert!(!is_in_use(&temporary));
}
