//! Arguments of commands on artifacts, and of the registry that they are in.

use std::path::PathBuf;

use clap::Args;
use leasehold_artifacts::{Artifacts, Reference, Registry};

use super::argument::readable;
use crate::{config, error::Failure};

/// The registry of a command's reference, with the way in which the command speaks to it.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "The registry")]
pub(crate) struct RegistryArgs {
    /// User at the registry [default: the credentials that `docker login` has kept]
    #[arg(long = "registry-user", value_name = "NAME", requires = "password_file")]
    user: Option<String>,

    /// A file with the password; without a user, with a token
    #[arg(long = "registry-password-file", value_name = "FILE", id = "password_file")]
    password_file: Option<PathBuf>,

    /// Certificates of the authorities of its certificate, as PEM, besides the system's
    #[arg(long = "registry-ca", value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Speak HTTP to it, which protects neither secrets nor components
    #[arg(long)]
    plain_http: bool,
}

impl RegistryArgs {
    /// The registry of a reference, and the user's cache.
    pub(crate) fn artifacts(&self, reference: &Reference) -> Result<Artifacts, Failure> {
        let source = |flag: &str, path: &Option<PathBuf>| path.as_ref().map(|path| readable(flag, path)).transpose();
        let registry = Registry {
            username: self.user.clone(),
            password: source("--registry-password-file", &self.password_file)?,
            ca: source("--registry-ca", &self.ca)?,
            plain_http: self.plain_http,
            ..Registry::at(reference.registry())
        };
        // A host has its own limit for the same folder, and makes room.
        config::artifacts(vec![registry], u64::MAX).map_err(Failure::other)
    }
}

#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// Reference of the component, as oci://HOST/NAME:TAG or oci://HOST/NAME@sha256:…
    pub(crate) reference: Reference,

    /// File for the component [default: none; it is in the cache for the next start]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// A public key, as `cosign` writes it, that has to have signed it; repeat it for several, of which one has to
    #[arg(long, value_name = "FILE")]
    pub(crate) verify: Vec<PathBuf>,

    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    /// A component (.wasm)
    pub(crate) file: PathBuf,

    /// Its reference, as oci://HOST/NAME:TAG
    pub(crate) reference: Reference,

    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// A component (.wasm), or its reference in a registry
    #[arg(value_name = "COMPONENT")]
    pub(crate) file: PathBuf,

    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}
