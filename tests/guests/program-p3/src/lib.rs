//! A `wasi:cli` 0.3 program that opens its own listener at the IPv4 address of its argument, and greets every client.

use std::{env, net::SocketAddrV4};

use wasip3::{
    exports::cli::run::Guest,
    sockets::types::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket},
    spawn_local, wit_stream,
};

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nhello\n";

struct Program;

wasip3::cli::command::export!(Program);

impl Guest for Program {
    async fn run() -> Result<(), ()> {
        let addr: SocketAddrV4 = env::args().nth(1).and_then(|addr| addr.parse().ok()).ok_or(())?;
        let [a, b, c, d] = addr.ip().octets();
        let local = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: addr.port(), address: (a, b, c, d) });
        let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(drop)?;
        socket.bind(local).map_err(drop)?;
        let mut clients = socket.listen().map_err(drop)?;
        while let Some(client) = clients.next().await {
            spawn_local(greet(client));
        }
        Ok(())
    }
}

async fn greet(client: TcpSocket) {
    let (mut request, _) = client.receive();
    if request.next().await.is_none() {
        return; // A connection without data, as health checks make.
    }
    let (mut response, reader) = wit_stream::new();
    let sent = client.send(reader);
    response.write_all(RESPONSE.to_vec()).await;
    drop(response);
    let _ = sent.await; // The client may have gone.
}
