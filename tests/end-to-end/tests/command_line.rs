//! The command line: each mistake is one sentence and an exit code, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use etcd_client::Permission;
use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, endpoint, greeter, hostile, plain, service, with},
    http::get,
    paths,
};
use leasehold_scenarios::{
    real::{Authority, Etcd},
    world::World,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// An address without a listener: the port of the discard protocol.
const NOBODY: &str = "http://127.0.0.1:9";

/// Runs the binary to its end, in a folder that must stay empty.
async fn leasehold<const N: usize>(arguments: [&str; N]) -> Ended {
    let folder = TempDir::new().unwrap();
    let ended = Program::spawn(&paths::leasehold(), arguments, folder.path()).ends().await;
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{arguments:?} left {left:?}");
    ended
}

/// Asserts that the process ended with that code and one sentence, which starts with `start`; with `run`, behind the line
/// that says what runs.
#[track_caller]
fn one_sentence(ended: &Ended, code: i32, start: &str) {
    assert_eq!(ended.code, Some(code), "{start}: {ended:?}");
    let sentences: Vec<_> = ended.stderr.lines().filter(|line| !line.contains(" INFO leasehold starts ")).collect();
    assert_eq!(sentences.len(), 1, "{start}: {ended:?}");
    assert!(sentences[0].starts_with(&format!("leasehold: {start}")), "{start}: {ended:?}");
}

/// A configuration file in a folder of its own.
struct File {
    folder: TempDir,
}

impl File {
    fn of(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("services.yaml"), text).unwrap();
        Self { folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("services.yaml").display().to_string()
    }

    fn beside(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

fn component(name: &str) -> String {
    paths::component(name).display().to_string()
}

#[tokio::test]
async fn a_component_file_that_cannot_run_is_one_sentence_and_64() {
    let world = World::real().await;
    let files = File::of("");
    fs::write(files.beside("text.wasm"), "hello").unwrap();
    fs::write(files.beside("core.wasm"), b"\0asm\x01\0\0\0").unwrap();
    fs::write(files.beside("broken.wasm"), b"\0asm\x0d\0\x01\0broken").unwrap();
    fs::write(files.beside("empty.wasm"), b"").unwrap();
    let (missing, text, core, broken, empty) = (
        files.beside("missing.wasm"),
        files.beside("text.wasm"),
        files.beside("core.wasm"),
        files.beside("broken.wasm"),
        files.beside("empty.wasm"),
    );
    let (nothing, plain) = (component("nothing"), component("plain"));
    for (file, start) in [
        (&missing, format!("cannot read {missing}: No such file")),
        (&text, format!("{text}: not WebAssembly")),
        (&core, format!("{core}: a core module, not a component; build it for wasm32-wasip2")),
        (&broken, format!("{broken}: not a valid component: ")),
        (&empty, format!("{empty}: not WebAssembly")),
        (&nothing, format!("{nothing}: the component exports nothing that can be served; it needs wasi:http/")),
        (&plain, format!("{plain}: the component does not import leasehold:registry/registrar")),
    ] {
        let etcd = endpoint(&world);
        let ended = leasehold(["run", file, "--name", "x", "--listen", "127.0.0.1:0", "--etcd", &etcd]).await;
        one_sentence(&ended, 64, &start);
        assert_eq!(ended.stdout, "");
    }
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
}

/// A component that imports only `f` of an interface.
fn importing(interface: &str) -> Vec<u8> {
    let types = b"\x01\x42\x02\x01\x40\x00\x01\x00\x04\x00\x01f\x01\x00";
    let mut imports = vec![1, 0, u8::try_from(interface.len()).unwrap()];
    imports.extend_from_slice(interface.as_bytes());
    imports.extend_from_slice(&[5, 0]);
    let section = |id: u8, bytes: &[u8]| [&[id, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(7, types), section(10, &imports)].concat()
}

#[tokio::test]
async fn a_missing_import_is_reported_with_its_remedy() {
    let files = File::of("");
    let file = files.beside("lacking.wasm");
    for (interface, cure) in [
        ("acme:things/store@1.0.0", "another component can bring it: `wac plug --plug"),
        ("wasi:nn/graph@0.2.0", "another component can bring it: `wac plug --plug"),
        ("wasi:http/types@0.3.0-rc-2025-09-16", "this host has wasi:http 0.2 and 0.3: build the component for that"),
        (
            "leasehold:registry/registrar@9.0.0",
            "this host has leasehold:registry 0.1 and 0.2: build the component for that",
        ),
    ] {
        fs::write(&file, importing(interface)).unwrap();
        let start = format!("{file}: missing import: {interface}; {cure}");
        one_sentence(&leasehold(["compile", &file]).await, 64, &start);
    }
}

/// Asserts that the process ended with 64 and lists mistakes, the first of which starts with `start`, with a mark each.
#[track_caller]
fn mistakes(ended: &Ended, count: usize, start: &str) {
    assert_eq!(ended.code, Some(64), "{start}: {ended:?}");
    assert!(ended.stderr.starts_with(start), "{start}: {ended:?}");
    let last = format!("leasehold: {count} mistake{} in the configuration", if count == 1 { "" } else { "s" });
    assert_eq!(ended.stderr.lines().last(), Some(&*last), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 3 * count + 1, "{ended:?}");
}

#[tokio::test]
async fn all_mistakes_in_a_configuration_come_with_their_lines_and_64() {
    let greeter = component("greeter");
    let smallest = format!("services:\n  - name: greeter\n    component: {greeter}\n    listen: 127.0.0.1:10002\n");
    for (text, count, start) in [
        (format!("{smallest}    memroy: 5\n"), 1, ":5:5: unknown key \"memroy\"; did you mean \"memory\" under limits?"),
        (
            format!("{smallest}etcd:\n  endpionts: []\n"),
            1,
            ":6:3: unknown key \"endpionts\"; did you mean \"endpoints\"?",
        ),
        (
            format!("{smallest}    advertise: 0.0.0.0:80\n"),
            1,
            ":5:16: advertise: addr must be an address that a client",
        ),
        (smallest.replace("127.0.0.1:10002", "0.0.0.0:10002"), 1, ":4:13: listen: no client can dial 0.0.0.0:10002"),
        (
            format!("{smallest}  - name: other\n    component: {greeter}\n    listen: 127.0.0.1:10002\n"),
            1,
            ":7:13: listen: 127.0.0.1:10002 is the listener of line 4 already",
        ),
        (smallest.replace("name: greeter", "name: a/b"), 1, ":2:11: name must"),
        ("services: []\n".to_owned(), 1, ":1:11: services: must list at least one"),
        ("services: [\n".to_owned(), 1, ":"),
        ("".to_owned(), 1, ":1:1: the key \"services\" is missing"),
        (
            format!("{smallest}    limits: {{ memory: lots, nodes: 0 }}\nmetrics: {{}}\n"),
            3,
            ":5:23: memory: must be a size",
        ),
    ] {
        let file = File::of(&text);
        for command in ["run", "check"] {
            mistakes(&leasehold([command, &file.path()]).await, count, &format!("{}{start}", file.path()));
        }
    }
    let json = leasehold(["--log-format", "json", "check", &File::of("etcd: 1\nadmin: 1\n").path()]).await;
    let json: Value = serde_json::from_str(&json.stderr).unwrap();
    assert_eq!((&json["mistakes"][1]["line"], &json["mistakes"][1]["column"]), (&json!(1), &json!(7)), "{json}");
    let missing = File::of("").beside("missing.yaml");
    one_sentence(&leasehold(["run", &missing]).await, 64, &format!("cannot read {missing}: No such file"));
    one_sentence(&leasehold(["check", &missing]).await, 64, &format!("cannot read {missing}: No such file"));
}

#[tokio::test]
async fn a_mistake_beside_a_password_does_not_repeat_it() {
    let smallest = "services:\n  - { name: a, component: a.wasm, listen: \"127.0.0.1:1\" }\n";
    for etcd in [
        "etcd:\n  user: root\n  password: hunter2-secret\n  passwrd: hunter2-secret\n",
        "etcd: { user: root, password: hunter2-secret, unknown: 1 }\n",
        "etcd: { password: hunter2-secret }\n",
        "etcd: { user: root, password: [hunter2-secret] }\n",
        "etcd: { user: root, password: hunter2-secret, required: hunter2-secret }\n",
        "etcd: { endpoints: [\"http://root:hunter2-secret@127.0.0.1:2379\"] }\n",
        "etcd: { user: root, password: hunter2-secret\n",
    ] {
        let file = File::of(&format!("{smallest}{etcd}"));
        let ended = leasehold(["run", &file.path()]).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.stderr.starts_with(&file.path()) && !ended.wrote("hunter2"), "{ended:?}");
    }
}

#[tokio::test]
async fn bad_arguments_are_one_sentence_and_64() {
    let greeter = component("greeter");
    let listen = "127.0.0.1:0";
    for (arguments, start) in [
        (vec![], "a command is missing: run, ls, watch, doctor, etcd-user, check, init, "),
        (vec!["fly"], "unrecognized subcommand 'fly'"),
        (vec!["run"], "the following required arguments were not provided: <FILE>"),
        (vec!["run", "a.yaml", "--no-such-flag"], "unexpected argument '--no-such-flag' found"),
        (vec!["run", "a.yaml", "--name", "x"], "--name goes with a component"),
        (vec!["run", &greeter], &format!("{greeter} needs --name")),
        (vec!["run", &greeter, "--name", "a/b", "--listen", listen], "--name: name must"),
        (vec!["run", &greeter, "--name", "x", "--listen", "8080"], "--listen: must be an IP address and a port"),
        (vec!["run", &greeter, "--name", "x", "--listen", "0.0.0.0:80"], "--listen: no client can dial 0.0.0.0:80"),
        (
            vec!["run", &greeter, "--name", "x", "--listen", listen, "--advertise", "0.0.0.0:80"],
            "--advertise: addr must be an address that a client can dial",
        ),
        (vec!["run", &greeter, "--name", "x", "--listen", listen, "--register", "me"], "--register: must be one of"),
        (vec!["run", &greeter, "--name", "x", "--listen", listen, "--etcd", "a"], "--etcd: must be host:port"),
        (vec!["ls", "--user", "root:hunter2-secret"], "--user: must be a name alone"),
        (vec!["ls", "--user", "root"], "--user: needs --password-file, or LEASEHOLD_ETCD_PASSWORD"),
        (vec!["ls", "--cacert", "/does/not/exist.pem"], "--cacert: cannot read /does/not/exist.pem"),
        (vec!["ls", "a/b"], "NAME: name must"),
        (vec!["--log-format", "xml", "ls"], "invalid value 'xml' for '--log-format"),
    ] {
        let folder = TempDir::new().unwrap();
        let ended = Program::spawn(&paths::leasehold(), &arguments, folder.path()).ends().await;
        one_sentence(&ended, 64, start);
    }
}

#[tokio::test]
async fn an_error_of_arguments_names_the_help_of_its_command() {
    let ended = leasehold(["inspect", "--no-such-flag", "a.wasm"]).await;
    assert!(ended.code == Some(64) && ended.stderr.ends_with("see leasehold inspect --help\n"), "{ended:?}");
    let ended = leasehold(["--log-format", "json", "weight", "greeter", "1000"]).await;
    assert!(ended.code == Some(64) && ended.stderr.contains("see leasehold weight --help"), "{ended:?}");
    let ended = leasehold(["fly"]).await;
    assert!(ended.code == Some(64) && ended.stderr.ends_with("see leasehold --help\n"), "{ended:?}");
    let ended = leasehold(["help", "--help"]).await;
    assert!(ended.code == Some(0) && ended.stdout.contains("Usage: leasehold"), "{ended:?}");
}

#[tokio::test]
async fn help_is_wrapped_to_the_width_of_the_terminal() {
    let folder = TempDir::new().unwrap();
    for command in ["run", "ls", "drain", "etcd-user"] {
        let columns = [("COLUMNS", "60")];
        let help = Program::spawn_with(&paths::leasehold(), [command, "-h"], folder.path(), &columns).ends().await;
        let widest = help.stdout.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(help.code == Some(0) && widest.chars().count() <= 60, "{command}: {widest}");
    }
}

#[tokio::test]
async fn a_file_without_a_certificate_is_no_authority() {
    let file = File::of("services:\n  - { name: a, component: a.wasm, listen: \"127.0.0.1:1\" }\n");
    let ended = leasehold(["ls", "--etcd", "https://127.0.0.1:9", "--cacert", &file.path()]).await;
    one_sentence(&ended, 64, &format!("--cacert: {} has no certificate as PEM", file.path()));
}

#[tokio::test]
async fn a_port_in_use_is_one_sentence_and_1() {
    let world = World::real().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let greeter = component("greeter");
    let ended = leasehold(["run", &greeter, "--name", "g", "--listen", &addr, "--etcd", &endpoint(&world)]).await;
    one_sentence(&ended, 1, &format!("g: cannot listen on {addr}: Address already in use"));
    assert_eq!(world.count().await, 0);
    assert!(world.leases().await.is_empty());
}

#[tokio::test]
async fn a_port_without_the_right_to_it_is_one_sentence_and_1() {
    let world = World::real().await;
    let folder = TempDir::new().unwrap();
    let (leasehold, greeter, etcd) = (paths::leasehold(), component("greeter"), endpoint(&world));
    let run = ["run", &greeter, "--name", "g", "--listen", "127.0.0.1:1", "--etcd", &etcd];
    // Root has the right, and drops it for this test.
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let without = ["--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service", leasehold.to_str().unwrap()];
    let program = match is_root {
        true => Program::spawn(Path::new("setpriv"), without.into_iter().chain(run), folder.path()),
        false => Program::spawn(&leasehold, run, folder.path()),
    };
    let ended = program.ends().await;
    let said =
        "g: cannot listen on 127.0.0.1:1: Permission denied (os error 13); ports below 1024 need CAP_NET_BIND_SERVICE";
    one_sentence(&ended, 1, said);
}

#[tokio::test]
async fn an_etcd_that_is_required_and_silent_is_one_sentence_and_69() {
    let unreachable = json!({ "etcd": { "endpoints": [NOBODY], "required": true, "dial_timeout": "500ms" } });
    let file = File::of(&with(json!({ "services": [greeter()] }), unreachable).to_string());
    one_sentence(&leasehold(["run", &file.path()]).await, 69, &format!("etcd: {NOBODY}"));
    one_sentence(&leasehold(["ls", "--etcd", NOBODY]).await, 69, &format!("etcd: {NOBODY}"));
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
        (json!({ "endpoints": [NOBODY] }), 0),
    ] {
        let file = File::of(&json!({ "etcd": etcd, "services": [greeter()] }).to_string());
        let ended = leasehold(["check", &file.path()]).await;
        assert_eq!(ended.code, Some(code), "{etcd}: {ended:?}");
    }
}

#[tokio::test]
async fn an_unknown_name_is_reported_with_similar_ones() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let none = leasehold(["ls", "user", "--etcd", &etcd]).await;
    assert!(none.stderr.contains("no service is registered as user; there is none at all"), "{none:?}");
    for name in ["greeter", "ledger"] {
        let value = json!({ "name": name, "addr": "h:1", "version": "", "weight": "9" }).to_string();
        world.put(&format!("/{name}/h:1"), &value, 0).await;
    }
    let near = leasehold(["ls", "greter", "--etcd", &etcd]).await;
    assert_eq!(near.code, Some(0));
    assert!(near.stderr.contains("no service is registered as greter; there is greeter"), "{near:?}");
    let far = leasehold(["ls", "zzz", "--etcd", &etcd]).await;
    assert!(far.stderr.contains("no service is registered as zzz; there are 2 others"), "{far:?}");
}

#[tokio::test]
async fn an_etcd_that_is_not_required_is_waited_for_until_the_end() {
    let waiting = json!({ "etcd": { "endpoints": [NOBODY] }, "services": [greeter()] });
    let mut host = Host::spawn(&waiting, &[]);
    let said = host.says("waiting for etcd").await;
    assert!(said["message"].as_str().unwrap().contains(NOBODY), "{said}");
    assert_eq!(said["level"], "WARN");
    let ended = host.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test]
async fn a_component_runs_from_arguments_alone() {
    let world = World::real().await;
    let folder = TempDir::new().unwrap();
    let (etcd, greeter) = (endpoint(&world), component("greeter"));
    let arguments = [
        "run",
        &greeter,
        "--name",
        "g",
        "--listen",
        "127.0.0.1:0",
        "--etcd",
        &etcd,
        "--config-var",
        "name=g",
        "--config-var",
        "greeting=moin=moin",
        "--advertise",
        "g.example:80",
    ];
    let mut program = Program::spawn(&paths::leasehold(), arguments, folder.path());
    let serving = program.line("where it is served", |line| line.contains("serving")).await;
    assert!(world.get("/g/g.example:80").await.is_some());
    let url = serving.split("url=").nth(1).unwrap().trim_matches('"');
    assert_eq!(get(url).await.body, "moin=moin\n");
    program.signal("TERM");
    assert_eq!(program.ends().await.code, Some(0));
}

#[tokio::test]
async fn ls_lists_registered_nodes() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let nobody = leasehold(["ls", "--etcd", &etcd]).await;
    assert_eq!(
        (nobody.code, nobody.stdout.as_str()),
        (Some(0), "NAME  VERSION  ADDR  WEIGHT  STATE  LEASE  TTL\n0 nodes of 0 services\n")
    );

    let host = Host::of(&world, [greeter(), plain("plain")]).await;
    world.put("/stranger", "not a node", 0).await;
    let ownerless = json!({ "name": "ownerless", "addr": "h:1", "version": "", "weight": "9" }).to_string();
    world.put("/ownerless/h:1", &ownerless, 0).await;
    let lease = format!("{:x}", world.get(&format!("/greeter/v1/{}", host.addr("greeter"))).await.unwrap().lease);
    let table = leasehold(["ls", "--etcd", &etcd]).await;
    assert_eq!(table.code, Some(0), "{table:?}");
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "VERSION", "ADDR", "WEIGHT", "STATE", "LEASE", "TTL"]);
    assert_eq!(rows[1][..6], ["greeter", "v1", &host.addr("greeter"), "73", "ok", &lease]);
    assert_eq!(rows[2], ["ownerless", "-", "h:1", "9", "no-lease", "-", "-"]);
    assert_eq!(rows[3][..5], ["plain", "-", &host.addr("plain"), "73", "ok"]);
    assert_eq!(rows.len(), 5);
    assert!(table.stdout.ends_with("3 nodes of 3 services: 2 ok, 1 no-lease\n"), "{table:?}");
    assert!(table.stderr.contains("1 key is not a node; leasehold doctor says why"), "{table:?}");

    let one = leasehold(["ls", "plain", "--etcd", &etcd]).await;
    assert_eq!(one.stdout.lines().count(), 3, "{one:?}");
    let json = leasehold(["ls", "greeter", "--json", "--etcd", &etcd]).await;
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let row = &json[0];
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(row["key"], format!("/greeter/v1/{}", host.addr("greeter")));
    assert_eq!((&row["name"], &row["version"], &row["weight"]), (&json!("greeter"), &json!("v1"), &json!(73)));
    assert_eq!(row["lease"], lease);
    assert!((1..=10).contains(&row["ttl_seconds"].as_u64().unwrap()) && row["state"] == "ok", "{row}");
    let none = leasehold(["ls", "nobody", "--json", "--etcd", &etcd]).await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), "[]\n"));
}

