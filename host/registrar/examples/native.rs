//! A plain Rust service that is registered while it serves, without a component and without wasmtime.
//!
//! `cargo run --release -p leasehold --example native -- http://127.0.0.1:2379 user 127.0.0.1:10002`

use std::{env, time::Duration};

use leasehold::{Options, Registrar, ServerNode};
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    select,
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
};

#[expect(clippy::print_stdout, reason = "an example prints for its reader")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let endpoint = arguments.next().unwrap_or("http://127.0.0.1:2379".to_owned());
    let name = arguments.next().unwrap_or("user".to_owned());
    let addr = arguments.next().unwrap_or("127.0.0.1:10002".to_owned());

    let mut terminate = signal(SignalKind::terminate())?;
    // Listen before registering: no client is sent to a closed port.
    let listener = TcpListener::bind(&addr).await?;
    let registrar = Registrar::start(Options::new([endpoint]))?;
    let registration = registrar.register(ServerNode::new(&name, &addr)?).await?;
    println!("{} is {} with weight {}", registration.key(), registration.status().state, registration.status().weight);

    loop {
        select! {
            accepted = listener.accept() => {
                let (mut client, _) = accepted?;
                client.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nhello\n").await?;
            }
            _ = ctrl_c() => break,
            _ = terminate.recv() => break,
        }
    }

    // Deregister before the listener closes.
    registration.stop().await?;
    registrar.shutdown(Duration::from_secs(5)).await?;
    println!("{} is gone", registration.key());
    Ok(())
}
