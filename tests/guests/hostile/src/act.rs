//! The acts: each is one call, or a few calls, that a host must survive and handle well.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use wasip2::{http::types::Fields, random::random::get_random_bytes};

use crate::{
    bindings::{
        leasehold::registry::{
            discovery,
            registrar::{self, Registration},
        },
        types::{Error, ServerNode, State},
    },
    config,
};

/// Result of an act, as text that a test can compare.
pub(crate) type Outcome = Result<String, Error>;

/// Lines of one act, more than a component may print at once.
const CHATTER: u32 = 5000;

/// Number of counts that this instance has returned.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Runs the act of that name. Some acts never return; they print a line first.
#[expect(clippy::print_stdout, reason = "the line goes to the host's log")]
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
        "churn" => churn(),
        "twice" => twice(),
        "register-mark" => register_mark(),
        "change-of-mind" => change_of_mind(),
        "stop-twice" => stop_twice(),
        "weight-after-stop" => weight_after_stop(),
        "node-after-stop" => node_after_stop(),
        _ if name.starts_with("resolve/") => resolve(&name["resolve/".len()..]),
        _ if name.starts_with("sees/") => sees(&name["sees/".len()..]),
        _ if name.starts_with("lookups/") => lookups(&name["lookups/".len()..]),
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
        "once" => match COUNT.fetch_add(1, Ordering::Relaxed) {
            0 => Ok("once".into()),
            _ => panic!("told to answer once"),
        },
        "chatter" => {
            (0..CHATTER).for_each(|line| println!("line {line}"));
            Ok(CHATTER.to_string())
        }
        "fill" => Ok(black_box(vec![1_u8; 40_000_000]).len().to_string()),
        "random" => loop {
            black_box(get_random_bytes(4 << 20));
        },
        "flood" => Ok("flood ".repeat(4 << 20)),
        "grow" => grow(),
        "hoard" => hoard(),
        "hoard-handles" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(Fields::new());
            }
        }
        "tide" => tide(),
        "current" => Ok(current()),
        "fail-in-red" => Err(Error::Other("told to \x1b[31mfail\x07\u{202e}".into())),
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

/// Registers a node that the host must refuse; returns the key if the host accepts the node.
fn refused(node: &ServerNode) -> Outcome {
    register(node).map(|registration| registration.key())
}

/// Registers until the host refuses.
fn thousand() -> Outcome {
    for i in 0..1000 {
        register(&ServerNode { version: format!("v{i}"), ..own() })?;
    }
    Ok("1000".into())
}

/// Registers and stops until the host refuses.
fn churn() -> Outcome {
    for _ in 0..10_000 {
        register(&own())?.stop()?;
    }
    Ok("10000".into())
}

/// Looks up that many unregistered services, and the first of them once more.
fn lookups(count: &str) -> Outcome {
    for number in (0..count.parse().unwrap_or(0)).chain([0]) {
        discovery::resolve(&format!("unregistered-{number}"), "")?;
    }
    Ok(count.into())
}

/// The number of registrations, and the weight, after registering one key twice.
fn twice() -> Outcome {
    let first = register(&own())?;
    let second = register(&ServerNode { weight: Some(42), ..own() })?;
    let same = first.key() == second.key();
    Ok(format!("{} {same} {}", registrar::current().len(), first.status().weight))
}

/// Marker that tests change in the component's file, to get another version of the component.
static MARK: &str = "leasehold-mark-1";

/// Registers with the mark, and then fails if the mark ends with a 9.
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

/// State of the registration, and the number of registrations, after stopping it twice.
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

/// Reads a handle after the end, which must not trap.
fn node_after_stop() -> Outcome {
    let registration = register(&own())?;
    registration.stop()?;
    Ok(format!("{} {}", registration.key(), registration.node().name))
}

/// The nodes of `NAME` or `NAME/VERSION`, one per line.
fn resolve(what: &str) -> Outcome {
    let (name, version) = what.split_once('/').unwrap_or((what, ""));
    let nodes = discovery::resolve(name, version)?;
    let line = |node: &ServerNode| {
        format!("{} {} {} {:?} {:?}", node.name, node.version, node.addr, node.weight, node.metadata)
    };
    Ok(nodes.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Checks if a resolved node of `NAME` has `PORT`; the argument is `NAME/PORT`.
fn sees(what: &str) -> Outcome {
    let (name, port) = what.split_once('/').unwrap_or((what, ""));
    let port = format!(":{port}");
    let nodes = discovery::resolve(name, "")?;
    Ok(nodes.iter().any(|node| node.addr.ends_with(&port)).to_string())
}

/// Traps between two seconds of the configuration.
fn tide() -> Outcome {
    if (second("ill_from")..second("ill_until")).contains(&now()) {
        panic!("told to trap");
    }
    Ok(String::new())
}

/// Point in time from the configuration, in seconds.
fn second(key: &str) -> u64 {
    config(key).and_then(|second| second.parse().ok()).unwrap_or(0)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Number of this component's registrations, and the state of the first.
fn current() -> String {
    let all = registrar::current();
    let state = all.first().map(|first| first.status().state);
    format!("{} {state:?}", all.len())
}

/// Makes the host keep headers until it traps.
fn hoard() -> Outcome {
    let (value, mut hoard) = (vec![b'x'; 16 << 10], Vec::new());
    loop {
        let fields = Fields::new();
        while fields.append("x-hoard", &value).is_ok() {}
        hoard.push(fields);
    }
}

/// Allocates memory until the allocation fails.
fn grow() -> Outcome {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; 1 << 20]));
    }
}
