//! Responses of the admin endpoint: text, or JSON.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use serde_json::json;

use crate::admin::routes::RouteError;

pub(super) type AdminResponse = Response<Full<Bytes>>;

pub(super) fn refused(refusal: &RouteError) -> AdminResponse {
    let mut refused = error_json(refusal.status, &refusal.message);
    if let Some(method) = &refusal.allow {
        let allowed = HeaderValue::from_str(method.as_str()).expect("a method is a header's value");
        refused.headers_mut().insert(header::ALLOW, allowed);
    }
    if refusal.status == StatusCode::UNAUTHORIZED {
        refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    refused
}

pub(super) fn plain(status: StatusCode, text: String) -> AdminResponse {
    response(status, "text/plain; charset=utf-8", text)
}

pub(super) fn error_json(status: StatusCode, message: &str) -> AdminResponse {
    json_response(status, &json!({ "error": message }))
}

pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> AdminResponse {
    let text = serde_json::to_string_pretty(value).expect("what is shown has no keys but text");
    response(status, "application/json", text + "\n")
}

fn response(status: StatusCode, kind: &'static str, text: String) -> AdminResponse {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
