//! The acts: each one call, or a few, that a host must survive and answer well.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use wasip2::http::types::Fields;

use crate::{
    bindings::leasehold::registry::{
        discovery,
        registrar::{self, Registration},
        types::{Error, ServerNode, State},
    },
    config,
};

/// An act's good end, in words a test can compare.
pub(crate) type Outcome = Result<String, Error>;

/// The counts that this instance has told.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Does the act of that name. Some never return, and say so before.
#[expect(clippy::print_stdout, reason = "the host's log is where they say it")]
pub(crate) fn act(name: &str) -> Outcome {
    match name {
        "" | "idle" => Ok(String::new()),

        "register" => register(&own()).map(|registration| registration.key()),
        "foreign-name" => refused(&ServerNode { name: "somebody-else".into(), ..own() }),
        "foreign-addr" => refused(&ServerNode { addr: "192.0.2.1:80".into(), ..own() }),
        "slash-in-name" => refused(&ServerNode { name: "a/b".into(), ..own() }),
        "empty-name" => refused(&ServerNode { name: String::new(), ..own() }),
        "no-port" => refused(&ServerNode { addr: "127.0.0.1".into(), ..own() }),
        "wildcard" => refused(&ServerNode { addr: "0.0.0.0:8080".into(), ..own() }),
        "huge-metadata" => refused(&ServerNode { metadata: vec![("k".into(), "v".repeat(2 << 20))], ..own() }),
        "weight-0" => refused(&ServerNode { weight: Some(0), ..own() }),
        "weight-101" => refused(&ServerNode { weight: Some(101), ..own() }),
        "ttl-max" => registrar::register(&own(), u32::MAX).map(|registration| registration.key()),
        "thousand" => thousand(),
        "twice" => twice(),
        "register-mark" => register_mark(),
        "change-of-mind" => change_of_mind(),
        "stop-twice" => stop_twice(),
        "weight-after-stop" => weight_after_stop(),
        "node-after-stop" => node_after_stop(),
        _ if name.starts_with("resolve/") => resolve(&name["resolve/".len()..]),
        _ if name.starts_with("sees/") => sees(&name["sees/".len()..]),
        "resolve-foreign" => discovery::resolve("somebody-else", "").map(|nodes| nodes.len().to_string()),

        "trap" => panic!("told to trap"),
        "spin" => {
            println!("spinning");
            loop {
                black_box(());
            }
        }
        "sleep" => {
            println!("sleeping");
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        }
        "sleep-late" if second("sleep_from") <= now() => act("sleep"),
        "sleep-late" => Ok(String::new()),
        "slow" => {
            thread::sleep(Duration::from_secs(2));
            Ok("slow".into())
        }
        "count" => Ok(COUNT.fetch_add(1, Ordering::Relaxed).to_string()),
        "flood" => Ok("flood ".repeat(4 << 20)),
        "grow" => grow(),
        "hoard" => hoard(),
        "tide" => tide(),
        "current" => Ok(current()),
        "fail" => Err(Error::Other("told to fail".into())),
        "register-and-trap" => {
            register(&own())?;
            panic!("told to trap");
        }
        "register-and-fail" => {
            register(&own())?;
            Err(Error::Other("told to fail".into()))
        }
        unknown => Err(Error::Other(format!("no act is named {unknown:?}"))),
    }
}

/// A node that this component may register: its configured name, and its host's address.
fn own() -> ServerNode {
    ServerNode {
        name: config("name").unwrap_or_else(|| "hostile".into()),
        addr: String::new(),
        version: String::new(),
        weight: None,
        metadata: vec![],
    }
}

fn register(node: &ServerNode) -> Result<Registration, Error> {
    registrar::register(node, 10)
}

/// A node that the host must not take; the key, where it does.
fn refused(node: &ServerNode) -> Outcome {
    register(node).map(|registration| registration.key())
}

