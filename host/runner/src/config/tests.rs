//! What a configuration file may say, and what is said of one that is wrong.

use std::{path::Path, time::Duration};

use leasehold::{LoadSource, Ownership};
use leasehold_wasmtime::Names;

use super::{Config, Probe, Quarantine, Register};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("c.yaml", text, Path::new("/conf"))
}

fn error(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert!(!error.contains('\n'), "{error}");
    error
}

const SMALLEST: &str = "services:\n  - name: greeter\n    component: greeter.wasm\n    listen: 127.0.0.1:10002\n";

fn with(lines: &str) -> String {
    format!("{SMALLEST}{lines}")
}

#[test]
fn the_smallest_file_has_defaults() {
    let config = parse(SMALLEST).unwrap();
    assert_eq!(config.registrar.endpoints, ["http://127.0.0.1:2379"]);
    assert!(!config.etcd_required);
    let [spec] = config.services.as_slice() else { panic!("one service") };
    assert_eq!(spec.component, Path::new("/conf/greeter.wasm"));
    assert_eq!(spec.register, Register::Component);
    assert_eq!(spec.advertised(spec.listen).unwrap().as_str(), "127.0.0.1:10002");
    assert_eq!(spec.limits.memory, 64 << 20);
    assert!(matches!(&spec.allow.names, Names::Only(names) if names == std::slice::from_ref(&spec.name)));
    assert!(matches!(&spec.allow.discover, Names::Only(names) if names.is_empty()));
}

#[test]
fn every_key_has_its_place() {
    let config = parse(
        r#"
etcd:
  endpoints: [http://10.0.0.1:2379, "http://10.0.0.2:2379/"]
  dial_timeout: 1s
  request_timeout: 2500ms
  user: root
  password: 12345
  tls: { server_name: etcd.local }
  required: true
admin: { listen: 10.0.0.9:9090, remote: true }
registry: { layout: seed, ttl: 1m, ownership: refuse, weight: { fixed: 50, dead_band: 3, min_interval: 20s } }
services:
  - name: greeter
    component: /abs/greeter.wasm
    listen: 0.0.0.0:10002
    advertise: 10.0.0.9:10002
    version: v1
    register: host
    config: { greeting: hello, number: 5, flag: true }
    env: { LANG: C }
    allow: { names: [greeter, other], discover: ["*"], outbound: [api.example, "[::1]:8080"] }
    limits: { memory: 16MiB, request_timeout: 3s, concurrency: 7, start_timeout: 4s, stop_timeout: 5s, settle_time: 50ms, drain_timeout: 6s,
              connections: 8, header_size: 9KiB, body_size: 10KiB, client_timeout: 11s, instance_requests: 12, instance_concurrency: 13,
              stream_timeout: 14m, outgoing: 15, nodes: 16, output_lines: 17 }
    health: { path: /healthz?deep=1, interval: 5s, fall: 7, panic_threshold: 34%, withdraw_on_trap: true }
"#,
    )
    .unwrap();
    let options = &config.registrar;
    assert_eq!(options.endpoints, ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]);
    assert_eq!(options.dial_timeout, Duration::from_secs(1));
    assert_eq!(options.request_timeout, Duration::from_millis(2500));
    assert_eq!(options.credentials.as_ref().unwrap().password.read().unwrap(), b"12345");
    assert_eq!(options.ttl.seconds(), 60);
    assert_eq!(options.ownership, Ownership::Refuse);
    assert!(matches!(options.load, LoadSource::Fixed(weight) if weight.value() == 50));
    assert_eq!((options.damping.dead_band, options.damping.min_interval), (3, Duration::from_secs(20)));
    assert!(config.etcd_required);
    assert_eq!(config.admin.unwrap().listen.to_string(), "10.0.0.9:9090");
    let spec = &config.services[0];
    assert_eq!(spec.component, Path::new("/abs/greeter.wasm"));
    assert_eq!(spec.advertised(spec.listen).unwrap().as_str(), "10.0.0.9:10002");
    assert_eq!(spec.register, Register::Host);
    assert_eq!(spec.config.0["number"], "5");
    assert_eq!(spec.config.0["flag"], "true");
    assert!(matches!(spec.allow.discover, Names::Any));
    let outbound: Vec<_> = spec.allow.outbound.iter().map(ToString::to_string).collect();
    assert_eq!(outbound, ["api.example", "[::1]:8080"]);
    assert_eq!((spec.limits.memory, spec.limits.concurrency), (16 << 20, 7));
    let health = spec.health.as_ref().unwrap();
    assert!(matches!(&health.probe, Probe::Http(path) if path == "/healthz?deep=1"));
    assert_eq!((health.interval, health.timeout), (Duration::from_secs(5), Duration::from_secs(1)));
    assert_eq!((health.rise, health.fall), (2, 7));
    let limits = &spec.limits;
    assert_eq!((limits.connections, limits.header_size, limits.body_size), (8, 9 << 10, 10 << 10));
    assert_eq!(limits.client_timeout, Duration::from_secs(11));
    assert_eq!((limits.instance_requests, limits.instance_concurrency), (Some(12), Some(13)));
    assert_eq!((limits.stream_timeout(), limits.outgoing, limits.nodes), (Duration::from_secs(14 * 60), 15, 16));
    assert_eq!(limits.output_lines, 17);
    assert_eq!(spec.quarantine, Quarantine { panic_threshold: 34, withdraw_on_trap: true });
    assert_eq!(spec.limits.settle_time, Duration::from_millis(50));
    assert_eq!(spec.limits.drain_timeout, Duration::from_secs(6));
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let said = error(&with("    memroy: 5\n"));
    assert!(said.starts_with("c.yaml:5: unknown key \"memroy\"; known here: name, component, listen"), "{said}");
    let said = error(&with("    limits:\n      memroy: 5\n"));
    assert!(said.starts_with("c.yaml:6: unknown key \"memroy\"; known here: memory"), "{said}");
    let said = error(&with("colour: red\n"));
    assert!(said.starts_with("c.yaml:5: unknown key \"colour\""), "{said}");
}