#[tokio::test]
async fn ls_filters_and_sorts() {
    let world = World::real().await;
    let etcd = endpoint(&world);
    let lease = world.grant(60).await;
    for (name, version, addr, lease) in [
        ("user", "v1", "10.0.0.10:80", lease),
        ("user", "v2", "10.0.0.9:80", lease),
        ("user", "v10", "10.0.0.8:80", 0),
        ("user-cache", "", "h:1", 0),
        ("order", "v1", "h:2", lease),
    ] {
        let value = json!({ "name": name, "addr": addr, "version": version, "weight": "9" }).to_string();
        let slash = if version.is_empty() { "" } else { "/" };
        world.put(&format!("/{name}/{version}{slash}{addr}"), &value, lease).await;
    }
    let listed = async |arguments: &[&str]| {
        let all = ["ls", "--json", "--etcd", &etcd].into_iter().chain(arguments.iter().copied());
        let ended = Program::spawn(&paths::leasehold(), all, TempDir::new().unwrap().path()).ends().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let rows: Value = serde_json::from_str(&ended.stdout).unwrap();
        let addrs = rows.as_array().unwrap().iter().map(|row| row["addr"].as_str().unwrap().to_owned());
        (addrs.collect::<Vec<_>>().join(" "), ended.stderr)
    };
    for (arguments, expected) in [
        (&[][..], "h:2 10.0.0.10:80 10.0.0.9:80 10.0.0.8:80 h:1"),
        (&["user"], "10.0.0.10:80 10.0.0.9:80 10.0.0.8:80"),
        (&["user*"], "10.0.0.10:80 10.0.0.9:80 10.0.0.8:80 h:1"),
        (&["{order,user-*}"], "h:2 h:1"),
        (&["--version", "v1"], "h:2 10.0.0.10:80"),
        (&["user", "--version", "v1*", "--state", "no-lease"], "10.0.0.8:80"),
        (&["--state", "no-lease,lease-gone"], "10.0.0.8:80 h:1"),
    ] {
        assert_eq!(listed(arguments).await, (expected.to_owned(), String::new()), "{arguments:?}");
    }
    for (arguments, sentence) in [
        (&["users*"][..], "no service matches users*; there is user"),
        (&["user", "--version", "v3"], "3 nodes are of another version or state"),
    ] {
        let (rows, said) = listed(arguments).await;
        assert!(rows.is_empty() && said.contains(sentence), "{said}");
    }
    one_sentence(&leasehold(["ls", "user["]).await, 64, "NAME: \"user[\" is no pattern: unclosed character class");
    let state = leasehold(["ls", "--state", "good"]).await;
    assert_eq!(state.code, Some(64), "{state:?}");
    assert!(state.stderr.contains("possible values: ok, unknown, expiring, no-lease, lease-gone"), "{state:?}");
}

