//! Configuration files: their meaning, and the errors of wrong ones.

use std::{path::Path, time::Duration};

use leasehold::{LoadSource, Ownership};
use leasehold_wasmtime::Names;

use super::{
    AccessFormat, Config, Limits, Logged, Probe, Quarantine, Register,
    file::File,
    mistake::Mistakes,
    rule::{Absent, Reading, Rule, Shape},
    tree::Node,
};
use crate::error::Failure;

fn environment(name: &str) -> Option<String> {
    match name {
        "IP" => Some("10.0.0.9".to_owned()),
        "TOKEN" => Some("hunter2".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, Mistakes> {
    Config::parse_in("c.yaml", text, Path::new("/conf"), environment)
}

/// The sentences of all mistakes, on one line.
fn errors(text: &str) -> String {
    let error = parse(text).expect_err(text).to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// The sentence of the first mistake, without its column.
fn error(text: &str) -> String {
    let error = errors(text);
    let (file, line, rest) = {
        let mut parts = error.splitn(3, ':');
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
    };
    let message = rest.split_once(": ").map_or(rest, |(_, message)| message);
    format!("{file}:{line}: {message}")
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
    access_log: { log: all, format: combined, sample: 0.5, query: true, lines: 18 }
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
    let super::Admin::Tcp(admin) = config.admin else { panic!("an address") };
    assert_eq!(admin.listen.to_string(), "10.0.0.9:9090");
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
    let access_log = spec.access_log;
    assert_eq!((access_log.log, access_log.format), (Logged::All, AccessFormat::Combined));
    assert!(access_log.query && (access_log.sample, access_log.lines) == (0.5, 18));
    assert_eq!(spec.quarantine, Quarantine { panic_threshold: 34, withdraw_on_trap: true });
    assert_eq!(spec.limits.settle_time, Duration::from_millis(50));
    assert_eq!(spec.limits.drain_timeout, Duration::from_secs(6));
}

#[test]
fn an_access_log_is_a_word_or_a_map() {
    let of = |lines: &str| parse(&with(lines)).unwrap().services[0].access_log;
    assert_eq!((of("").log, of("").format, of("").lines), (Logged::Errors, AccessFormat::Log, 1000));
    assert_eq!(of("    access_log: off\n").log, Logged::Off);
    let map = of("    access_log: { format: json }\n");
    assert_eq!((map.log, map.format), (Logged::Errors, AccessFormat::Json));
    let defaults = parse(&format!(
        "defaults: {{ access_log: {{ log: all, sample: 0 }} }}\n{}",
        with("    access_log: { lines: 5 }\n")
    ));
    let merged = defaults.unwrap().services[0].access_log;
    assert_eq!((merged.log, merged.sample, merged.lines), (Logged::All, 0.0, 5));
    let merged = |default: &str, own: &str| {
        let text = format!("defaults: {{ access_log: {default} }}\n{}", with(&format!("    access_log: {own}\n")));
        parse(&text).unwrap().services[0].access_log
    };
    let word_first = merged("all", "{ format: json }");
    assert_eq!((word_first.log, word_first.format), (Logged::All, AccessFormat::Json));
    let map_first = merged("{ log: all, format: json }", "off");
    assert_eq!((map_first.log, map_first.format), (Logged::Off, AccessFormat::Json));
    assert_eq!(merged("all", "off").log, Logged::Off);
    assert_eq!(merged("all", "").log, Logged::Errors);
    assert_eq!(
        error(&with("    access_log: true\n")),
        "c.yaml:5: access_log: must be one of: off, errors, all; not \"true\""
    );
    assert_eq!(error(&with("    access_log: [all]\n")), "c.yaml:5: access_log: must be a single choice");
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let said = error(&with("    memroy: 5\n"));
    assert!(said.starts_with("c.yaml:5: unknown key \"memroy\"; did you mean \"memory\" under limits?"), "{said}");
    let said = error(&with("    colour: 5\n"));
    assert!(said.starts_with("c.yaml:5: unknown key \"colour\"; known here: name, component, listen"), "{said}");
    let said = error(&with("    limits:\n      memroy: 5\n"));
    assert_eq!(said, "c.yaml:6: unknown key \"memroy\"; did you mean \"memory\"?");
    let said = error(&with("    memory: 5\n"));
    assert_eq!(said, "c.yaml:5: unknown key \"memory\"; it stands under limits");
    let said = error(&with("etdc: {}\n"));
    assert_eq!(said, "c.yaml:5: unknown key \"etdc\"; did you mean \"etcd\"?");
    let said = error(&with("colour: red\n"));
    assert!(said.starts_with("c.yaml:5: unknown key \"colour\"; known here: include, defaults, etcd"), "{said}");
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
        ("registry:\n  layout: { nam: kratos }\n", "c.yaml:6: unknown key \"nam\"; did you mean \"name\"?"),
        ("registry:\n  layout: [seed, grpc-todolist]\n", "c.yaml:6: layout: layouts must not write the same keys"),
        ("    layout: []\n", "c.yaml:5: layout: layouts must be 1 to 8, not 0"),
        ("    metadata: { zone: b }\n", "c.yaml:5: metadata: is for register: host"),
        ("    register: host\n    metadata: { \"\": b }\n", "c.yaml:6: metadata must not have an empty key"),
        (
            "registry: { calls: [{ timeout: 1s, try_timeout: 2s }] }\n",
            "c.yaml:5: try_timeout: must be at most timeout, which is 1s",
        ),
        (
            "registry: { calls: [{ hedge_after: 2s, try_timeout: 1s }] }\n",
            "c.yaml:5: hedge_after: must be shorter than a try, which takes 1s at most",
        ),
        (
            "registry: { calls: [{ retry_budget: 0% }] }\n",
            "c.yaml:5: retry_budget: permits no retry; say retries: 0 if none is meant",
        ),
        ("registry: { calls: [{}, { retries: 2 }] }\n", "c.yaml:5: service: is missing, and another entry is for all"),
        (
            "registry: { calls: [{ service: user }, { service: [order, user] }] }\n",
            "c.yaml:5: service: another entry is for user already",
        ),
        (
            "registry: { calls: [{ split: [{ version: v2, share: 60% }, { version: v3, share: 50% }] }] }\n",
            "c.yaml:5: split: the shares add up to 110%, which is more than all calls",
        ),
        (
            "registry: { calls: [{ split: [{ version: v2 }] }] }\n",
            "c.yaml:5: version: gets no calls: say its share, or a header",
        ),
        (
            "registry: { calls: [{ split: [{ version: v2, header: canary }] }] }\n",
            "c.yaml:5: header: must be a header such as \"x-canary: 1\"",
        ),
        ("registry: { calls: [{ tls: { ca: c.yaml, cert: c.yaml } }] }\n", "c.yaml:5: ca: cannot read /conf/c.yaml"),
        (
            "    allow: { callers: [shop] }\n",
            "c.yaml:5: callers: needs tls.client_ca: without certificates no caller is known",
        ),
        (
            "registry: { calls: [{ slow_start: never }] }\n",
            "c.yaml:5: slow_start: must be a duration such as 30s, or off, not \"never\"",
        ),
        ("registry: { prefer: { zone: a } }\n", "c.yaml:5: prefer: no node has a zone: none of the layouts carries"),
        (
            "registry: { layout: kratos, prefer: { \"\": a } }\n",
            "c.yaml:5: prefer: metadata must not have an empty key",
        ),
        ("registry:\n  weight: { fixed: 101 }\n", "c.yaml:6: fixed: weight must be 1 to 100"),
        ("etcd: { endpoints: [127.0.0.1] }\n", "c.yaml:5: endpoints: must be host:port, http://host:port or https"),
        ("etcd: { endpoints: [] }\n", "c.yaml:5: endpoints: must name at least one"),
        ("etcd:\n  required: maybe\n", "c.yaml:6: required: must be"),
        ("etcd:\n  password: hunter2\n", "c.yaml:6: password: needs etcd.user"),
        ("etcd:\n  user: root\n", "c.yaml:6: user: needs etcd.password"),
        (
            "etcd:\n  user: root\n  password_file: /does/not/exist\n",
            "c.yaml:7: password_file: cannot read /does/not/exist",
        ),
        ("etcd: { tls: { ca: nope.pem } }\n", "c.yaml:5: ca: cannot read /conf/nope.pem"),
        ("etcd: { tls: { key: /dev/null } }\n", "c.yaml:5: key: needs etcd.tls.cert"),
        (
            "admin: { listen: 0.0.0.0:9090 }\n",
            "c.yaml:5: listen: other machines can reach 0.0.0.0:9090; say admin.remote",
        ),
        ("admin: { listen: unix:run/a.sock }\n", "c.yaml:5: listen: must be unix: and the absolute path of a socket"),
        ("admin: { listen: 127.0.0.1:9090, mode: 0600 }\n", "c.yaml:5: mode: is for a socket (listen: unix:PATH)"),
        ("admin: { mode: 1777 }\n", "c.yaml:5: mode: must be permissions in octal such as 0660"),
        ("admin: { mode: rw }\n", "c.yaml:5: mode: must be permissions in octal such as 0660"),
        ("admin: { token_file: /dev/null }\n", "c.yaml:5: token_file: is for an address (listen: IP:PORT)"),
        (
            "admin: { listen: unix:/a, tls: { cert: a, key: b } }\n",
            "c.yaml:5: tls: is for an address (listen: IP:PORT)",
        ),
        (
            "admin: { listen: 127.0.0.1:1, token_file: /dev/null }\n",
            "c.yaml:5: token_file: /dev/null holds no token of 16",
        ),
        ("admin: { listen: 127.0.0.1:1, token_file: no-such-file }\n", "c.yaml:5: token_file: cannot read "),
        ("metrics: {}\n", "c.yaml:5: the key \"listen\" is missing"),
        ("admin: { listen: here }\n", "c.yaml:5: listen: must be an IP address and a port"),
        ("traces: { endpoint: 127.0.0.1:4317 }\n", "c.yaml:5: endpoint: must be http://host:port"),
        ("    limits: { memory: 64 }\n", "c.yaml:5: memory: must be 64KiB to 4GiB, not \"64\""),
        ("    limits: { memory: 9GiB }\n", "c.yaml:5: memory: must be 64KiB to 4GiB, not \"9GiB\""),
        ("    env: { C: null }\n", "c.yaml:5: C: must be text, in quotes if it looks like something else"),
        ("    config: { a: { b: c } }\n", "c.yaml:5: a: must be text"),
        ("    args: --foo\n", "c.yaml:5: args: must be a list such as [a, b]"),
        ("registry: { weight: 5 }\n", "c.yaml:5: weight: must be a map with keys such as fixed"),
        ("etcd: {}\netcd: {}\n", "c.yaml:6: the key \"etcd\" stands twice; the first is in line 5"),
        ("    advertise: [::]:80\n", "c.yaml:5: "),
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
fn rules_of_calls_are_those_of_the_called_service() {
    let rules = |lines: &str| parse(&with(lines)).unwrap().services[0].calls.clone();
    let default = rules("registry: {}\n");
    let named = |name: &str| name.parse().unwrap();
    let rule = default.of(&named("user"));
    assert_eq!((rule.retries, rule.in_flight, rule.outliers.consecutive), (1, 1000, 5));
    assert_eq!((rule.retry_budget, rule.pick.slow_start), (0.2, Duration::from_secs(30)));
    let some =
        rules("registry: { calls: [{ timeout: 2s }, { service: [user, order], retries: 0, slow_start: off }] }\n");
    assert_eq!(some.of(&named("shop")).timeout, Some(Duration::from_secs(2)));
    for name in ["user", "order"] {
        let rule = some.of(&named(name));
        assert_eq!((rule.timeout, rule.retries, rule.pick.slow_start), (None, 0, Duration::ZERO));
    }
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
    assert!(said.starts_with("c.yaml:2:"), "{said}");
    let said = error("etcd: {}\n");
    assert!(said.contains("the key \"services\" is missing"), "{said}");
    assert!(error("services: []\n").starts_with("c.yaml:1: services: must list at least one"));
}

#[test]
fn what_is_not_yaml_is_said_with_its_line() {
    let said = error("services:\n  - name: [\n");
    assert!(said.starts_with("c.yaml:"), "{said}");
    assert_eq!(error(""), "c.yaml:1: the key \"services\" is missing");
    assert!(error("- a\n").starts_with("c.yaml:1: must be a map with keys such as"));
    for (text, said) in [
        ("services:\n  - name: \"a\n", "a quote is not closed"),
        ("services: [a\n", "the bracket [ is not closed"),
        ("services: {a: b]\n", "the bracket { is closed by ]"),
        ("services:\n\t- name: a\n", "a tab cannot stand here; indent with spaces"),
        ("services: *a\n", "an alias repeats an anchor that does not stand above it"),
        ("etcd: {}\n  user: a\n", "the indentation of this line fits none of the lines above"),
        ("etcd: a: b\n", "a colon cannot stand here; text with a colon and a space needs quotes"),
        ("etcd: @a\n", "'@' cannot begin a value; text that begins with it needs quotes"),
        ("etcd: \"\\q\"\n", "a backslash in double quotes begins an escape"),
        ("etcd: {}\n---\netcd: {}\n", "a second document begins here; a configuration is one"),
        ("etcd: !env USER\n", "a tag such as !name means nothing here"),
        ("? [a]\n: b\n", "a key must be text"),
    ] {
        let found = errors(text);
        assert!(found.contains(said), "{text}: {found}");
    }
}

#[test]
fn a_bad_listener_is_refused() {
    let service = |listen: &str, more: &str| {
        format!("services:\n  - name: a\n    component: a.wasm\n    listen: {listen}\n{more}")
    };
    let named = error(&service("localhost:80", ""));
    assert!(named.starts_with("c.yaml:4: listen: must be an IP address and a port"), "{named}");
    assert!(named.contains("a name may stand for several addresses"), "{named}");
    assert!(error(&service("\":80\"", "")).contains("0.0.0.0:80 is every IPv4 address"));
    assert!(error(&service("\"::1:80\"", "")).contains("IPv6 goes into brackets"));
    assert!(parse(&service("\"[::1]:80\"", "")).is_ok());
    let wildcard = error(&service("0.0.0.0:80", ""));
    assert!(wildcard.starts_with("c.yaml:4: listen: no client can dial 0.0.0.0:80"), "{wildcard}");
    assert!(parse(&service("0.0.0.0:80", "    register: off\n")).is_ok());
    assert!(parse(&service("\"[::]:80\"", "    advertise: a:80\n")).is_ok());
    assert!(parse(&service("127.0.0.1:0", "")).is_ok());
    let free = &parse(&service("0.0.0.0:0", "    advertise: node-1.example:0\n")).unwrap().services[0];
    let bound = "0.0.0.0:4711".parse().unwrap();
    assert_eq!(free.advertised(bound).unwrap().as_str(), "node-1.example:4711");
    assert_eq!(free.advertised(free.listen), None);
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
        let said = parse(&with(bad)).unwrap_err();
        let text = format!("{said} {}", said.text());
        assert!(!text.contains("hunter2") && text.contains(" | "), "{text}");
    }
}

#[test]
fn no_excerpt_shows_a_secret_beside_a_mistake() {
    for bad in [
        "    env: { A: hunter2, B: [c] }\n",
        "    env: { A: hunter2 }    # was hunter2\n    concurency: 1\n",
        "    limts: {} # hunter2\n",
        "    config: { a: \"hunter2\", a: hunter2 }\n",
        "    config: { a: hunter2\n",
        "    config: { token: \"x\n       hunter2: hunter2\n",
        "    args: [--token, hunter2, [x]]\n",
        "    env: { A: b }\r    config: { a: hunter2 }\r    unknwon: 1\n",
        "etcd:\n  password: |\n    hunter2\n  unknwon: 1\n",
        "etcd:\n  password: >-\n    hunter2\n    hunter2\n",
        "etcd: { password: hunter2 }\n",
        "etcd: { user: root, password: hunter2, password_file: /dev/null }\n    ",
        "etcd: { user: root, password hunter2 }\n",
        "etcd: { user: root, password: hunter2, hunter2 }\n",
        "etcd:\n  user: root\n  password: hunter2\n   password: hunter2\n",
        "etcd: { user: root, password: ${TOKEN}, dial_timeout: \"${TOKEN}\" }\n",
        "registry: { ttl: \"${TOKEN}\", ownership: \"${TOKEN}\", layout: \"${TOKEN}\" }\n",
        "etcd: { endpoints: [\"${TOKEN}\"] }\n",
        "etcd: { user: root, password_file: \"${TOKEN}\" }\n",
        "etcd: { user: root, password_file: \"/etc/${TOKEN}\", tls: { ca: \"${TOKEN}\" } }\n",
        "registry: { layout: { name: kratos, scheme: \"/${TOKEN}\" } }\n",
        "registry: { layout: { name: \"${TOKEN}\" } }\n",
        "admin: { listen: \"${TOKEN}\" }\n",
        "    limits: { memory: \"${TOKEN}\", concurrency: \"${TOKEN}\" }\n",
        "    advertise: \"${TOKEN}\"\n    register: \"${TOKEN}\"\n    required: ${TOKEN}\n",
        "    health: { path: \"${TOKEN}\", panic_threshold: \"${TOKEN}\" }\n    allow: { outbound: [\"${TOKEN}!\"] }\n",
    ] {
        let said = parse(&with(bad)).expect_err(bad);
        let text = format!("{said} {}", said.text());
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn an_excerpt_of_a_file_that_is_no_yaml_shows_the_line_unless_it_may_hold_a_secret() {
    for (bad, excerpt) in [
        ("    limits: { memory: 64MiB concurrency: 10 }\n", "    limits: { memory: 64MiB concurrency: 10 }"),
        ("    limits: { memory: 64MiB ]    # was 32MiB\n", "    limits: { memory: 64MiB ]    …"),
        ("    allow: { outbound: [api.example:443 }\n", "    allow: { outbound: [api.example:443 }"),
        ("   register: host\n", "   register: host"),
        ("    config: { greeting: hello ]\n", "    config: { greeting: …"),
        ("etcd: { dial_timeout: 1s, password: hunter2 ]\n", "etcd: { dial_timeout: … password: …"),
    ] {
        let said = parse(&with(bad)).expect_err(bad).text();
        let shown = said.lines().nth(1).and_then(|line| line.split_once(" | ")).expect("an excerpt").1;
        assert_eq!(shown, excerpt, "{said}");
    }
}

#[test]
fn no_mangled_file_shows_a_secret() {
    const TEXT: &str = "\
etcd: { dial_timeout: 1s, password: hunter2 }
services:
  - name: a
    component: a.wasm
    listen: 127.0.0.1:80
    limits: { memory: 64MiB, concurrency: 10 }
    config: { a: hunter2 }
    env:
      B: \"hunter2\"
";
    let places: Vec<_> = TEXT.char_indices().map(|(at, _)| at).collect();
    let inserted = ["{", "}", "[", "]", "\"", "'", ":", ": ", ",", "\n", " ", "\t", "# ", " #", "- ", "|"];
    let mangled = places.iter().flat_map(|at| {
        let (before, rest) = TEXT.split_at(*at);
        let without = format!("{before}{}", &rest[1..]);
        [without].into_iter().chain(inserted.iter().map(move |text| format!("{before}{text}{rest}")))
    });
    for text in mangled {
        let Err(mistakes) = parse(&text) else { continue };
        let said = format!("{mistakes} {}", mistakes.text());
        assert!(!said.contains("hunter2"), "{text}\n{said}");
    }
}

#[test]
fn text_in_the_place_of_a_list_of_arguments_is_not_shown() {
    let said = parse(&with("    args: --token=hunter2\n")).unwrap_err().text();
    assert!(said.contains("args: …") && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_client_of_the_admin_endpoint_names_the_file_that_is_no_yaml() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "admin: { listen: 127.0.0.1:80 ]\n").unwrap();
    let said = Config::load_admin(file.path()).unwrap_err().sentence();
    assert!(said.starts_with(&format!("{}:1:", file.path().display())), "{said}");
}

#[test]
fn all_mistakes_come_at_once_each_with_a_mark() {
    let bad = "    limits: { memory: lots, request_timeout: 10 }\n    regster: host\nadmin: { listen: here }\netcd:\n  user: root\n";
    let said = parse(&with(bad)).unwrap_err();
    assert_eq!(said.count(), "5 mistakes in the configuration");
    assert_eq!(
        said.text(),
        "c.yaml:5:23: memory: must be a size such as 64MiB or 1GiB, not \"lots\"\n  \
           5 |     limits: { memory: lots, request_timeout: … }\n    |                       ^^^^\n\
         c.yaml:5:46: request_timeout: must be a duration such as 500ms, 10s or 1m, not \"10\"\n  \
           5 |     limits: { memory: …, request_timeout: 10 }\n    |                                           ^^\n\
         c.yaml:6:5: unknown key \"regster\"; did you mean \"register\"?\n  \
           6 |     regster: …\n    |     ^^^^^^^\n\
         c.yaml:7:18: listen: must be an IP address and a port such as 127.0.0.1:8080, not \"here\"\n  \
           7 | admin: { listen: here }\n    |                  ^^^^\n\
         c.yaml:9:9: user: needs etcd.password or etcd.password_file\n  \
           9 |   user: root\n    |         ^^^^\n"
    );
}

#[test]
fn a_mistake_in_a_long_line_is_shown_with_what_is_around_it() {
    let services: Vec<_> = (1..100).map(|n| format!("{{name: s{n}, component: c, listen: '127.0.0.1:{n}'}}")).collect();
    let text = format!("{{services: [{}, {{name: b, component: c, listen: here}}]}}", services.join(", "));
    let said = parse(&text).unwrap_err().text();
    assert!(said.lines().all(|line| line.chars().count() < 150), "{said}");
    assert!(said.contains("listen: here}]}"), "{said}");
    let many: String = (0..50).map(|n| format!("x{n}y: 1\n")).collect();
    let said = parse(&with(&many)).unwrap_err();
    assert_eq!(
        (said.count().as_str(), said.text().lines().last()),
        ("50 mistakes in the configuration", Some("and 30 more"))
    );
}

#[test]
fn variables_come_from_the_environment_and_from_files() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file\n").unwrap();
    let config = parse(&with(&format!(
        "    advertise: ${{IP}}:${{PORT:-80}}\n    config: {{ a: \"${{file:{}}}\", b: $$, c: '${{TOKEN}}' }}\n",
        file.path().display()
    )));
    let spec = &config.unwrap().services[0];
    assert_eq!(spec.advertised(spec.listen).unwrap().as_str(), "10.0.0.9:80");
    let values: Vec<_> = spec.config.0.values().map(String::as_str).collect();
    assert_eq!(values, ["from a file", "$", "hunter2"]);
    let said = error(&with("    version: ${VERSION}\n"));
    assert!(said.starts_with("c.yaml:5: the environment variable VERSION is not set"), "{said}");
    let said = error(&with("    limits: { concurrency: \"${IP}\" }\n"));
    assert!(said.ends_with("must be a whole number from 1 to 100000, which ${IP} is not"), "{said}");
}

#[test]
fn defaults_hold_where_a_service_says_nothing() {
    let config = parse(
        "defaults:\n  component: a.wasm\n  listen: 127.0.0.1:0\n  register: host\n  layout: kratos\n  metadata: { zone: a, rack: 1 }\n  \
           limits: { memory: 1MiB, concurrency: 5 }\n  health: { path: / }\n  allow: { discover: [a] }\nx-any: &thing { [a]: ${b} }\n\
         services:\n  - name: a\n  - name: b\n    layout: { key: \"/{name}/{addr}\", value: \"{addr}\" }\n    metadata: { zone: b }\n    \
           limits: { memory: 2MiB, concurrency: ~ }\n    health: ~\n    allow: { discover: [] }\n",
    );
    let said = config.as_ref().err().map(ToString::to_string);
    // A key of the anchor is no text.
    assert!(said.is_some_and(|said| said.contains("a key must be text")));
    let config = parse(
        "defaults:\n  component: a.wasm\n  listen: 127.0.0.1:0\n  register: host\n  layout: kratos\n  metadata: { zone: a, rack: 1 }\n  \
           limits: { memory: 1MiB, concurrency: 5 }\n  health: { path: / }\n  allow: { discover: [a] }\nx-any: &thing { a: \"${b}\" }\n\
         services:\n  - name: a\n  - name: b\n    layout: { key: \"/{name}/{addr}\", value: \"{addr}\" }\n    metadata: { zone: b }\n    \
           limits: { memory: 2MiB, concurrency: ~ }\n    health: ~\n    allow: { discover: [] }\n",
    )
    .unwrap();
    let [a, b] = config.services.as_slice() else { panic!("two") };
    assert_eq!((a.limits.memory, a.limits.concurrency, a.health.is_some()), (1 << 20, 5, true));
    assert_eq!((b.limits.memory, b.limits.concurrency, b.health.is_some()), (2 << 20, 200, false));
    assert_eq!(a.layouts.as_ref().unwrap()[0].to_string(), "kratos");
    assert_eq!(b.layouts.as_ref().unwrap()[0].to_string(), "custom");
    assert_eq!(b.metadata.pairs(), [("rack".to_owned(), "1".to_owned()), ("zone".to_owned(), "b".to_owned())]);
    assert!(matches!(&b.allow.discover, Names::Only(names) if names.is_empty()));
    assert_eq!(a.component, Path::new("/conf/a.wasm"));
    let said = errors(&with("defaults: { name: a, limits: { memory: lots, colour: red }, metadata: { a: b } }\n"));
    for mistake in ["each service has a name of its own", "memory: must be a size", "unknown key \"colour\""] {
        assert!(said.contains(mistake), "{said}");
    }
}

#[test]
fn further_files_bring_services() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let main = "include: [services.d/*.yaml, more]\ndefaults: { limits: { concurrency: 5 } }\n";
    write("services.d/b.yaml", "services:\n  - { name: b, component: b.wasm, listen: '127.0.0.1:2' }\n");
    write("services.d/a.yaml", "x-a: 1\nservices:\n  - { name: a, component: a.wasm, listen: '127.0.0.1:1' }\n");
    write("services.d/a.yaml.bak", "nonsense: [\n");
    write("more/c.yml", "services:\n  - { name: c, component: ../c.wasm, listen: '127.0.0.1:3' }\n");
    let parse = || Config::parse_in("c.yaml", main, folder.path(), environment);
    let config = parse().unwrap();
    let found: Vec<_> = config.services.iter().map(|spec| (spec.name.as_str(), spec.component.clone())).collect();
    let at = |path: &str| folder.path().join(path);
    assert_eq!(found, [("a", at("services.d/a.wasm")), ("b", at("services.d/b.wasm")), ("c", at("more/../c.wasm"))]);
    assert!(config.services.iter().all(|spec| spec.limits.concurrency == 5));
    // One pattern needs no list.
    let config = Config::parse_in("c.yaml", "include: services.d/*.yaml\n", folder.path(), environment).unwrap();
    assert_eq!(config.services.len(), 2);

    write("more/c.yml", "etcd: {}\nservices:\n  - { name: c, component: c.wasm, listen: '127.0.0.1:1' }\n");
    let said = parse().unwrap_err().to_string();
    assert!(said.contains("more/c.yml:1:1: an included file has services and nothing else"), "{said}");
    assert!(said.contains("127.0.0.1:1 is the listener of ") && said.contains("a.yaml:3 already"), "{said}");
    std::fs::remove_dir_all(folder.path().join("more")).unwrap();
    let said = parse().unwrap_err().to_string();
    assert!(said.starts_with("c.yaml:1:30: include: cannot read "), "{said}");
}

#[test]
fn paths_are_relative_to_the_target_of_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real"), folder.path().join("link.yaml"));
    std::fs::create_dir(&real).unwrap();
    std::fs::write(real.join("c.yaml"), SMALLEST).unwrap();
    std::os::unix::fs::symlink("real/c.yaml", &link).unwrap();
    let config = Config::load(&link).unwrap();
    assert_eq!(config.services[0].component, real.join("greeter.wasm"));
}

#[test]
fn name_and_version_reach_a_component_that_registers_itself() {
    let store = |lines: &str| parse(&with(lines)).unwrap().services[0].store().into_iter().collect::<Vec<_>>();
    let pairs =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    assert_eq!(store(""), pairs(&[("name", "greeter")]));
    assert_eq!(store("    version: v1\n"), pairs(&[("name", "greeter"), ("version", "v1")]));
    assert_eq!(
        store("    version: v1\n    config: { name: other, version: v2 }\n"),
        pairs(&[("name", "other"), ("version", "v2")])
    );
    assert_eq!(store("    version: v1\n    register: host\n"), []);
}

#[test]
fn a_password_that_is_written_out_is_noted() {
    let notes = |password: &str| {
        parse(&with(&format!("etcd: {{ user: root, password: {password} }}\n"))).unwrap().notes.join(" ")
    };
    assert_eq!(
        notes("hunter2"),
        "c.yaml:5: the password of etcd is written out; password_file or ${VARIABLE} keeps it apart"
    );
    assert_eq!(notes("\"${TOKEN}\""), "");
}

#[test]
fn defaults_are_those_of_the_registrar() {
    let config = parse(SMALLEST).unwrap();
    let options = leasehold::Options::new(["http://127.0.0.1:2379"]);
    let shown = |options: &leasehold::Options| format!("{options:?}");
    assert_eq!(shown(&config.registrar), shown(&options));
    assert_eq!(&*config.services[0].suffix, super::spec::SUFFIX);
}

/// Each key of a table and of those in it.
fn keys(shape: &Shape, each: &mut impl FnMut(&super::rule::Key)) {
    if let Some(table) = shape.table() {
        for key in &table.keys {
            each(key);
            keys(&key.shape, each);
        }
    }
}

#[test]
fn every_default_obeys_its_rule() {
    let mut reading = Reading::default();
    assert!(Limits::read(&Node::default(), &mut reading).is_some() && reading.mistakes.is_empty());
    keys(&File::shape(), &mut |key| {
        assert!(key.effect.ends_with('.'), "{}: {}", key.name, key.effect);
        assert!(key.absent != Absent::Unset("") || matches!(key.shape, Shape::Table(_)), "{}", key.name);
    });
}

#[test]
fn a_check_finds_components_that_cannot_be_read_with_all_other_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    let text = "services:
  - { name: a, component: missing.wasm, listen: '127.0.0.1:1' }
  - { name: b, component: missing.wasm, listen: '127.0.0.1:2', memroy: 1 }
";
    std::fs::write(&file, text).unwrap();
    let of = |loaded: Result<Config, Failure>| loaded.unwrap_err().sentence();
    let said = of(Config::load_with_components(&file));
    assert!(said.contains("c.yaml:2:27: component: cannot read ") && said.contains("c.yaml:3:27: "), "{said}");
    assert!(said.contains("unknown key \"memroy\""), "{said}");
    // A host reports and retries such a service, and runs the others.
    let said = of(Config::load(&file));
    assert!(!said.contains("cannot read"), "{said}");
}

#[test]
fn a_member_without_a_scheme_is_encrypted_where_others_are() {
    let endpoints = |text: &str| parse(&with(&format!("etcd: {{ endpoints: {text} }}\n"))).unwrap().registrar.endpoints;
    assert_eq!(endpoints("[a:1, 'http://b:2']"), ["http://a:1", "http://b:2"]);
    assert_eq!(endpoints("[a:1, 'https://b:2']"), ["https://a:1", "https://b:2"]);
}

#[test]
fn a_name_in_the_store_that_may_not_be_registered_is_noted() {
    let notes = |more: &str| parse(&with(more)).unwrap().notes.join(" ");
    let note = "config.name is other, and the component may not register that: allow.names permits greeter";
    assert!(notes("    config: { name: other }\n").contains(note));
    assert_eq!(notes("    config: { name: greeter }\n"), "");
    assert_eq!(notes("    config: { name: other }\n    register: host\n"), "");
    assert_eq!(notes("    config: { name: other }\n    allow: { names: [other] }\n"), "");
}