#[test]
fn a_bad_value_is_named_with_its_key_and_line() {
    let cases = [
        ("    limits: { memory: 1MiB, request_timeout: 10 }\n", "c.yaml:5: request_timeout: must be a duration"),
        ("    limits:\n      memory: lots\n", "c.yaml:6: memory: must be a size"),
        ("    limits: { concurrency: 0 }\n", "c.yaml:5: concurrency: must be 1 to 100000, not 0"),
        ("    limits: { nodes: 0 }\n", "c.yaml:5: nodes: must be 1 to 100000, not 0"),
        ("    limits: { instance_requests: 0 }\n", "c.yaml:5: instance_requests: must be 1 to 100000, not 0"),
        ("    limits: { header_size: 1KiB }\n", "c.yaml:5: header_size: must be 8KiB to 16MiB"),
        ("    limits: { concurrency: many }\n", "c.yaml:5: concurrency: must be a whole number"),
        ("    health: { interval: 1s }\n", "c.yaml:5: health: needs either path or grpc: true"),
        ("    health: { interval: 1s, panic_threshold: 50% }\n", "c.yaml:5: health: needs either path or grpc: true"),
        ("    health: { panic_threshold: 50 }\n", "c.yaml:5: panic_threshold: must be 0% to 100%"),
        ("    health: { panic_threshold: 101% }\n", "c.yaml:5: panic_threshold: must be 0% to 100%"),
        ("    health: { path: healthz }\n", "c.yaml:5: path: must be a path such as /healthz"),
        ("    health: { path: /, rise: 0 }\n", "c.yaml:5: rise: must be"),
        ("    register: maybe\n", "c.yaml:5: register: must be one of: component, host, off"),
        ("    advertise: 0.0.0.0:80\n", "c.yaml:5: advertise: addr must be an address that a client can dial"),
        ("    version: a/b\n", "c.yaml:5: version must be visible ASCII"),
        ("    config: [a]\n", "c.yaml:5: config: must be"),
        ("registry: { ttl: 500ms }\n", "c.yaml:5: ttl: must be whole seconds"),
        ("registry:\n  layout: consul\n", "c.yaml:6: layout must be one of: seed, grpc-todolist, kratos"),
        (
            "registry:\n  layout: { name: seed, scheme: http }\n",
            "c.yaml:6: layout: scheme has no place in the layout seed",
        ),
        (
            "registry:\n  layout: { key: \"/{name}/{adr}\", value: \"{addr}\" }\n",
            "c.yaml:6: layout: key has the unknown",
        ),
        ("registry:\n  layout: { prefix: /x }\n", "c.yaml:6: layout: needs a name, or a key and a value"),
        ("registry:\n  layout: { nam: kratos }\n", "c.yaml:6: unknown key \"nam\"; known here: name, prefix, scheme"),
        ("registry:\n  layout: [seed, grpc-todolist]\n", "c.yaml:6: layout: layouts must not write the same keys"),
        ("    layout: []\n", "c.yaml:5: layout: layouts must be 1 to 8, not 0"),
        ("    metadata: { zone: b }\n", "c.yaml:5: metadata: is for register: host"),
        ("    register: host\n    metadata: { \"\": b }\n", "c.yaml:6: metadata must not have an empty key"),
        ("registry: { prefer: { zone: a } }\n", "c.yaml:5: prefer: no node has a zone: none of the layouts carries"),
        (
            "registry: { layout: kratos, prefer: { \"\": a } }\n",
            "c.yaml:5: prefer: metadata must not have an empty key",
        ),
        ("registry:\n  weight: { fixed: 101 }\n", "c.yaml:6: fixed: weight must be 1 to 100"),
        ("etcd: { endpoints: [127.0.0.1:2379] }\n", "c.yaml:5: endpoints: must be http://host:port"),
        ("etcd: { endpoints: [] }\n", "c.yaml:5: endpoints: must name at least one"),
        ("etcd:\n  required: maybe\n", "c.yaml:6: required: must be"),
        ("etcd:\n  password: hunter2\n", "c.yaml:6: password: needs etcd.user"),
        ("etcd:\n  user: root\n", "c.yaml:6: user: needs etcd.password"),
        (
            "etcd:\n  user: root\n  password_file: /does/not/exist\n",
            "c.yaml:7: password_file: cannot read /does/not/exist",
        ),
        ("etcd: { tls: { ca: nope.pem } }\n", "c.yaml:5: ca: cannot read /conf/nope.pem"),
        ("etcd: { tls: { key: nope.pem } }\n", "c.yaml:5: key: needs etcd.tls.cert"),
        ("admin: { listen: 0.0.0.0:9090 }\n", "c.yaml:5: listen: whoever reaches 0.0.0.0:9090 could drain services"),
        ("admin: { listen: here }\n", "c.yaml:5: listen: must be an IP address and a port"),
        ("admin: {}\n", "c.yaml:5: the key \"listen\" is missing"),
        ("traces: { endpoint: 127.0.0.1:4317 }\n", "c.yaml:5: endpoint: must be http://host:port"),
        ("traces: { endpoint: \"https://h:4317\" }\n", "c.yaml:5: endpoint: https needs traces.ca"),
        ("traces: { endpoint: \"http://h:4317\", sample: 1.5 }\n", "c.yaml:5: sample: must be from 0 to 1"),
        ("traces: { sample: 1 }\n", "c.yaml:5: the key \"endpoint\" is missing"),
        (
            "traces: { endpoint: \"http://h:4317\", headers_file: nope }\n",
            "c.yaml:5: headers_file: cannot read /conf/nope",
        ),
    ];
    for (lines, start) in cases {
        let said = error(&with(lines));
        assert!(said.starts_with(start), "{lines}: {said}");
    }
}

