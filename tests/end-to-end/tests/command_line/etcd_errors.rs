//! Refusals and silence of etcd: one sentence and an exit code each.

use std::{fs, net::TcpListener};

use etcd_client::Permission;
use leasehold_end_to_end::{
    Host,
    config::{config, endpoint, greeter, plain, program, with},
};
use leasehold_scenarios::{
    real::{Authority, Etcd},
    world::World,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command_line::{File, UNREACHABLE, in_shell, leasehold, one_sentence};

#[tokio::test]
async fn a_file_without_a_certificate_is_no_authority() {
    let file = File::of("services:\n  - { name: a, component: a.wasm, listen: \"127.0.0.1:1\" }\n");
    let ended = leasehold(["ls", "--etcd", "https://127.0.0.1:9", "--cacert", &file.path()]).await;
    one_sentence(&ended, 64, &format!("--cacert: {} has no certificate as PEM", file.path()));
}

#[tokio::test]
async fn an_etcd_that_is_required_and_silent_is_one_sentence_and_69() {
    let unreachable = json!({ "etcd": { "endpoints": [UNREACHABLE], "required": true, "dial_timeout": "500ms" } });
    let file = File::of(&with(json!({ "services": [greeter()] }), unreachable).to_string());
    one_sentence(&leasehold(["run", &file.path()]).await, 69, &format!("etcd: {UNREACHABLE}"));
    one_sentence(&leasehold(["ls", "--etcd", UNREACHABLE]).await, 69, &format!("etcd: {UNREACHABLE}"));
    // Something else that listens is not etcd.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("http://{}", other.local_addr().unwrap());
    let mute_etcd =
        json!({ "endpoints": [mute], "required": true, "dial_timeout": "500ms", "request_timeout": "500ms" });
    let file = File::of(&json!({ "etcd": mute_etcd, "services": [greeter()] }).to_string());
    let ended = leasehold(["run", &file.path()]).await;
    one_sentence(&ended, 69, "etcd: ");
    assert!(ended.stderr.contains(&mute), "{ended:?}");
}

#[tokio::test]
async fn a_wrong_password_is_77_and_never_printed() {
    let etcd = Etcd::options().user("root", "right-password").start().await;
    let world = World::Real(Box::new(etcd));
    let wrong = json!({ "etcd": { "user": "root", "password": "hunter2-secret", "required": true } });
    let file = File::of(&with(config(&world, [greeter()]), wrong).to_string());
    for verbosity in ["-q", "-vv"] {
        let ended = leasehold(["run", &file.path(), verbosity]).await;
        assert_eq!(ended.code, Some(77), "{ended:?}");
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with("leasehold: etcd: ") && last.contains(&endpoint(&world)), "{last}");
        assert!(!ended.wrote("hunter2-secret"), "{ended:?}");
    }
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn an_etcd_that_says_no_is_77_with_the_cure_required_or_not() {
    let etcd = Etcd::options().user("root", "right-password").start().await;
    let world = World::Real(Box::new(etcd));
    let mut root = world.client().await;
    root.role_add("greeters").await.unwrap();
    root.role_grant_permission("greeters", Permission::read_write("/greeter/").with_prefix()).await.unwrap();
    root.user_add("guest", "guest-password", None).await.unwrap();
    root.user_grant_role("guest", "greeters").await.unwrap();
    let guest = json!({ "user": "guest", "password": "guest-password" });
    for (credentials, services, said) in [
        (json!({}), vec![greeter()], "set etcd.user, and etcd.password_file"),
        (json!({ "user": "root", "password": "wrong" }), vec![greeter()], "check etcd.user"),
        (json!({ "user": "stranger", "password": "wrong" }), vec![greeter()], "check etcd.user"),
        (
            guest.clone(),
            vec![greeter(), plain("plain")],
            "etcdctl role grant-permission ROLE --prefix=true readwrite /plain/",
        ),
    ] {
        let file = File::of(&with(config(&world, services), json!({ "etcd": credentials })).to_string());
        let ended = leasehold(["check", &file.path()]).await;
        one_sentence(&ended, 77, "etcd: ");
        assert!(ended.stderr.contains(said), "{said}: {ended:?}");
        let report = leasehold(["check", &file.path(), "--json"]).await;
        let report: Value = serde_json::from_str(&report.stdout).unwrap();
        assert_eq!((&report["ok"], &report["etcd"]["refused"]), (&json!(false), &json!(true)), "{report}");
    }
    let file = File::of(&with(config(&world, [greeter()]), json!({ "etcd": guest })).to_string());
    assert_eq!(leasehold(["check", &file.path()]).await.code, Some(0));
    // What it would read is named.
    let ended = leasehold(["ls", "--config", &file.path()]).await;
    one_sentence(&ended, 77, "etcd: ");
    assert!(ended.stderr.contains("etcdctl role grant-permission ROLE --prefix=true read /\n"), "{ended:?}");
    assert_eq!(leasehold(["ls", "greeter", "--config", &file.path()]).await.code, Some(0));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn a_single_service_whose_key_is_refused_is_77_with_the_cure() {
    let etcd = Etcd::options().user("root", "right-password").start().await;
    let world = World::Real(Box::new(etcd));
    let mut root = world.client().await;
    root.role_add("others").await.unwrap();
    root.role_grant_permission("others", Permission::read_write("/other/").with_prefix()).await.unwrap();
    root.user_add("guest", "guest-password", None).await.unwrap();
    root.user_grant_role("guest", "others").await.unwrap();
    let guest = json!({ "etcd": { "user": "guest", "password": "guest-password" } });
    for (service, start) in [
        (
            greeter(),
            "greeter: lifecycle.start failed: register greeter: the registry cannot be reached, or refused: etcd: ",
        ),
        (plain("plain"), "plain: cannot be registered: etcd: "),
        (program("serve"), "program: cannot be registered: etcd: "),
    ] {
        let name = service["name"].as_str().unwrap().to_owned();
        let file = File::of(&with(config(&world, [service]), guest.clone()).to_string());
        let ended = leasehold(["-q", "run", &file.path()]).await;
        one_sentence(&ended, 77, start);
        let cure = format!("etcdctl role grant-permission ROLE --prefix=true readwrite /{name}/");
        assert!(ended.stderr.contains(&cure) && !ended.wrote("guest-password"), "{ended:?}");
        for debug in ["Error::", "Unavailable(", "{ "] {
            assert!(!ended.wrote(debug), "{debug}: {ended:?}");
        }
    }
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn an_etcd_whose_certificate_is_not_trusted_is_77() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (etcd, plain) = (Etcd::options().tls(ours.server()).start().await, Etcd::start().await);
    let (secure, address) = (etcd.endpoint(), etcd.address());
    let not_secure = format!("https://{}", plain.address());
    let folder = TempDir::new().unwrap();
    let ca = |authority: &Authority, name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, authority.certificate()).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (ca(&ours, "ours.pem"), ca(&theirs, "theirs.pem"));
    for (etcd, code) in [
        (json!({ "endpoints": [secure], "tls": { "ca": right } }), 0),
        (json!({ "endpoints": [secure], "tls": { "ca": wrong } }), 77),
        (json!({ "endpoints": [secure], "tls": { "ca": right, "server_name": "elsewhere" } }), 77),
        (json!({ "endpoints": [format!("http://{address}")] }), 77),
        (json!({ "endpoints": [not_secure], "tls": { "ca": right } }), 77),
        (json!({ "endpoints": [UNREACHABLE] }), 0),
    ] {
        let file = File::of(&json!({ "etcd": etcd, "services": [greeter()] }).to_string());
        let ended = leasehold(["check", &file.path()]).await;
        assert_eq!(ended.code, Some(code), "{etcd}: {ended:?}");
    }
}

#[tokio::test]
async fn an_etcd_that_is_not_required_is_waited_for_until_the_end() {
    let waiting = json!({ "etcd": { "endpoints": [UNREACHABLE] }, "services": [greeter()] });
    let mut host = Host::spawn(&waiting, &[]);
    let said = host.says("waiting for etcd").await;
    assert!(said["message"].as_str().unwrap().contains(UNREACHABLE), "{said}");
    assert_eq!(said["level"], "WARN");
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test]
async fn the_connection_to_etcd_comes_from_arguments_and_the_environment() {
    let authority = Authority::new("ours");
    let etcd = Etcd::options().tls(authority.server()).user("root", "right-password").start().await;
    let folder = TempDir::new().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, authority.certificate()).unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "right-password\n").unwrap();
    let (ca, password, address) = (ca.display().to_string(), password.display().to_string(), etcd.address());
    let flags = ["ls", "--etcd", &address, "--cacert", &ca, "--user", "root", "--password-file", &password];
    let listed = leasehold(flags).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    for variable in ["LEASEHOLD_ETCD=\"https://$1\"", "ETCDCTL_ENDPOINTS=\"https://$1\""] {
        // The authorities of the system are those of this file.
        let script =
            format!("{variable} LEASEHOLD_ETCD_PASSWORD=right-password SSL_CERT_FILE='{ca}' \"$0\" ls --user root");
        let listed = in_shell(&script, &address).await;
        assert_eq!(listed.code, Some(0), "{variable}: {listed:?}");
    }
    let untrusted = in_shell("\"$0\" ls --etcd \"https://$1\"", &address).await;
    assert_eq!(untrusted.code, Some(77), "{untrusted:?}");
    // The arguments win over a file.
    let file = File::of(&json!({ "etcd": { "endpoints": [UNREACHABLE] }, "services": [greeter()] }).to_string());
    let checked = leasehold([
        "check",
        &file.path(),
        "--etcd",
        &address,
        "--cacert",
        &ca,
        "--user",
        "root",
        "--password-file",
        &password,
    ])
    .await;
    assert!(checked.code == Some(0) && checked.stdout.ends_with("etcd answers\n"), "{checked:?}");
    // The authority of the file is that of an endpoint in the arguments.
    let tls = json!({ "endpoints": [UNREACHABLE], "tls": { "ca": ca }, "user": "root", "password_file": password });
    let file = File::of(&json!({ "etcd": tls, "services": [greeter()] }).to_string());
    let checked = leasehold(["check", &file.path(), "--etcd", &address]).await;
    assert!(checked.code == Some(0) && checked.stdout.ends_with("etcd answers\n"), "{checked:?}");
    // A password does not go to an endpoint in plain text where certificates are given.
    let file = File::of(&json!({ "etcd": { "endpoints": [&address] }, "services": [greeter()] }).to_string());
    let refused = leasehold(["check", &file.path(), "--cacert", &ca]).await;
    one_sentence(&refused, 64, &format!("http://{address} is plain text, and the certificates are for https://"));
}
