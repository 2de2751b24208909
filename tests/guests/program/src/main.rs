//! A program that opens its own listener, and misbehaves on command.
//!
//! Its arguments are the address and a verb: `serve` serves one connection after the other, as any program of the standard
//! library does; `register` registers itself as `program` before that; `polite` serves until its standard input ends; `deaf`,
//! `exit` and `fail` never listen. `GET` of a path runs the act of that name and responds with its outcome.

mod bindings;

use std::{
    cell::Cell,
    env,
    hint::black_box,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    process::exit,
    rc::Rc,
    thread::sleep,
    time::Duration,
};

use bindings::leasehold::registry::{registrar, types::ServerNode};
use wstd::{
    io::{AsyncRead, AsyncWrite},
    iter::AsyncIterator,
    runtime::{block_on, spawn},
};

fn main() -> Result<(), String> {
    let arguments: Vec<String> = env::args().collect();
    let [_, addr, verb] = &arguments[..] else { return Err(format!("{arguments:?} are not an address and a verb")) };
    let said = |error: io::Error| format!("cannot listen on {addr}: {error}");
    match verb.as_str() {
        "serve" => serve(&TcpListener::bind(addr).map_err(said)?),
        "register" => {
            let listener = TcpListener::bind(addr).map_err(said)?;
            register().map_err(|error| format!("cannot register: {error:?}"))?;
            serve(&listener)
        }
        "polite" => block_on(polite(addr)).map_err(said),
        "deaf" => loop {
            sleep(Duration::from_secs(1));
        },
        "exit" => exit(0),
        "fail" => Err("told to fail".to_owned()),
        other => Err(format!("no verb is {other:?}")),
    }
}

fn register() -> Result<(), bindings::leasehold::registry::types::Error> {
    let node = ServerNode {
        name: "program".into(),
        addr: String::new(),
        version: String::new(),
        weight: None,
        metadata: vec![],
    };
    registrar::register(&node, 0).map(drop)
}

/// Serves one connection after the other, until a request for `/return`.
fn serve(listener: &TcpListener) -> Result<(), String> {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        match requested(&stream) {
            Ok(Some(path)) if path == "return" => return Ok(()),
            Ok(Some(path)) => drop(respond(stream, &act(&path))), // The client may have gone.
            Ok(None) | Err(_) => {}
        }
    }
    Ok(())
}

/// The path of a request, without its first `/`; `None` if a client connects without a request.
fn requested(stream: &TcpStream) -> io::Result<Option<String>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    Ok(first.split(' ').nth(1).map(|path| path.trim_start_matches('/').to_owned()))
}

fn respond(mut stream: TcpStream, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Runs the act of that name. Some acts never return.
fn act(name: &str) -> String {
    let report = |outcome: io::Result<()>| outcome.map_or_else(|error| error.kind().to_string(), |()| "ok".to_owned());
    match name.split_once('/').unwrap_or((name, "")) {
        ("", _) => "hello\n".to_owned(),
        ("trap", _) => panic!("told to trap"),
        ("exit", _) => exit(1),
        ("spin", _) => loop {
            black_box(());
        },
        ("slow", _) => {
            sleep(Duration::from_secs(2));
            "slow".to_owned()
        }
        ("bind", addr) => report(TcpListener::bind(addr).map(drop)),
        ("connect", addr) => report(TcpStream::connect(addr).map(drop)),
        ("udp", addr) => report(UdpSocket::bind(addr).map(drop)),
        ("resolve", name) => report((name, 80).to_socket_addrs().map(drop)),
        ("registrations", _) => registrar::current().len().to_string(),
        (other, _) => format!("no act is named {other:?}"),
    }
}

/// Serves all clients, `/slow` after three seconds, until standard input has ended and no request is in flight.
async fn polite(addr: &str) -> io::Result<()> {
    let listener = wstd::net::TcpListener::bind(addr).await?;
    let open = Rc::new(Cell::new(0));
    let waiting = Rc::clone(&open);
    let accepting = spawn(async move {
        let mut incoming = listener.incoming();
        while let Some(stream) = incoming.next().await {
            let (Ok(stream), waiting) = (stream, Rc::clone(&waiting)) else { continue };
            waiting.set(waiting.get() + 1);
            spawn(async move {
                let _ = greet(stream).await; // The client may have gone.
                waiting.set(waiting.get() - 1);
            })
            .detach();
        }
    });
    let mut end = [0; 1];
    while wstd::io::stdin().read(&mut end).await? > 0 {}
    while open.get() > 0 {
        wstd::task::sleep(wstd::time::Duration::from_millis(20)).await;
    }
    drop(accepting); // It would never end by itself.
    Ok(())
}

async fn greet(mut stream: wstd::net::TcpStream) -> io::Result<()> {
    let mut request = [0; 1024];
    let read = stream.read(&mut request).await?;
    if request[..read].starts_with(b"GET /slow") {
        wstd::task::sleep(wstd::time::Duration::from_secs(3)).await;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nhello\n").await
}
