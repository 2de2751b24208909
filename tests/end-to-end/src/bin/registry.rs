//! Pushes, pulls and runs components with the registry of the CNCF (distribution), which `make registry-test` builds.

use std::{
    fs,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, free_address, greeter, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    wait_for,
    world::{SOON, World},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The account of the registry, and its file of accounts: the password as bcrypt has it.
const PASSWORD: &str = "of-the-tests";
const ACCOUNTS: &str = "ci:$2a$04$EDnL5fMOorsxFIip7i8lg.sDaR.UU3qzImX.wrucCYfRrdA2nBSpy\n";

/// The registry, killed with the program.
struct Registry {
    child: Child,
    addr: String,
}

impl Registry {
    /// Starts it on what it has stored in the folder.
    fn start(folder: &Path, addr: &str) -> Self {
        let accounts = folder.join("accounts");
        fs::write(&accounts, ACCOUNTS).expect("the folder is our own");
        let settings = json!({
            "version": 0.1,
            "log": { "level": "error" },
            "storage": { "filesystem": { "rootdirectory": folder.join("storage") } },
            "http": { "addr": addr, "secret": "of one process" },
            "auth": { "htpasswd": { "realm": "registry", "path": accounts } },
        });
        let file = folder.join("registry.yaml");
        fs::write(&file, settings.to_string()).expect("the folder is our own");
        let program = paths::workspace().join("target/registry/registry");
        let child = Command::new(program).arg("serve").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("run make registry-test, which builds it");
        let begun = Instant::now();
        while std::net::TcpStream::connect(addr).is_err() {
            assert!(begun.elapsed() < SOON, "the registry does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        Self { child, addr: addr.to_owned() }
    }

    fn reference(&self, name: &str) -> String {
        format!("oci://{}/{name}", self.addr)
    }

    fn stop(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it has ended");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill()); // It may have ended.
    }
}

/// A command with the account, and a cache of its own.
async fn leasehold(folder: &Path, arguments: &[&str]) -> Ended {
    let (cache, password) = (folder.join("cache"), folder.join("password"));
    fs::write(&password, PASSWORD).expect("the folder is our own");
    let password = password.to_str().expect("a plain name");
    let account = ["--plain-http", "--json", "--registry-user", "ci", "--registry-password-file", password];
    let variables = [("XDG_CACHE_HOME", cache.to_str().expect("a plain name"))];
    Program::spawn_with(&paths::leasehold(), [arguments, &account].concat(), folder, &variables).ends().await
}

async fn report(folder: &Path, arguments: &[&str]) -> Value {
    let ended = leasehold(folder, arguments).await;
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    serde_json::from_str(&ended.stdout).expect("one JSON object")
}

#[expect(clippy::print_stdout, reason = "what it is for")]
#[tokio::main]
async fn main() -> ExitCode {
    let folder = TempDir::with_prefix("leasehold-registry-").expect("a temporary directory");
    let (path, addr) = (folder.path(), free_address());
    let registry = Registry::start(path, &addr);
    let file = paths::component("greeter");
    let file = file.to_str().expect("a plain name");

    let pushed = report(path, &["push", file, &registry.reference("team/greeter:1.0.0")]).await;
    let digest = pushed["digest"].as_str().expect("a digest").to_owned();
    println!("ok  a component is pushed, as {digest}");

    for reference in [registry.reference("team/greeter:1.0.0"), registry.reference(&format!("team/greeter@{digest}"))] {
        let output = path.join("pulled.wasm");
        let pulled = report(path, &["pull", &reference, "-o", output.to_str().expect("a plain name")]).await;
        assert_eq!(pulled["digest"], digest);
        assert_eq!(fs::read(output).expect("it was pulled"), fs::read(file).expect("it was built"));
    }
    println!("ok  it is pulled by tag and by digest");

    let unknown = leasehold(path, &["pull", &registry.reference("team/greeter:2.0.0")]).await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("has no team/greeter:2.0.0"), "{unknown:?}");
    let anonymous =
        Program::spawn(&paths::leasehold(), ["pull", &registry.reference("team/greeter:1.0.0"), "--plain-http"], path);
    let anonymous = anonymous.ends().await;
    assert!(anonymous.code == Some(1) && anonymous.stderr.contains("denies access"), "{anonymous:?}");
    println!("ok  an unknown tag and a missing password are named");

    let world = World::real().await;
    let service = with(greeter(), json!({ "component": registry.reference("team/greeter:1.0.0") }));
    let entry = json!({ "host": addr, "plain_http": true, "username": "ci", "password": PASSWORD });
    let changes =
        json!({ "artifacts": { "registries": [entry], "poll": "200ms" }, "admin": { "listen": "127.0.0.1:0" } });
    let config = with(config(&world, [service]), changes);
    let mut host = Host::spawn(&config, &["--watch"]);
    host.event("ready").await;
    assert_eq!(get(&host.url("greeter")).await.status, 200);
    println!("ok  a host runs it, and it is registered");

    let [before, plain] = [file.to_owned(), paths::component("lookup").to_str().expect("a plain name").to_owned()];
    report(path, &["push", &plain, &registry.reference("team/greeter:1.0.0")]).await;
    host.event("reloaded").await;
    report(path, &["push", &before, &registry.reference("team/greeter:1.0.0")]).await;
    wait_for("it is reloaded again", SOON, async || {
        host.log().iter().filter(|line| line["event"] == "reloaded").count() == 2
    })
    .await;
    assert_eq!(host.stop().await.code, Some(0));
    println!("ok  a tag that moves is followed");

    registry.stop();
    let mut host = Host::spawn(&config, &[]);
    host.event("ready").await;
    assert_eq!(host.stop().await.code, Some(0));
    println!("ok  a host starts while the registry is away");

    let registry = Registry::start(path, &addr);
    let again = report(path, &["push", file, &registry.reference("team/greeter:1.0.1")]).await;
    assert_eq!(again["digest"], digest, "the same component is the same artifact");
    println!("ok  a registry that comes back goes on");
    ExitCode::SUCCESS
}
