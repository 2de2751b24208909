//! Rights to change a running host: by the permissions of a socket, or by a token or a certificate at an address.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, free_address, hostile, plain, with},
    http::{ask, get, post},
    paths,
};
use leasehold_scenarios::{real::Authority, world::World};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// A command with the environment of a user whose hosts run in this folder, and without a token.
async fn leasehold_in(runtime: &Path, arguments: &[&str]) -> Ended {
    let folder = TempDir::with_prefix("leasehold-safety-").expect("a temporary directory");
    let runtime = runtime.to_str().expect("a plain name");
    let variables = [("XDG_RUNTIME_DIR", runtime), ("LEASEHOLD_ADMIN_TOKEN_FILE", "")];
    Program::spawn_with(&paths::leasehold(), arguments, folder.path(), &variables).ends().await
}

fn folder() -> TempDir {
    TempDir::with_prefix("leasehold-safety-").expect("a temporary directory")
}

fn text(path: &Path) -> String {
    path.to_str().expect("a plain name").to_owned()
}

fn uid() -> u32 {
    fs::metadata("/proc/self").expect("this process is there").uid()
}

/// A service at an address of its own, on a host with this admin endpoint.
async fn host(world: &World, admin: Value) -> Host {
    let plain = with(plain("plain"), json!({ "listen": free_address() }));
    Host::ready(&with(config(world, [plain]), json!({ "admin": admin }))).await
}

/// The path of the socket that a host without configuration has.
fn socket(host: &Host) -> PathBuf {
    let runtime = host.file().parent().expect("a file is in a folder").join("leasehold");
    runtime.join(host.pid().to_string()).with_extension("sock")
}

#[tokio::test]
async fn safety_a_host_has_a_socket_of_its_own_by_default() {
    let world = World::real().await;
    let mut one = Host::of(&world, [with(plain("plain"), json!({ "listen": free_address() }))]).await;
    let (path, runtime) = (socket(&one), one.file().parent().expect("a folder").to_owned());
    let found = fs::metadata(&path).expect("the socket is there");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600, "only the user of the host");
    let folder = fs::metadata(path.parent().expect("a folder")).expect("it is there");
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);

    // Without arguments a command finds the only host of this user.
    let drained = leasehold_in(&runtime, &["drain", "plain"]).await;
    assert_eq!(drained.code, Some(0), "{drained:?}");
    let said = one.says("command: drain plain").await;
    assert!(said["by"].as_str().is_some_and(|by| by.starts_with(&format!("uid {}, process ", uid()))), "{said}");
    let by_path = leasehold_in(&runtime, &["resume", "plain", "--admin", &format!("unix:{}", text(&path))]).await;
    assert_eq!(by_path.code, Some(0), "{by_path:?}");
    let by_file = leasehold_in(&runtime, &["status", "--config", &text(&one.file())]).await;
    assert!(by_file.code == Some(0) && by_file.stdout.contains("plain"), "{by_file:?}");

    let beside = text(&runtime);
    let mut two = Host::spawn_with(&config(&world, [plain("other")]), &[], &[("XDG_RUNTIME_DIR", &beside)]);
    two.event("ready").await;
    let several = leasehold_in(&runtime, &["status"]).await;
    assert_eq!(several.code, Some(64), "{several:?}");
    assert!(several.stderr.contains("2 hosts run here; --config FILE or --admin selects one: unix:"), "{several:?}");
    let chosen = leasehold_in(&runtime, &["status", "--config", &text(&two.file())]).await;
    assert!(chosen.stdout.contains("other") && !chosen.stdout.contains("plain"), "{chosen:?}");
    let unknown = leasehold_in(&runtime, &["status", "--config", "/dev/null"]).await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("no host runs /dev/null"), "{unknown:?}");
    assert_eq!(one.stop().await.code, Some(0));
    assert!(!path.exists(), "it is removed at the end");
    assert_eq!(two.stop().await.code, Some(0));
}

#[tokio::test]
async fn safety_a_host_runs_without_a_socket_that_cannot_be_made_and_replaces_one_that_was_left() {
    let world = World::real().await;
    let mut without =
        Host::spawn_with(&config(&world, [plain("plain")]), &[], &[("XDG_RUNTIME_DIR", "/does/not/exist")]);
    let said = without.says("no admin endpoint: cannot make the folder /does/not/exist/leasehold").await;
    assert_eq!(said["level"], "WARN");
    without.event("ready").await;
    assert_eq!(without.stop().await.code, Some(0));

    let folder = folder();
    let path = folder.path().join("admin.sock");
    let listen = json!({ "listen": format!("unix:{}", text(&path)), "mode": "0666" });
    let killed = host(&world, listen.clone()).await;
    assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o666);
    let beside = Host::spawn(&with(config(&world, [plain("beside")]), json!({ "admin": listen.clone() })), &[]);
    let beside = beside.ends().await;
    assert!(beside.code == Some(1) && beside.wrote("another process does"), "{beside:?}");
    killed.signal("KILL");
    drop(killed);
    assert!(path.exists(), "a killed host leaves it");
    let next = host(&world, listen).await;
    let status = leasehold_in(folder.path(), &["status", "--config", &text(&next.file())]).await;
    assert_eq!(status.code, Some(0), "{status:?}");
    assert_eq!(next.stop().await.code, Some(0));
    assert!(!path.exists());
}

