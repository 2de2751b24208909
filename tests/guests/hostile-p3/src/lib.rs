//! A component of WASI 0.3 that misuses the asynchronous functions of the contract, one act at a time, and reports the host's
//! reaction.
//!
//! The configuration's `start` and `stop` name the acts of `async-lifecycle`; both are idle by default. `GET /act/NAME` runs an
//! act while serving. The response is `{"case":"ok","text":"..."}`, or has the case of the WIT's `error` if the host refused.
//! `GET /` responds with `hostile`.

mod act;
mod bindings;

use act::{Outcome, act};
use bindings::{
    exports::{leasehold::registry::async_lifecycle, wasi::http::handler},
    leasehold::registry::registry_types::Error,
    wasi::{
        config::store,
        http::types::{ErrorCode, Fields, Request, Response},
    },
    wit_future, wit_stream,
};
use serde_json::json;
use wit_bindgen::spawn_local;

struct Hostile;

impl async_lifecycle::Guest for Hostile {
    async fn start() -> Result<(), String> {
        let outcome = act(&config("start").unwrap_or_default()).await;
        outcome.map(drop).map_err(|error| {
            let (case, text) = described(error);
            format!("{case}: {text}")
        })
    }

    async fn stop() {
        let _ = act(&config("stop").unwrap_or_default()).await; // `stop` has no result.
    }
}

impl handler::Guest for Hostile {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        let body = match path.strip_prefix("/act/") {
            Some(name) => report(act(name).await),
            None => "hostile\n".to_owned(),
        };
        let (mut writer, reader) = wit_stream::new();
        let (_, no_trailers) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(reader), no_trailers);
        spawn_local(async move { drop(writer.write_all(body.into_bytes()).await) });
        Ok(response)
    }
}

fn report(outcome: Outcome) -> String {
    let (case, text) = outcome.map_or_else(described, |text| ("ok", text));
    json!({ "case": case, "text": text }).to_string()
}

/// An error as its case in the WIT and its text.
fn described(error: Error) -> (&'static str, String) {
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
