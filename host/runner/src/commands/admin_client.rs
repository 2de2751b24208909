//! Client of a running host's admin endpoint.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header, response::Parts};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::error::{Failure, one_line};

/// Longest wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the response; the host ends every wait before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of a response that are read, at most.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Sends a command and returns the response, read as `T` and as it is. A failure is one sentence; an unknown name is an error
/// of the arguments.
pub(crate) async fn post<T: DeserializeOwned>(admin: &str, path: &str) -> Result<(T, Value), Failure> {
    send(admin, Method::POST, path).await
}

/// Reads a page, like `post`.
pub(crate) async fn get<T: DeserializeOwned>(admin: &str, path: &str) -> Result<(T, Value), Failure> {
    send(admin, Method::GET, path).await
}

async fn send<T: DeserializeOwned>(admin: &str, method: Method, path: &str) -> Result<(T, Value), Failure> {
    let authority = authority(admin)?;
    let silent = |message: String| {
        Failure::other(format!(
            "no host answers at {admin} ({message}); it does where its configuration says admin: {{ listen: ... }}"
        ))
    };
    let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(&authority)).await;
    let stream = connecting
        .map_err(|_| silent(format!("no connection within {CONNECT_TIMEOUT:?}")))?
        .map_err(|error| silent(error.to_string()))?;
    let request = Request::builder().method(method).uri(path).header(header::HOST, &authority);
    let request = request.body(Empty::new()).expect("a path of visible characters");
    let answered = timeout(ANSWER_TIMEOUT, exchange(stream, request)).await;
    let answered = answered.map_err(|_| silent(format!("no answer within {ANSWER_TIMEOUT:?}")))?;
    let (Parts { status, .. }, body) = answered.map_err(|error| silent(error.to_string()))?;
    let answer: Value =
        serde_json::from_slice(&body).map_err(|_| silent("not a leasehold admin endpoint".to_owned()))?;
    match (status, answer["error"].as_str()) {
        (StatusCode::OK, _) => match T::deserialize(&answer) {
            Ok(read) => Ok((read, answer)),
            Err(_) => Err(Failure::other("the response of the host is of another version")),
        },
        (StatusCode::NOT_FOUND, Some(message)) => Err(Failure::usage(one_line(message))),
        (_, Some(message)) => Err(Failure::other(one_line(message))),
        (status, None) => Err(silent(format!("it answers {status}"))),
    }
}

/// Sends one request on a connection of its own, and reads the response to the end.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<(Parts, Bytes), Box<dyn Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answered = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok((head, Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes()))
    };
    // The connection is driven here and ends here.
    tokio::pin!(answered);
    tokio::select! {
        biased;
        answered = &mut answered => answered,
        ended = connection => {
            ended?;
            answered.await
        }
    }
}

fn authority(admin: &str) -> Result<String, Failure> {
    let wrong = || Failure::usage(format!("--admin: must be http://host:port, not {admin:?}"));
    let uri: Uri = admin.parse().map_err(|_| wrong())?;
    match (uri.scheme_str(), uri.authority(), uri.path()) {
        (Some("http"), Some(authority), "" | "/") if authority.port_u16().is_some() => Ok(authority.to_string()),
        _ => Err(wrong()),
    }
}

/// A name as one segment of a path.
pub(crate) fn part(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::{authority, part};

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        assert_eq!(authority("http://127.0.0.1:9090/").unwrap(), "127.0.0.1:9090");
        for bad in ["127.0.0.1:9090", "https://127.0.0.1:9090", "http://127.0.0.1", "http://a:1/b", ""] {
            assert_eq!(authority(bad).unwrap_err().code(), 64, "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(part("a/b?c"), "a%2Fb%3Fc");
    }
}
