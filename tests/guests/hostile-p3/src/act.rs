//! The acts: each is a few calls that a host must survive and handle well.

use std::{
    cell::{Cell, RefCell},
    future::{pending, poll_fn},
    hint::black_box,
    mem::forget,
    rc::Rc,
    task::Poll,
};

use wit_bindgen::{StreamReader, StreamResult, spawn_local};

use crate::{
    bindings::{
        leasehold::registry::{
            async_discovery::{self, Snapshot},
            async_registrar,
            registrar::{self, Registration},
            registry_types::{Error, ServerNode},
        },
        wasi::clocks::monotonic_clock::wait_for,
    },
    config,
};

/// Result of an act, as text that a test can compare.
pub(crate) type Outcome = Result<String, Error>;

/// Pause of an act that waits for others, in nanoseconds.
const TICK: u64 = 10_000_000;
/// Time for which an act shows what it has open.
const SHOWN: u64 = 3_000_000_000;
/// Length of what is much too long, in bytes.
const HUGE: usize = 2 << 20;

/// Runs the act of that name. Some acts never return.
pub(crate) async fn act(name: &str) -> Outcome {
    let (verb, argument) = name.split_once('/').unwrap_or((name, ""));
    match verb {
        "" | "idle" => Ok(String::new()),

        "register" => Ok(register(&own()).await?.key()),
        "foreign-name" => refused(ServerNode { name: "somebody-else".into(), ..own() }).await,
        "foreign-addr" => refused(ServerNode { addr: "192.0.2.1:80".into(), ..own() }).await,
        "empty-name" => refused(ServerNode { name: String::new(), ..own() }).await,
        "huge-name" => refused(ServerNode { name: "n".repeat(HUGE), ..own() }).await,
        "zero-in-name" => refused(ServerNode { name: "host\0ile".into(), ..own() }).await,
        "huge-version" => refused(ServerNode { version: "v".repeat(HUGE), ..own() }).await,
        "huge-addr" => refused(ServerNode { addr: format!("{}:80", "a".repeat(HUGE)), ..own() }).await,
        "wildcard" => refused(ServerNode { addr: "[::]:8080".into(), ..own() }).await,
        "huge-metadata" => refused(ServerNode { metadata: vec![("k".into(), "v".repeat(HUGE))], ..own() }).await,
        "many-metadata" => {
            let metadata = (0..100_000).map(|number| (number.to_string(), String::new())).collect();
            refused(ServerNode { metadata, ..own() }).await
        }
        "weight-0" => refused(ServerNode { weight: Some(0), ..own() }).await,
        "ttl-max" => Ok(async_registrar::register(own(), u32::MAX).await?.key()),
        "thousand" => thousand().await,
        "at-once" => at_once(argument.parse().unwrap_or(1)).await,
        "dropped" => dropped(argument.parse().unwrap_or(1)).await,
        "churn" => churn().await,
        "stop-twice" => stop_twice().await,
        "stop-dropped" => stop_dropped().await,
        "weights" => weights().await,
        "weight-after-stop" => {
            let registration = register(&own()).await?;
            async_registrar::stop(&registration).await?;
            async_registrar::set_weight(&registration, 50).await.map(|()| "set".into())
        }
        "handles" => loop {
            forget(registrar::current());
        },
        "register-and-trap" => {
            register(&own()).await?;
            panic!("told to trap");
        }
        "begin-and-trap" => {
            for number in 0..50 {
                spawn_local(async move { drop(register(&version(number)).await) });
            }
            // The calls have begun.
            wait_for(1).await;
            panic!("told to trap");
        }
        "register-and-fail" => {
            register(&own()).await?;
            Err(Error::Other("told to fail".into()))
        }

        "resolve" => Ok(async_discovery::resolve(argument.into(), String::new()).await?.len().to_string()),
        "nonsense" => nonsense().await,
        "lookups" => lookups(argument.parse().unwrap_or(0)).await,
        "linger" => linger(argument).await,
        "watches" => watches(argument).await,
        "unread" => unread(argument).await,
        "reopen" => reopen(argument).await,
        "read-nothing" => read_nothing(argument).await,
        "read-dropped" => read_dropped(argument).await,

        "trap" => panic!("told to trap"),
        "forever" => {
            wait_for(u64::MAX).await;
            pending().await
        }
        "spin" => loop {
            black_box(());
        },
        unknown => Err(Error::Other(format!("no act is named {unknown:?}"))),
    }
}