/// Registers until the host has had enough.
fn thousand() -> Outcome {
    for i in 0..1000 {
        register(&ServerNode { version: format!("v{i}"), ..own() })?;
    }
    Ok("1000".into())
}

/// The number of registrations, and the weight, after registering one key twice.
fn twice() -> Outcome {
    let first = register(&own())?;
    let second = register(&ServerNode { weight: Some(42), ..own() })?;
    let same = first.key() == second.key();
    Ok(format!("{} {same} {}", registrar::current().len(), first.status().weight))
}

/// What tests change in the component's file, to have another version of it.
static MARK: &str = "leasehold-mark-1";

/// Registers with the mark, and fails then where that ends with a 9.
fn register_mark() -> Outcome {
    let mark = black_box(MARK);
    register(&ServerNode { metadata: vec![("mark".into(), mark.into())], ..own() })?;
    if mark.ends_with('9') { Err(Error::Other("told to fail".into())) } else { Ok(mark.into()) }
}

/// The number of registrations, and version and metadata, after registering another node under the same key.
fn change_of_mind() -> Outcome {
    let node = |version: &str, zone: &str| ServerNode {
        version: version.into(),
        metadata: vec![("zone".into(), zone.into())],
        ..own()
    };
    register(&node("v1", "a"))?;
    let node = register(&node("v2", "b"))?.node();
    Ok(format!("{} {} {}", registrar::current().len(), node.version, node.metadata[0].1))
}

/// Whether the registration is stopped, and how many are left, after stopping it twice.
fn stop_twice() -> Outcome {
    let registration = register(&own())?;
    registration.stop()?;
    registration.stop()?;
    let stopped = registration.status().state == State::Stopped;
    Ok(format!("{stopped} {}", registrar::current().len()))
}

fn weight_after_stop() -> Outcome {
    let registration = register(&own())?;
    registration.stop()?;
    registration.set_weight(50)?;
    Ok("set".into())
}

/// What a handle tells after the end must not trap.
fn node_after_stop() -> Outcome {
    let registration = register(&own())?;
    registration.stop()?;
    Ok(format!("{} {}", registration.key(), registration.node().name))
}

/// The nodes of `NAME` or `NAME/VERSION`, a line each.
fn resolve(what: &str) -> Outcome {
    let (name, version) = what.split_once('/').unwrap_or((what, ""));
    let nodes = discovery::resolve(name, version)?;
    let line = |node: &ServerNode| {
        format!("{} {} {} {:?} {:?}", node.name, node.version, node.addr, node.weight, node.metadata)
    };
    Ok(nodes.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Whether one of the nodes of `NAME` that it is given has `PORT`; of `NAME/PORT`.
fn sees(what: &str) -> Outcome {
    let (name, port) = what.split_once('/').unwrap_or((what, ""));
    let port = format!(":{port}");
    let nodes = discovery::resolve(name, "")?;
    Ok(nodes.iter().any(|node| node.addr.ends_with(&port)).to_string())
}

/// Traps from one second of the configuration until another.
fn tide() -> Outcome {
    if (second("ill_from")..second("ill_until")).contains(&now()) {
        panic!("told to trap");
    }
    Ok(String::new())
}

/// A second that the configuration names.
fn second(key: &str) -> u64 {
    config(key).and_then(|second| second.parse().ok()).unwrap_or(0)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What this component has registered: how many, and how the first stands.
fn current() -> String {
    let all = registrar::current();
    let state = all.first().map(|first| first.status().state);
    format!("{} {state:?}", all.len())
}

/// Has the host keep headers until it has had enough.
fn hoard() -> Outcome {
    let (value, mut hoard) = (vec![b'x'; 16 << 10], Vec::new());
    loop {
        let fields = Fields::new();
        while fields.append("x-hoard", &value).is_ok() {}
        hoard.push(fields);
    }
}

/// Takes memory until there is none.
fn grow() -> Outcome {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; 1 << 20]));
    }
}