#[tokio::test]
async fn check_of_many_services_lists_those_with_a_remark() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let mut services: Vec<_> = (0..29).map(|number| plain(&format!("plain-{number}"))).collect();
    services.push(with(plain("taken"), json!({ "listen": taken })));
    let file = File::of(&json!({ "services": services }).to_string());
    let rows = |text: &str| text.lines().filter(|line| line.contains(" over wasi:http 0.2")).count();
    let few = leasehold(["check", "--offline", &file.path()]).await;
    assert!(few.code == Some(0) && few.stdout.starts_with("30 services: ok (--all lists them)\n\n"), "{few:?}");
    let all = leasehold(["check", "--offline", "--all", &file.path()]).await;
    assert!(all.code == Some(0) && !all.stdout.contains("--all"), "{all:?}");
    assert_eq!(rows(&all.stdout), 30, "{all:?}");
    // A port in use is a remark where the network is used; no etcd is there.
    let noted = leasehold(["check", "--etcd", "127.0.0.1:9", &file.path()]).await;
    assert!(noted.stdout.contains("29 other services: ok (--all lists them)\n"), "{noted:?}");
    let row = noted.stdout.lines().find(|line| line.starts_with("taken"));
    assert!(row.is_some_and(|row| row.contains("ok; note: ")) && rows(&noted.stdout) == 1, "{noted:?}");
}