/// A node that this component may register: its configured name, and its host's address.
fn own() -> ServerNode {
    ServerNode {
        name: config("name").unwrap_or_else(|| "hostile-p3".into()),
        addr: String::new(),
        version: String::new(),
        weight: None,
        metadata: vec![],
    }
}

fn version(number: usize) -> ServerNode {
    ServerNode { version: format!("v{number}"), ..own() }
}

async fn register(node: &ServerNode) -> Result<Registration, Error> {
    async_registrar::register(node.clone(), 10).await
}

/// Registers a node that the host must refuse; returns the key if the host accepts the node.
async fn refused(node: ServerNode) -> Outcome {
    Ok(async_registrar::register(node, 10).await?.key())
}

/// Registers until the host refuses.
async fn thousand() -> Outcome {
    for number in 0..1000 {
        register(&version(number)).await?;
    }
    Ok("1000".into())
}

/// Begins that many registrations before any has ended, and counts those that the host accepted.
async fn at_once(count: usize) -> Outcome {
    let (accepted, left) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(count)));
    let reasons = Rc::new(RefCell::new(Vec::new()));
    for number in 0..count {
        let (accepted, left, reasons) = (accepted.clone(), left.clone(), reasons.clone());
        spawn_local(async move {
            match register(&version(number)).await {
                Ok(_) => accepted.set(accepted.get() + 1),
                Err(error) => reasons.borrow_mut().push(error),
            }
            left.set(left.get() - 1);
        });
    }
    while left.get() > 0 {
        wait_for(TICK).await;
    }
    let is_quota = reasons.borrow().iter().all(|error| matches!(error, Error::QuotaExceeded(_)));
    Ok(format!("{} {is_quota}", accepted.get()))
}

/// Begins that many registrations and drops each call at once.
async fn dropped(count: usize) -> Outcome {
    for number in 0..count {
        let node = version(number);
        begun(register(&node)).await;
    }
    Ok(registrar::current().len().to_string())
}

