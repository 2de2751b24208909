//! The services behind one listener, by the path of a call.

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
use wasip3::http_compat::IncomingRequestBody;

use crate::{generated::greeter_server::GreeterServer, greeter::Greeter};

/// Stream of health changes, which this service does not implement. Each stream would hold a permit as long as its client lives,
/// and the health never changes; clients treat `UNIMPLEMENTED` as healthy.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Calls the service that the path names.
pub(crate) async fn route(request: http::Request<IncomingRequestBody>) -> http::Response<Body> {
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
