//! Arguments of `leasehold keep`.

use std::ffi::OsString;

use clap::Args;
use leasehold::{Options, Ownership, ServerNode};

use super::{
    argument::{pairs, parse, wrong},
    etcd_args::EtcdArgs,
    host_args::NewWeight,
};
use crate::{
    config::units::{Span, WholeSeconds},
    error::Failure,
};

/// A process that is kept in etcd.
#[derive(Args, Debug)]
#[command(disable_version_flag = true)]
pub(crate) struct KeepArgs {
    /// The service's name
    #[arg(long)]
    name: String,

    /// The address to publish, as host:port
    #[arg(long)]
    addr: String,

    /// The version to publish
    #[arg(long, default_value = "", hide_default_value = true)]
    version: String,

    /// The weight, 1 to 100; or auto, which follows the load of the machine
    #[arg(long, value_name = "WEIGHT", default_value = "auto")]
    weight: NewWeight,

    /// A pair of the node's metadata
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,

    /// Time for which the key outlives this process if it is killed [default: 10s]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,

    /// Treatment of a key that another host holds: take-over, refuse or wait [default: take-over]
    #[arg(long, value_name = "RULE")]
    ownership: Option<String>,

    /// Time between the deletion of the key and the signal to the command, for clients that watch etcd
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    pub(crate) settle_time: Span,

    /// Time for the command to end after the signal; then it is killed
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) stop_timeout: Span,

    #[command(flatten)]
    etcd: EtcdArgs,

    #[command(flatten)]
    pub(crate) check: CheckOptions,

    /// The command to run, whose end is the end of the registration
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// The health check.
#[derive(Args, Debug)]
#[command(next_help_heading = "Health check")]
pub(crate) struct CheckOptions {
    /// Register only while this answers: http://HOST:PORT/PATH with 200 to 299, grpc://HOST:PORT by grpc.health.v1, or
    /// tcp://HOST:PORT by a connection
    #[arg(long, value_name = "URL")]
    pub(crate) health: Option<String>,

    /// Time between two checks
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub(crate) health_interval: Span,

    /// Time for an answer
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(crate) health_timeout: Span,

    /// Successful checks in a row until the node is registered
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rise: u32,

    /// Failed checks in a row until the node is withdrawn
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) fall: u32,
}

impl KeepArgs {
    /// The node to register.
    pub(crate) fn node(&self) -> Result<ServerNode, Failure> {
        let metadata = pairs("--metadata", &self.metadata)?.0.into_iter().collect::<Vec<_>>();
        Ok(ServerNode {
            name: parse("--name", &self.name)?,
            addr: parse("--addr", &self.addr)?,
            version: parse("--version", &self.version)?,
            weight: self.weight.0,
            metadata: metadata.try_into().map_err(|error| wrong("--metadata", error))?,
        })
    }

    /// Options of the registrar.
    pub(crate) fn registrar(&self) -> Result<Options, Failure> {
        let mut options = self.etcd.registrar()?;
        if let Some(ttl) = &self.ttl {
            options.ttl = parse::<WholeSeconds>("--ttl", ttl)?.0;
        }
        if let Some(ownership) = &self.ownership {
            options.ownership = parse::<Ownership>("--ownership", ownership)?;
        }
        Ok(options)
    }
}