#[test]
fn layouts_are_named_described_or_listed() {
    let layouts = |text: &str| {
        let config = parse(&with(&format!("registry: {{ layout: {text} }}\n"))).unwrap();
        config.registrar.layouts.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(layouts("kratos"), ["kratos"]);
    assert_eq!(layouts("[seed, { name: kratos, prefix: /x, scheme: http }]"), ["seed", "kratos"]);
    assert_eq!(layouts("{ key: \"/x/{name}/{addr}\", value: \"{addr}\" }"), ["custom"]);
    let own = parse(&with("    layout: kitex\n    register: host\n    metadata: { zone: b }\n")).unwrap();
    assert_eq!(own.services[0].layouts.as_ref().unwrap()[0].to_string(), "kitex");
    assert_eq!(own.services[0].metadata.pairs(), [("zone".to_owned(), "b".to_owned())]);
}

#[test]
fn what_is_preferred_holds_for_every_service() {
    let preferred = |lines: &str| parse(&with(lines)).unwrap().services[0].prefer.pairs().to_vec();
    let pair = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    assert_eq!(preferred("registry: { layout: [seed, kratos], prefer: { zone: a } }\n"), pair("zone", "a"));
    assert_eq!(preferred("registry: { prefer: { version: v2 } }\n"), pair("version", "v2"));
    assert_eq!(preferred("registry: {}\n"), []);
}

#[test]
fn a_missing_key_is_named() {
    let said = error("services:\n  - name: greeter\n    listen: 127.0.0.1:1\n");
    assert!(said.contains("the key \"component\" is missing"), "{said}");
    assert!(said.starts_with("c.yaml:3:"), "{said}");
    let said = error("etcd: {}\n");
    assert!(said.contains("the key \"services\" is missing"), "{said}");
    assert!(error("services: []\n").starts_with("c.yaml:1: services: must list at least one"));
}

#[test]
fn what_is_not_yaml_is_said_with_its_line() {
    let said = error("services:\n  - name: [\n");
    assert!(said.starts_with("c.yaml:"), "{said}");
    assert!(error("").starts_with("c.yaml"));
    assert!(error("- a\n").starts_with("c.yaml:1"));
}

#[test]
fn a_bad_listener_is_refused() {
    let service = |listen: &str, more: &str| {
        format!("services:\n  - name: a\n    component: a.wasm\n    listen: {listen}\n{more}")
    };
    assert!(error(&service("localhost:80", "")).starts_with("c.yaml:4: listen: must be an IP address and a port"));
    let wildcard = error(&service("0.0.0.0:80", ""));
    assert!(wildcard.starts_with("c.yaml:4: listen: no client can dial 0.0.0.0:80"), "{wildcard}");
    assert!(parse(&service("0.0.0.0:80", "    register: off\n")).is_ok());
    assert!(parse(&service("\"[::]:80\"", "    advertise: a:80\n")).is_ok());
    assert!(parse(&service("127.0.0.1:0", "")).is_ok());
}

#[test]
fn two_services_share_neither_listener_nor_key() {
    let two = |name: &str, listen: &str, more: &str| {
        with(&format!("  - name: {name}\n    component: b.wasm\n    listen: {listen}\n{more}"))
    };
    assert!(parse(&two("other", "127.0.0.1:10003", "")).is_ok());
    let said = error(&two("other", "127.0.0.1:10002", ""));
    assert_eq!(said, "c.yaml:7: listen: 127.0.0.1:10002 is the listener of line 4 already");
    let said = error(&two("greeter", "127.0.0.1:10003", "    advertise: 127.0.0.1:10002\n"));
    assert_eq!(said, "c.yaml:5: name: greeter at 127.0.0.1:10002 is the service of line 2 already");
}

#[test]
fn headers_for_traces_stand_in_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let traces = format!("traces: {{ endpoint: \"http://h:4317\", headers_file: {} }}\n", file.path().display());
    std::fs::write(file.path(), "x-token: hunter2\r\n\nauthorization:Bearer hunter2\n").unwrap();
    let config = parse(&with(&traces)).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let read = config.traces.unwrap();
    let headers = super::parse_headers(&read.headers.unwrap().read().unwrap()).unwrap();
    assert_eq!(
        (&headers["x-token"], &headers["authorization"]),
        (&"hunter2".parse().unwrap(), &"Bearer hunter2".parse().unwrap())
    );
    assert_eq!(read.sample, 1.0);
    std::fs::write(file.path(), "x-token: hunter2\nhunter2\n").unwrap();
    let said = error(&with(&traces));
    assert!(said.contains("headers_file: line 2 of ") && said.ends_with(" must be NAME: VALUE"), "{said}");
}

#[test]
fn a_secret_is_shown_by_nothing() {
    let config = parse(&with("    config: { token: hunter2 }\netcd: { user: root, password: hunter2 }\n")).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    for bad in [
        "etcd: { user: root, password: [hunter2] }\n",
        "etcd:\n  user: root\n  password: hunter2\n  pasword: hunter2\n",
        "etcd: { user: root, password:hunter2 }\n",
        "etcd: { endpoints: [\"http://root:hunter2@h:2379\"] }\n",
        "etcd: { user: root, password: hunter2, required: hunter3 }\n",
        "    config: { token: [hunter2] }\n",
        "traces: { endpoint: \"http://root:hunter2@h:4317\" }\n",
    ] {
        let said = error(&with(bad));
        assert!(!said.contains("hunter2"), "{said}");
    }
}