#[tokio::test]
async fn check_reports_mistakes_and_starts_nothing() {
    let world = World::real().await;
    let good = File::of(&config(&world, [greeter(), plain("plain")]).to_string());
    let ended = leasehold(["check", &good.path()]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.ends_with("etcd answers\n"), "{ended:?}");
    let ended = leasehold(["check", &good.path(), "--json"]).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &report["ok"]), (Some(0), &json!(true)));
    assert_eq!(report["services"][0]["inspected"]["http"], "0.2");
    let memory = 2 * 253 * (64_u64 << 20);
    assert_eq!(
        report["demand"],
        json!({ "instances": 2 * 253, "memory": memory, "pooled": true, "files": 2 * (4096 + 256) })
    );

    let many = with(plain("plain"), json!({ "limits": { "concurrency": 4000 } }));
    let many = File::of(&config(&world, [many]).to_string());
    let ended = leasehold(["check", &many.path()]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let said =
        "\ninstances: 5003 at most, with 312.7 GiB of memory if all of them are full; the pool has room for 4096";
    assert!(ended.stdout.contains(said), "{ended:?}");

    // The number of instances fits, but not the address space that wasmtime reserves for each memory.
    let wide = with(plain("plain"), json!({ "limits": { "memory": "4GiB", "connections": 100_000 } }));
    let wide = File::of(&config(&world, [wide]).to_string());
    let few = "ulimit -n 4096 && ulimit -v 50000000 && exec \"$0\" check \"$1\"";
    let binary = paths::leasehold().display().to_string();
    let ended = Program::spawn(Path::new("/bin/sh"), ["-c", few, &binary, &wide.path()], wide.folder.path());
    let ended = ended.ends().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("there is no pool for them ("), "{ended:?}");
    assert!(
        ended
            .stdout
            .contains("\nfiles: connections and outgoing requests may come to 100512, and the process may have 4096")
    );

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let bad = [
        with(plain("plain"), json!({ "register": "component" })),
        with(greeter(), json!({ "listen": taken })),
        service("nothing", "nothing"),
        hostile("fine"),
        with(plain("together"), json!({ "limits": { "instance_concurrency": 2 } })),
    ];
    let bad = File::of(&config(&world, bad).to_string());
    let ended = leasehold(["check", &bad.path()]).await;
    one_sentence(&ended, 64, "3 of 5 services would not run");
    let ended = leasehold(["check", &bad.path(), "--json"]).await;
    one_sentence(&ended, 64, "3 of 5 services would not run");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let problem = |index: usize| report["services"][index]["problems"][0].as_str().unwrap_or_default();
    assert!(problem(0).contains("say register: host"), "{report}");
    // A host that runs already may have it.
    assert_eq!(problem(1), "");
    assert_eq!(report["services"][1]["notes"][0], format!("{taken} is in use at the moment"), "{report}");
    assert!(problem(2).contains("exports nothing that can be served"), "{report}");
    assert_eq!(problem(3), "");
    assert!(problem(4).contains("limits.instance_concurrency must be 1"), "{report}");

    let busy = with(
        json!({ "services": [with(greeter(), json!({ "listen": taken }))] }),
        json!({ "admin": { "listen": taken, "token_file": paths::admin_token() } }),
    );
    let busy = File::of(&with(busy, json!({ "etcd": { "endpoints": [endpoint(&world)] } })).to_string());
    let ended = leasehold(["check", &busy.path()]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains(&format!("note: admin: {taken} is in use at the moment")), "{ended:?}");
    let ended = leasehold(["check", "--offline", &busy.path(), "--etcd", NOBODY]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.ends_with("etcd and ports were not tried\n") && !ended.stdout.contains("note"), "{ended:?}");

    let unreachable = json!({ "etcd": { "endpoints": [NOBODY], "required": true } });
    let unreachable = File::of(&with(json!({ "services": [greeter()] }), unreachable).to_string());
    one_sentence(&leasehold(["check", &unreachable.path()]).await, 69, &format!("etcd: {NOBODY}"));
    assert_eq!(world.count().await, 0);
}