#[tokio::test]
async fn safety_other_users_cannot_use_the_socket() {
    let world = World::real().await;
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the directory is our own");
    let path = folder.path().join("admin.sock");
    let host = host(&world, json!({ "listen": format!("unix:{}", text(&path)), "group": "0" })).await;
    assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o660);
    let binary = folder.path().join("leasehold");
    fs::copy(paths::leasehold(), &binary).expect("it can be read");
    let admin = format!("unix:{}", text(&path));
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let drain = [text(&binary), "drain".into(), "plain".into(), "--admin".into(), admin];
    let run = user.into_iter().map(ToOwned::to_owned).chain(drain);
    let ended = Program::spawn_with(Path::new("setpriv"), run, folder.path(), &[("LEASEHOLD_ADMIN_TOKEN_FILE", "")]);
    let ended = ended.ends().await;
    assert!(ended.code == Some(1) && ended.stderr.contains("Permission denied"), "{ended:?}");
    assert_eq!(get(&host.url("plain")).await.status, 200, "it is served");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn safety_an_address_without_a_credential_is_read_only() {
    let world = World::real().await;
    let mut host = host(&world, json!({ "listen": "127.0.0.1:0", "token_file": null })).await;
    let admin = host.admin();
    assert_eq!(get(&format!("{admin}readyz")).await.status, 200);
    assert_eq!(get(&format!("{admin}status")).await.status, 200);
    for path in ["drain/plain", "resume/plain", "weight/plain?value=5", "reload", "reload/plain"] {
        let answer = post(&format!("{admin}{path}")).await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.contains("read-only") && answer.body.contains("admin.token_file"), "{answer:?}");
    }
    let said = host.says("command refused: drain plain: this address is read-only").await;
    assert!(said["level"] == "WARN" && said["by"].as_str().is_some_and(|by| by.starts_with("127.0.0.1:")), "{said}");
    let ended = leasehold_in(Path::new("/nowhere"), &["drain", "plain", "--admin", &admin]).await;
    assert!(ended.code == Some(77) && ended.stderr.contains("admin.token_file"), "{ended:?}");
    assert_eq!(get(&host.url("plain")).await.status, 200);
    assert!(
        host.log()
            .iter()
            .any(|line| line["message"].as_str().is_some_and(|said| said.contains("is read-only: admin.token_file")))
    );
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn safety_over_tcp_a_command_needs_the_token_which_may_change() {
    let world = World::real().await;
    let folder = folder();
    let file = folder.path().join("token");
    fs::write(&file, "first-token-of-a-host\n").expect("the directory is our own");
    let mut host = host(&world, json!({ "listen": free_address(), "token_file": text(&file) })).await;
    let admin = host.admin();
    let drain = format!("{admin}drain/plain");
    for header in [None, Some("Bearer first-token-of-a-hos"), Some("Bearer "), Some("Basic first-token-of-a-host")] {
        let headers: Vec<_> = header.iter().map(|value| ("authorization", *value)).collect();
        let answer = ask("POST", &drain, &headers).await;
        assert_eq!(answer.status, 401, "{header:?}: {answer:?}");
    }
    assert_eq!(get(&host.url("plain")).await.status, 200);
    let ended = leasehold_in(folder.path(), &["drain", "plain", "--admin", &admin]).await;
    assert!(ended.code == Some(77) && ended.stderr.contains("needs the token"), "{ended:?}");
    // A configuration names the file of the token, too.
    let drained = leasehold_in(folder.path(), &["drain", "plain", "--config", &text(&host.file())]).await;
    assert_eq!(drained.code, Some(0), "{drained:?}");
    let said = host.says("command: drain plain").await;
    assert!(said["by"].as_str().is_some_and(|by| by.starts_with("token, 127.0.0.1:")), "{said}");
    fs::write(&file, "second-token-of-a-host").expect("the directory is our own");
    let old = ask("POST", &format!("{admin}resume/plain"), &[("authorization", "Bearer first-token-of-a-host")]).await;
    assert_eq!(old.status, 401);
    let with_file = ["resume", "plain", "--admin", &admin, "--token-file", &text(&file)];
    assert_eq!(leasehold_in(folder.path(), &with_file).await.code, Some(0));
    fs::remove_file(&file).expect("the directory is our own");
    let unreadable = ask("POST", &drain, &[("authorization", "Bearer second-token-of-a-host")]).await;
    assert_eq!(unreadable.status, 500, "{unreadable:?}");
    assert!(host.log().iter().all(|line| !line.to_string().contains("token-of-a-host")), "no token is logged");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn safety_over_tls_a_certificate_permits_commands() {
    let world = World::real().await;
    let (authority, folder) = (Authority::new("admin"), folder());
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("the directory is our own");
        text(&path)
    };
    let (server, client) = (authority.server(), authority.client("operator"));
    let ca = write("ca.pem", &authority.certificate());
    let tls = json!({
        "cert": write("cert.pem", &server.certificate),
        "key": write("key.pem", &server.key),
        "client_ca": ca,
    });
    let mut host = host(&world, json!({ "listen": free_address(), "tls": tls })).await;
    let admin = host.admin();
    assert!(admin.starts_with("https://127.0.0.1:"), "{admin}");
    let (cert, key) = (write("operator.pem", &client.certificate), write("operator.key", &client.key));
    let trust = ["--admin", admin.as_str(), "--cacert", ca.as_str()];
    let without = leasehold_in(folder.path(), &[&["drain", "plain"][..], &trust].concat()).await;
    assert!(without.code == Some(1) && without.stderr.contains("no host answers at https://"), "{without:?}");
    let identity = ["--cert", cert.as_str(), "--key", key.as_str()];
    let drained = leasehold_in(folder.path(), &[&["drain", "plain"][..], &trust, &identity].concat()).await;
    assert_eq!(drained.code, Some(0), "{drained:?}");
    let said = host.says("command: drain plain").await;
    assert!(said["by"].as_str().is_some_and(|by| by.starts_with("certificate operator, 127.0.0.1:")), "{said}");
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn safety_metrics_have_a_listener_of_their_own_that_changes_nothing() {
    let world = World::real().await;
    let metrics = free_address();
    let changes = json!({ "metrics": { "listen": metrics }, "admin": { "listen": "off" } });
    let host = Host::ready(&with(config(&world, [plain("plain")]), changes)).await;
    let url = format!("http://{metrics}/");
    for path in ["healthz", "readyz", "readyz?etcd=optional", "metrics"] {
        assert_eq!(get(&format!("{url}{path}")).await.status, 200, "{path}");
    }
    for path in ["services", "status", "status/plain"] {
        assert_eq!(get(&format!("{url}{path}")).await.status, 404, "{path}");
    }
    for path in ["drain/plain", "reload", "weight/plain?value=5"] {
        assert_eq!(post(&format!("{url}{path}")).await.status, 404, "{path}");
    }
    let off = leasehold_in(Path::new("/nowhere"), &["drain", "plain", "--config", &text(&host.file())]).await;
    assert!(off.code == Some(64) && off.stderr.contains("admin.listen is off"), "{off:?}");
    assert_eq!(get(&host.url("plain")).await.status, 200);
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn safety_a_component_reaches_none_of_the_listeners() {
    let world = World::real().await;
    let metrics = free_address();
    let caller =
        with(hostile("hostile"), json!({ "register": "host", "allow": { "outbound": ["127.0.0.1"], "local": true } }));
    let changes = json!({ "metrics": { "listen": metrics }, "admin": { "listen": "127.0.0.1:0" } });
    let mut host = Host::ready(&with(config(&world, [caller]), changes)).await;
    let admin = host.admin().trim_start_matches("http://").trim_end_matches('/').to_owned();
    for addr in [metrics, admin] {
        let answer = get(&format!("{}call/{addr}", host.url("hostile"))).await;
        assert!(answer.body.contains("DestinationIpProhibited"), "{addr}: {answer:?}");
        host.says(&format!("denied a request to {addr}: it is this host's own")).await;
    }
    assert_eq!(host.stop().await.code, Some(0));
}

#[tokio::test]
async fn safety_a_socket_answers_requests_of_no_web_page() {
    let world = World::real().await;
    let host = Host::of(&world, [plain("plain")]).await;
    for (origin, status) in [("", "200"), ("origin: http://evil.example\r\n", "403")] {
        let mut stream = UnixStream::connect(socket(&host)).await.expect("it listens");
        let request = format!("GET /status HTTP/1.1\r\nhost: any.example\r\n{origin}\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{origin:?}: {answer}");
    }
    assert_eq!(host.stop().await.code, Some(0));
}
