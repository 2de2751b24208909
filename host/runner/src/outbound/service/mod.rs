//! Calls by name: a request to `http://NAME.leasehold/` goes to a node of the service NAME, as the registry has it.
//!
//! `VERSION.NAME.leasehold` names a node of that version.
//!
//! | file | part of a call |
//! |---|---|
//! | `target` | the service and the version that it goes to |
//! | `client` | the nodes of the service, and pooled connections to them |
//! | `secure` | TLS on a connection |
//! | `call` | its life: tries on one node after the other |
//! | `verdict` | the meaning of a response or a failure, for the node and for a further try |

mod call;
mod client;
mod secure;
mod target;
mod verdict;

use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use self::{
    call::{Call, Deadline},
    secure::CONNECT_TIMEOUT,
};
pub(crate) use self::{
    client::{DEADLINE, ServiceClient},
    target::Target,
};
use crate::{
    grpc,
    outbound::{
        body::{RequestBody, UpstreamBody, drain},
        callers::CallerDeadline,
    },
    telemetry::span::Span,
};

/// Deadline of a response where the component sets none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

impl ServiceClient {
    /// Sends a request to a node of the service, for a caller with a deadline of its own. Errors are those of `wasi:http`; the log
    /// says more.
    pub(crate) async fn send(
        &self,
        target: Target,
        request: Request<WasiBody>,
        options: RequestOptions,
        deadline: CallerDeadline,
        mut span: Option<&mut Span>,
    ) -> Result<Response<WasiBody>, Error> {
        if let Some(span) = &mut span {
            span.record_service(&target.name);
        }
        let (mut parts, body) = request.into_parts();
        if let Some(end) = deadline.end.filter(|_| grpc::is_spoken(&parts.headers)) {
            let left = end.saturating_duration_since(Instant::now());
            if grpc::timeout(&parts.headers).is_none_or(|own| own > left) {
                parts.headers.insert(grpc::TIMEOUT, grpc::written_timeout(left));
            }
        }
        let rule = self.rules.of(&target.name);
        let target = target.split(rule, &parts.headers, fastrand::u32(..100));
        let body = if rule.retries > 0 { RequestBody::kept(body) } else { RequestBody::new(body) };
        let patience =
            options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT).min(rule.timeout.unwrap_or(DEFAULT_TIMEOUT));
        let own = Instant::now() + patience;
        let clients = deadline.until().filter(|clients| *clients < own);
        let until = Deadline { at: clients.unwrap_or(own), is_clients: clients.is_some() };
        let connect = options.connect_timeout.map_or(CONNECT_TIMEOUT, |requested| requested.min(CONNECT_TIMEOUT));
        let response = async {
            let balancer = timeout_at(until.at, self.balancer(&target)).await;
            let balancer = balancer.map_err(|_| Error::HttpResponseTimeout)??;
            Call::new(self, &target, rule, &balancer, (&parts, &body), (connect, until)).run(span).await
        };
        let response = response.await;
        let (response, call) = match response {
            Ok(response) => response,
            Err(error) => {
                drain(body.clone()).await;
                return Err(error);
            }
        };
        let between_bytes = options.between_bytes_timeout;
        Ok(response.map(|body| UpstreamBody::new(body, between_bytes, Some(call)).boxed_unsync()))
    }
}
