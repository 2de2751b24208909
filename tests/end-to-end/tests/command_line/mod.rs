//! The command line: each mistake is one sentence and an exit code, and leaves nothing behind.

mod check;
mod etcd_errors;
mod inspect;
mod ls;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use leasehold_end_to_end::{
    Ended, Host, Program,
    config::{config, endpoint, greeter, plain, service, with},
    http::get,
    paths,
};
use leasehold_scenarios::world::World;
use serde_json::{Value, json};
use tempfile::TempDir;

/// An address without a listener: the port of the discard protocol.
pub(crate) const UNREACHABLE: &str = "http://127.0.0.1:9";

/// Runs the binary to its end, in a folder that must stay empty.
pub(crate) async fn leasehold<const N: usize>(arguments: [&str; N]) -> Ended {
    let folder = TempDir::new().unwrap();
    let ended = Program::spawn(&paths::leasehold(), arguments, folder.path()).ends().await;
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{arguments:?} left {left:?}");
    ended
}

/// Asserts that the process ended with that code and one sentence, which starts with `start`; with `run`, behind the line
/// that says what runs.
#[track_caller]
pub(crate) fn one_sentence(ended: &Ended, code: i32, start: &str) {
    assert_eq!(ended.code, Some(code), "{start}: {ended:?}");
    let sentences: Vec<_> = ended.stderr.lines().filter(|line| !line.contains(" INFO leasehold starts ")).collect();
    assert_eq!(sentences.len(), 1, "{start}: {ended:?}");
    assert!(sentences[0].starts_with(&format!("leasehold: {start}")), "{start}: {ended:?}");
}

/// A configuration file in a folder of its own.
pub(crate) struct File {
    folder: TempDir,
}

impl File {
    pub(crate) fn of(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("services.yaml"), text).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> String {
        self.folder.path().join("services.yaml").display().to_string()
    }

    pub(crate) fn beside(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

pub(crate) fn component(name: &str) -> String {
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
        (
            format!("{smallest}    memroy: 5\n"),
            1,
            ":5:5: unknown key \"memroy\"; did you mean \"memory\" under limits?",
        ),
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
    host.event("ready").await;
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
        (with(greeter(), json!({ "component": code })), "machine code is not sandboxed"),
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
pub(crate) async fn in_shell(script: &str, argument: &str) -> Ended {
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
