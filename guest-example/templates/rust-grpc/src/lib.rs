//! A gRPC service that registers itself: tonic's generated code over `wasi:http` 0.3, which takes the place of tonic's own transport.

/// Code generated from `proto/greeter.proto`.
mod generated {
    tonic::include_proto!("greeter.v1");
}
mod greeter;
mod router;

use leasehold_guest::Service;
use wasip3::{
    exports::http::handler::Guest,
    http::types::{ErrorCode, Request, Response},
    http_compat::{http_from_wasi_request, http_into_wasi_response},
};

const NAME: &str = "{{name}}";

// The host calls it at the start, when the listener is open, and at the end, when the last request is complete.
leasehold_guest::service!(service);

fn service() -> Service {
    // Without a weight the host computes one from the load of the machine.
    Service::new(NAME)
        .version("v1")
        .weight(50)
        .metadata("language", "rust")
        .on_start(|registration| {
            // Standard error is the host's log.
            eprintln!("registered as {}", registration.key());
            Ok::<_, leasehold_guest::Error>(())
        })
        .on_stop(|| eprintln!("stopped"))
}

struct Component;

wasip3::http::service::export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        http_into_wasi_response(router::route(http_from_wasi_request(request)?).await)
    }
}
