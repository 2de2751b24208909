//! Calls by name over wasi:http 0.3: requests to a node that the host picks.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
};

use http::{Method, Request};
use http_body::Body as HttpBody;
use wasip3::{
    http::{
        client,
        types::{ErrorCode, Fields, Request as WasiRequest, Scheme},
    },
    http_compat::{IncomingResponseBody, http_from_wasi_response, http_into_wasi_request},
    wit_future, wit_stream,
};

use crate::{
    by_name::{Callee, Response},
    error::Error,
    p3::http::words,
};

/// A client of one service. The host picks a node for each request, and goes on to the next one if a node takes no
/// connection.
#[derive(Debug, Clone)]
pub struct Client(Callee);

impl Client {
    /// A client of the service of this name, in whatever version.
    pub fn new(name: &str) -> Self {
        Self(Callee::new(name))
    }

    /// A client of one version of the service.
    pub fn of_version(name: &str, version: &str) -> Self {
        Self(Callee::of_version(name, version))
    }

    /// Sends `GET`.
    pub async fn get(&self, path: &str) -> Result<Response, Error> {
        self.send(Method::GET, path, Vec::new()).await
    }

    /// Sends a request with a body.
    pub async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response, Error> {
        self.exchange(&method, path, body).await.map_err(|error| self.error(&error))
    }

    /// Sends a request with headers or a stream of its own, and returns the response before its body has come.
    /// [`url`](Self::url) makes the address of the request.
    ///
    /// The body is sent by a task of the request in which this is called, so that it works in no action of the service's start
    /// or end.
    pub async fn request<B>(&self, request: Request<B>) -> Result<http::Response<IncomingResponseBody>, Error>
    where
        B: HttpBody<Data: Into<Vec<u8>>, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    {
        let sent = async { http_from_wasi_response(client::send(http_into_wasi_request(request)?).await?) };
        sent.await.map_err(|error| self.error(&error))
    }

    /// The URL of a path of the service, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        self.0.url(path)
    }

    /// Sends the body while it waits for the response, whose end is the end of both.
    async fn exchange(&self, method: &Method, path: &str, body: Vec<u8>) -> Result<Response, ErrorCode> {
        let mut is_sent = body.is_empty();
        let (mut writer, reader) = wit_stream::new();
        let (_, no_trailers) = wit_future::new(|| Ok(None));
        let contents = Some(reader).filter(|_| !is_sent);
        let (request, _sent) = WasiRequest::new(Fields::new(), contents, no_trailers, None);
        request.set_method(&method.into()).map_err(|()| ErrorCode::HttpRequestMethodInvalid)?;
        request.set_scheme(Some(&Scheme::Http)).map_err(|()| ErrorCode::HttpProtocolError)?;
        request.set_authority(Some(self.0.authority())).map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
        request.set_path_with_query(Some(path)).map_err(|()| ErrorCode::HttpRequestUriInvalid)?;

        // An unread rest of the body is that of a node that has responded without it.
        let mut sending = pin!(async move { drop(writer.write_all(body).await) });
        let mut receiving = pin!(receive(request));
        poll_fn(|cx| {
            is_sent = is_sent || sending.as_mut().poll(cx).is_ready();
            receiving.as_mut().poll(cx)
        })
        .await
    }

    fn error(&self, error: &ErrorCode) -> Error {
        self.0.error(words(error))
    }
}

/// Sends a request, and reads its response as a whole.
async fn receive(request: WasiRequest) -> Result<Response, ErrorCode> {
    let (head, mut body) = http_from_wasi_response(client::send(request).await?)?.into_parts();
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Ok(Response { status: head.status.as_u16(), body: whole })
}