#[tokio::test]
async fn inspect_shows_imports_and_missing_imports() {
    let ended = leasehold(["inspect", &component("greeter")]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    for line in [
        "  leasehold:registry/registrar@0.1.0",
        "  wasi:config/store@",
        "served      over wasi:http 0.2",
        "registered  by itself",
        "lifecycle   started and stopped by the host",
    ] {
        assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
    }
    let facts = |ended: Ended| serde_json::from_str::<Value>(&ended.stdout).unwrap();
    let greeter = facts(leasehold(["inspect", &component("greeter"), "--json"]).await);
    assert_eq!(
        (&greeter["http"], &greeter["lifecycle"], &greeter["missing"]),
        (&json!("0.2"), &json!(true), &json!([]))
    );
    let p3 = facts(leasehold(["inspect", &component("plain-p3"), "--json"]).await);
    assert_eq!((&p3["http"], &p3["lifecycle"], &p3["leasehold"]), (&json!("0.3"), &json!(false), &json!([])));
    let nothing = facts(leasehold(["inspect", &component("nothing"), "--json"]).await);
    assert!(nothing["http"].is_null());
    assert!(nothing["missing"][0].as_str().unwrap().contains("nothing that can be served"), "{nothing}");
    one_sentence(&leasehold(["inspect", "/does/not/exist.wasm"]).await, 64, "cannot read /does/not/exist.wasm");
}

#[tokio::test]
async fn help_has_examples() {
    for command in
        ["", "run", "ls", "check", "init", "schema", "inspect", "drain", "resume", "weight", "status", "reload"]
    {
        let arguments = [command, "--help"].into_iter().filter(|argument| !argument.is_empty());
        let folder = TempDir::new().unwrap();
        let ended = Program::spawn(&paths::leasehold(), arguments, folder.path()).ends().await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{command}");
        let example = format!("Examples:\n  leasehold {command}");
        assert!(ended.stdout.contains(example.trim_end()), "{command}: {}", ended.stdout);
        assert!(ended.stdout.lines().all(|line| line.chars().count() <= 120), "{command}: {}", ended.stdout);
    }
    let version = leasehold(["--version"]).await;
    assert_eq!((version.code, version.stdout.lines().next()), (Some(0), Some("leasehold 0.1.0")));
    let short = leasehold(["-V"]).await;
    assert_eq!((short.code, short.stdout.as_str()), (Some(0), "leasehold 0.1.0\n"));
}

#[tokio::test]
async fn logs_are_json_on_request() {
    let world = World::real().await;
    let mut host = Host::spawn(&config(&world, [greeter()]), &["-vv"]);
    host.says("ready").await;
    // Each line has been parsed already; each has a time, a level and a message.
    for line in host.log() {
        for field in ["timestamp", "level", "message"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
    }
    assert_eq!(host.stop().await.code, Some(0));
    let failing = leasehold(["--log-format", "json", "run", "/does/not/exist.yaml"]).await;
    let last: Value = serde_json::from_str(&failing.stderr).unwrap();
    assert_eq!((&last["level"], &last["exit_code"]), (&json!("ERROR"), &json!(64)));
}

#[tokio::test]
async fn a_closed_stdout_is_no_failure() {
    let greeter = component("greeter");
    let script = r#""$0" inspect "$1" | head -n 1; "$0" --help | head -n 1"#;
    let folder = TempDir::new().unwrap();
    let binary = paths::leasehold().display().to_string();
    let ended = Program::spawn(Path::new("/bin/sh"), ["-c", script, &binary, &greeter], folder.path()).ends().await;
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.stderr, "");
    assert_eq!(ended.stdout.lines().next(), Some("imports"));
}

#[tokio::test]
async fn bounded_each_failure_is_reported_soon() {
    // An address reserved for documentation: packets to it are lost, or there is no route.
    let begun = Instant::now();
    let silent = json!({ "etcd": { "endpoints": ["http://192.0.2.1:2379"], "required": true, "dial_timeout": "1s" } });
    let file = File::of(&with(json!({ "services": [greeter()] }), silent).to_string());
    let ended = leasehold(["run", &file.path()]).await;
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert!(ended.stderr.contains("http://192.0.2.1:2379"), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_component_that_was_compiled_ahead_runs_only_where_it_is_trusted() {
    let world = World::real().await;
    let files = File::of("");
    let (code, broken) = (files.beside("greeter.cwasm"), files.beside("broken.cwasm"));
    let compiled = leasehold(["compile", &component("greeter"), "-o", &code]).await;
    assert_eq!(compiled.code, Some(0), "{compiled:?}");
    fs::write(&broken, b"\x7fELF and no more").unwrap();

    let ready = with(greeter(), json!({ "component": code, "precompiled": true }));
    let host = Host::of(&world, [ready.clone()]).await;
    assert_eq!(get(&host.url("greeter")).await.body, "hello\n");
    assert_eq!(host.stop().await.code, Some(0));

    let refusals = [
        (with(greeter(), json!({ "component": code })), "machine code, which no sandbox holds"),
        (with(ready, json!({ "component": broken })), "not made by this release"),
    ];
    for (refused, why) in refusals {
        let ended = Host::spawn(&config(&world, [refused]), &[]).ends().await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.wrote(why), "{ended:?}");
    }
    let inspected = leasehold(["inspect", &code]).await;
    one_sentence(&inspected, 64, &format!("{code}: machine code"));
    let nothing = leasehold(["compile", &component("nothing"), "-o", "/nowhere/nothing.cwasm"]).await;
    one_sentence(&nothing, 1, "cannot write /nowhere/nothing.cwasm: ");
}

/// Runs the binary in a shell, with `$0` and `$1` for the binary and the first argument.
async fn in_shell(script: &str, argument: &str) -> Ended {
    let folder = TempDir::new().unwrap();
    let binary = paths::leasehold().display().to_string();
    Program::spawn(Path::new("/bin/sh"), ["-c", script, &binary, argument], folder.path()).ends().await
}

#[tokio::test]
async fn a_first_file_is_written_and_never_overwritten() {
    let files = File::of("");
    let path = files.beside("first.yaml");
    let ended = leasehold(["init", &path]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let written = fs::read_to_string(&path).unwrap();
    one_sentence(&leasehold(["init", &path]).await, 64, &format!("{path} exists"));
    assert_eq!(fs::read_to_string(&path).unwrap(), written);
    fs::copy(paths::component("greeter"), files.beside("greeter.wasm")).unwrap();
    let ended = leasehold(["check", "--offline", &path]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let explained = leasehold(["explain", &path]).await;
    assert!(explained.stdout.contains("key    /greeter/v1/127.0.0.1:10002"), "{explained:?}");
}

#[tokio::test]
async fn a_configuration_comes_from_standard_input_and_the_environment() {
    let world = World::real().await;
    let text = with(
        config(&world, [plain("plain")]),
        json!({ "services": [with(plain("plain"), json!({ "version": "${VERSION}" }))] }),
    );
    let file = File::of(&text.to_string());
    let ended = in_shell("VERSION=v7 \"$0\" explain - < \"$1\"", &file.path()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended =
        in_shell("VERSION=v7 \"$0\" check - < \"$1\" && VERSION=v7 \"$0\" check /dev/stdin < \"$1\"", &file.path())
            .await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = in_shell("\"$0\" check - < \"$1\"", &file.path()).await;
    mistakes(&ended, 1, "standard input:1:");
    assert!(ended.stderr.contains("the environment variable VERSION is not set"), "{ended:?}");
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
    let file = File::of(&json!({ "etcd": { "endpoints": [NOBODY] }, "services": [greeter()] }).to_string());
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
}

#[tokio::test]
async fn name_and_version_of_a_service_are_those_of_its_component() {
    let world = World::real().await;
    let named =
        with(service("greeter", "greeter"), json!({ "name": "greeting", "version": "v7", "config": Value::Null }));
    let file = File::of(&config(&world, [named.clone()]).to_string());
    let host = Host::of(&world, [named]).await;
    let key = format!("/greeting/v7/{}", host.addr("greeting"));
    assert!(world.get(&key).await.is_some(), "{key}");
    assert_eq!(host.stop().await.code, Some(0));
    let explained = leasehold(["explain", &file.path()]).await;
    assert_eq!(explained.code, Some(0), "{explained:?}");
}
