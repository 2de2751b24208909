//! The configuration, read from a file or from arguments, checked once and trusted afterwards.

mod artifact;
mod clear_lines;
pub(crate) mod connection;
pub(crate) mod destination;
pub(crate) mod file;
pub(crate) mod grants;
pub(crate) mod kept;
mod load;
pub(crate) mod mistake;
mod place;
pub(crate) mod plan;
pub(crate) mod reference;
mod resolve;
mod rule;
pub(crate) mod schema;
mod spec;
mod tree;
pub(crate) mod units;
pub(crate) mod values;
mod variables;
pub(crate) mod written;

pub(crate) use artifact::{ARTIFACT_POLL, Artifact, artifacts};
pub(crate) use file::{AccessLog, Limits};
pub(crate) use kept::{Check, Kept, KeptNode};
pub(crate) use load::is_standard_input;
pub(crate) use resolve::parse_headers;
pub(crate) use spec::{
    Admin, AdminAddress, Allow, CallRule, CallRules, CallTls, Config, DELETE_TIMEOUT, EtcdFiles, Health, Probe,
    Quarantine, SocketFile, Spec, Split, TlsFiles, Traces,
};
pub(crate) use values::{AccessFormat, Logged, Register, Variables};

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;
