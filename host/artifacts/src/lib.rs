//! Components in OCI registries, as the CNCF's artifact format for WebAssembly has them: pulled with their digest checked,
//! verified by public keys, cached for starts without the registry, and pushed.
//!
//! ```no_run
//! # async fn pull() -> Result<(), leasehold_artifacts::Error> {
//! use leasehold_artifacts::{Artifacts, Former, Options};
//!
//! let artifacts = Artifacts::new(Options::new("/var/cache/example"));
//! let pulled = artifacts.pull(&"oci://registry.example/team/user:1.4.2".parse()?, &[], Former::StandsIn, &|_, _| {}).await?;
//! println!("{} is {}", pulled.digest, pulled.file.display());
//! # Ok(())
//! # }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod manifest;
mod pull;
mod push;
mod reference;
mod registry;
mod signature;
mod store;

pub use self::{
    error::Error,
    pull::{Artifacts, Former, Options, Progress, Pulled},
    push::{Pushed, World},
    reference::Reference,
    registry::Registry,
    signature::PublicKey,
};
