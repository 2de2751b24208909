//! Identity of a service: its node, its addresses, and its name in traces. All of it follows from the configuration.

use std::net::SocketAddr;

use leasehold::{Addr, ServerNode};

use crate::{
    config::Spec,
    telemetry::{otlp::Traces, span::Tracer},
};

/// A service as others know it.
#[derive(Clone)]
pub(crate) struct Identity {
    /// The node that the host registers, if it does.
    pub(super) node: Option<ServerNode>,
    /// Addresses of the service, the published one first.
    pub(super) own: Vec<Addr>,
    pub(super) tracer: Option<Tracer>,
}

impl Identity {
    pub(super) fn new(spec: &Spec, bound: SocketAddr, traces: Option<&Traces>) -> Self {
        let advertised = spec.advertised(bound);
        let mut own: Vec<_> = advertised.iter().cloned().collect();
        // The address of the listener is the service's own, too, unless that is a wildcard.
        own.extend(bound.to_string().parse().ok());
        let node = advertised.map(|addr| ServerNode {
            name: spec.name.clone(),
            addr,
            version: spec.version.clone(),
            weight: None,
            metadata: spec.metadata.clone(),
        });
        Self { node, own, tracer: traces.map(|traces| traces.tracer(spec, bound)) }
    }
}
