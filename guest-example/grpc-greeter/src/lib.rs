//! A greeter in gRPC: tonic's generated code over `wasi:http` 0.3, which takes the place of tonic's own transport.

mod generated;
mod greeter;

use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use wasip3::{
    exports::http::handler::Guest,
    http::types::{ErrorCode, Request, Response},
    http_compat::{IncomingRequestBody, http_from_wasi_request, http_into_wasi_response},
};

use generated::greeter_server::GreeterServer;
use greeter::Greeter;

struct Component;

wasip3::http::service::export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        http_into_wasi_response(route(http_from_wasi_request(request)?).await)
    }
}

/// Stream of health changes, which this service does not implement. Each stream would hold a permit as long as its client lives,
/// and the health never changes; clients treat `UNIMPLEMENTED` as healthy.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Calls the service that the path names.
async fn route(request: http::Request<IncomingRequestBody>) -> http::Response<Body> {
    let path = request.uri().path();
    if path == HEALTH_WATCH {
        return Status::unimplemented("use Check").into_http();
    }
    let Ok(response) = match path.split('/').nth(1).unwrap_or_default() {
        <GreeterServer<Greeter> as NamedService>::NAME => GreeterServer::new(Greeter).call(request).await,
        <HealthServer<HealthService> as NamedService>::NAME => health().await.call(request).await,
        _ => Ok(Status::unimplemented("unknown service").into_http()),
    };
    response
}

/// `grpc.health.v1`: an instance that responds is healthy.
async fn health() -> HealthServer<HealthService> {
    let reporter = HealthReporter::new();
    reporter.set_serving::<GreeterServer<Greeter>>().await;
    HealthServer::new(HealthService::from_health_reporter(reporter))
}