/// Begins a call, and drops it unless it is complete.
async fn begun<T>(call: impl Future<Output = T>) -> Option<T> {
    let mut call = std::pin::pin!(call);
    poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Registers and stops until the host refuses.
async fn churn() -> Outcome {
    for _ in 0..10_000 {
        let registration = register(&own()).await?;
        async_registrar::stop(&registration).await?;
    }
    Ok("10000".into())
}

async fn stop_twice() -> Outcome {
    let registration = register(&own()).await?;
    async_registrar::stop(&registration).await?;
    async_registrar::stop(&registration).await?;
    Ok(registrar::current().len().to_string())
}

/// Begins to stop, drops the call, and stops again.
async fn stop_dropped() -> Outcome {
    let registration = register(&own()).await?;
    for _ in 0..100 {
        begun(async_registrar::stop(&registration)).await;
    }
    async_registrar::stop(&registration).await?;
    Ok(registrar::current().len().to_string())
}

/// Sets many weights, and drops every other call.
async fn weights() -> Outcome {
    let registration = register(&own()).await?;
    for number in 0..2000 {
        let set = async_registrar::set_weight(&registration, number % 100 + 1);
        match number % 2 {
            0 => drop(begun(set).await),
            _ => set.await?,
        }
    }
    async_registrar::set_weight(&registration, 42).await?;
    Ok(registration.status().weight.to_string())
}

/// Looks up what is no name, in every function; the answers must all be refusals.
async fn nonsense() -> Outcome {
    let long = "x".repeat(HUGE);
    let mut texts = 0;
    for name in ["", "/", "a/b", "\0", "\u{202e}", "é", "a b", "\x1b[31m", long.as_str()] {
        for (name, version) in [(name, ""), ("shop", name)] {
            // An empty version is that of every node.
            if (name, version) == ("shop", "") {
                continue;
            }
            let (name, version) = (name.to_owned(), version.to_owned());
            let errors = [
                async_discovery::resolve(name.clone(), version.clone()).await.err(),
                async_discovery::pick(name.clone(), version.clone()).await.err(),
                async_discovery::watch(name.clone(), version.clone()).await.err(),
            ];
            for error in errors {
                match error {
                    Some(Error::InvalidArgument(text) | Error::AccessDenied(text)) => texts = texts.max(text.len()),
                    other => return Err(Error::Other(format!("{:.20?} {:.20?}: {other:?}", name, version))),
                }
            }
        }
    }
    Ok(texts.to_string())
}

/// Looks up that many services without nodes, many at a time, and counts those that the host refused.
async fn lookups(count: usize) -> Outcome {
    let (refused, running) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for number in 0..count {
        while running.get() >= 200 {
            wait_for(TICK).await;
        }
        running.set(running.get() + 1);
        let (refused, running) = (refused.clone(), running.clone());
        spawn_local(async move {
            if async_discovery::resolve(format!("unregistered-{number}"), String::new()).await.is_err() {
                refused.set(refused.get() + 1);
            }
            running.set(running.get() - 1);
        });
    }
    while running.get() > 0 {
        wait_for(TICK).await;
    }
    Ok(refused.get().to_string())
}

/// Begins tasks that go on after the response: one follows a watch, and one never ends.
async fn linger(name: &str) -> Outcome {
    let mut states = async_discovery::watch(name.into(), String::new()).await?;
    spawn_local(async move { while states.next().await.is_some() {} });
    spawn_local(async {
        loop {
            wait_for(TICK).await;
        }
    });
    Ok(String::new())
}

/// Opens watches until the host refuses, and leaves them behind without closing them. Returns their number.
async fn watches(name: &str) -> Outcome {
    let mut open = 0;
    loop {
        match async_discovery::watch(name.into(), String::new()).await {
            Ok(states) => {
                forget(states);
                open += 1;
            }
            Err(Error::QuotaExceeded(_)) => break,
            Err(error) => return Err(error),
        }
    }
    wait_for(SHOWN).await;
    Ok(open.to_string())
}

/// Opens watches until the host refuses, begins a read of each, and looks after none of them again.
async fn unread(name: &str) -> Outcome {
    let mut open: usize = 0;
    while let Ok(mut states) = async_discovery::watch(name.into(), String::new()).await {
        let mut reading = Box::pin(async move {
            states.next().await;
            states.next().await;
            states
        });
        begun(reading.as_mut()).await;
        forget(reading);
        open += 1;
    }
    // The reads go on while this waits.
    wait_for(SHOWN).await;
    Ok(open.to_string())
}

/// Opens and closes watches of a service, one after the other, without reading any.
async fn reopen(name: &str) -> Outcome {
    for number in 0..5000 {
        let states = async_discovery::watch(name.into(), String::new()).await?;
        if number % 2 == 0 {
            drop(states);
        } else {
            let mut states = states;
            begun(states.next()).await;
        }
    }
    Ok("5000".into())
}

/// Reads nothing of a watch, again and again: a read of no length.
async fn read_nothing(name: &str) -> Outcome {
    let mut states: StreamReader<Snapshot> = async_discovery::watch(name.into(), String::new()).await?;
    loop {
        let (result, _) = states.read(Vec::new()).await;
        if result == StreamResult::Dropped {
            return Ok("end".into());
        }
    }
}

/// Begins reads and drops them, many times; then the state must still come.
async fn read_dropped(name: &str) -> Outcome {
    let mut states = async_discovery::watch(name.into(), String::new()).await?;
    let mut came = 0;
    for _ in 0..1000 {
        came += usize::from(begun(states.next()).await.flatten().is_some());
    }
    Ok(came.to_string())
}
