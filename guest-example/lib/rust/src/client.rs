//! Calls by name: requests to a node that the host picks.

use wstd::http::{self, Body, Method, Request};

use crate::{
    by_name::{Callee, Response},
    error::Error,
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
        let request = Request::builder().method(method).uri(self.url(path)).body(Body::from(body));
        let request = request.map_err(|error| self.0.error(error))?;
        let mut response = self.request(request).await?;
        let body = response.body_mut().contents().await.map_err(|error| self.error(&error))?.to_vec();
        Ok(Response { status: response.status().as_u16(), body })
    }

    /// Sends a request with headers of its own, and returns the response before its body has come. [`url`](Self::url) makes
    /// the address of the request.
    pub async fn request(&self, request: Request<Body>) -> Result<http::Response<Body>, Error> {
        http::Client::new().send(request).await.map_err(|error| self.error(&error))
    }

    /// The URL of a path of the service, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        self.0.url(path)
    }

    fn error(&self, error: &http::Error) -> Error {
        self.0.error(format!("{error:#}"))
    }
}
