//! A component that misbehaves, one act at a time, and reports the host's reaction.
//!
//! The configuration's `start` and `stop` name the acts of `lifecycle.start` and `lifecycle.stop`; both are idle by default.
//! A refused act fails the start with `CASE: TEXT`. `GET /act/NAME` runs an act while serving. The response is
//! `{"case":"ok","text":"..."}`, or has the case of the WIT's `error` if the host refused. `GET /call/HOST` sends a request to
//! that host and responds in the same way, with the case `failed` for an error. `GET /secure/HOST` does so over TLS,
//! `GET /hurried/HOST` waits half a second for a connection, and `GET /fan/COUNT/HOST` sends that many concurrent requests.
//! `GET /greet/HOST` makes a gRPC call to the example on that host, and `GET /check/HOST` a gRPC health check. `POST /read`
//! responds with the size of the body, and fails if the body breaks off. `GET /code/NAME` returns that error code. `GET /`
//! responds with `hostile`.

mod act;
mod bindings;

use bindings::{exports::leasehold::registry::lifecycle, types, wasi::config::store};
use serde_json::json;
use wstd::{
    http::{Body, Client, Error, Request, Response},
    runtime::spawn,
    time::Duration,
};

use act::{Outcome, act};
use wasip2::http::types::ErrorCode;

struct Hostile;

impl lifecycle::Guest for Hostile {
    fn start() -> Result<(), String> {
        let outcome = act(&config("start").unwrap_or_default());
        outcome.map(drop).map_err(|error| {
            let (case, text) = described(error);
            format!("{case}: {text}")
        })
    }

    fn stop() {
        let _ = act(&config("stop").unwrap_or_default()); // `stop` has no result.
    }
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path().to_owned();
    let body = if path == "/read" {
        request.into_body().contents().await?.len().to_string()
    } else if let Some(name) = path.strip_prefix("/code/") {
        return Err(code(name).into());
    } else if let Some(name) = path.strip_prefix("/act/") {
        report(act(name))
    } else if let Some(host) = path.strip_prefix("/call/") {
        report_call(call("http", host).await)
    } else if let Some((count, host)) = path.strip_prefix("/fan/").and_then(|fan| fan.split_once('/')) {
        fan(count.parse().unwrap_or(1), host).await
    } else if let Some(host) = path.strip_prefix("/secure/") {
        report_call(call("https", host).await)
    } else if let Some(host) = path.strip_prefix("/hurried/") {
        report_call(hurried(host).await)
    } else if let Some(host) = path.strip_prefix("/greet/") {
        // A message with the name Ada.
        report_call(grpc(host, "greeter.v1.Greeter/Greet", b"\0\0\0\0\x05\x0a\x03Ada").await)
    } else if let Some(host) = path.strip_prefix("/check/") {
        report_call(grpc(host, "grpc.health.v1.Health/Check", b"\0\0\0\0\0").await)
    } else {
        "hostile\n".into()
    };
    Ok(Response::new(body.into()))
}

fn report_call(outcome: Result<String, Error>) -> String {
    let (case, text) = outcome.map_or_else(|error| ("failed", format!("{error:?}")), |text| ("ok", text));
    json!({ "case": case, "text": text }).to_string()
}

/// The error code of that name.
fn code(name: &str) -> ErrorCode {
    match name {
        "connection-refused" => ErrorCode::ConnectionRefused,
        "dns-timeout" => ErrorCode::DnsTimeout,
        "http-request-denied" => ErrorCode::HttpRequestDenied,
        "http-request-body-size" => ErrorCode::HttpRequestBodySize(None),
        _ => ErrorCode::InternalError(Some("told \x1b[31mso".into())),
    }
}

/// Response of a gRPC method: one message, uncompressed, in both directions.
async fn grpc(host: &str, method: &str, message: &[u8]) -> Result<String, Error> {
    let request = Request::post(format!("http://{host}/{method}")).header("content-type", "application/grpc");
    let mut response = Client::new().send(request.body(Body::from(message))?).await?;
    let body = response.body_mut().contents().await?;
    Ok(String::from_utf8_lossy(body).into_owned())
}

/// Response body of a host.
async fn call(scheme: &str, host: &str) -> Result<String, Error> {
    let request = Request::get(format!("{scheme}://{host}/")).body(Body::empty())?;
    let mut response = Client::new().send(request).await?;
    Ok(response.body_mut().str_contents().await?.to_owned())
}

/// Outcomes of that many concurrent calls. Each waits half a second for its connection, and a second for its response.
async fn fan(count: usize, host: &str) -> String {
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let mut client = Client::new();
            client.set_connect_timeout(Duration::from_millis(500));
            client.set_first_byte_timeout(Duration::from_secs(1));
            let request = Request::get(format!("http://{host}/")).body(Body::empty());
            spawn(async move { client.send(request?).await?.body_mut().str_contents().await.map(str::to_owned) })
        })
        .collect();
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await.unwrap_or_else(|error| format!("{error:?}")));
    }
    json!(outcomes).to_string()
}

/// Response body of a host, with half a second for the connection.
async fn hurried(host: &str) -> Result<String, Error> {
    let request = Request::get(format!("http://{host}/")).body(Body::empty())?;
    let mut client = Client::new();
    client.set_connect_timeout(Duration::from_millis(500));
    let mut response = client.send(request).await?;
    Ok(response.body_mut().str_contents().await?.to_owned())
}

fn report(outcome: Outcome) -> String {
    let (case, text) = outcome.map_or_else(described, |text| ("ok", text));
    json!({ "case": case, "text": text }).to_string()
}

/// An error as its case in the WIT and its text.
fn described(error: types::Error) -> (&'static str, String) {
    use types::Error;

    match error {
        Error::InvalidArgument(text) => ("invalid-argument", text),
        Error::AccessDenied(text) => ("access-denied", text),
        Error::QuotaExceeded(text) => ("quota-exceeded", text),
        Error::Conflict(text) => ("conflict", text),
        Error::Unavailable(text) => ("unavailable", text),
        Error::Timeout => ("timeout", String::new()),
        Error::NotRegistered => ("not-registered", String::new()),
        Error::Other(text) => ("other", text),
    }
}

/// The value of a configuration key, if it has one.
fn config(key: &str) -> Option<String> {
    store::get(key).ok().flatten()
}
