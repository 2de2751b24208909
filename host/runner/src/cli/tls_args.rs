//! Arguments for TLS towards a server.

use std::path::PathBuf;

use clap::Args;
use leasehold::Tls;

use super::argument::{readable, wrong};
use crate::{
    config::{EtcdFiles, values::has_certificate},
    error::Failure,
};

/// Authorities to trust, and the client's own certificate.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct TlsArgs {
    /// Certificates of the authorities of its certificate, as PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// The certificate to show to it, as PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of that certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl TlsArgs {
    /// Returns true if the arguments say that the server speaks TLS.
    pub(super) fn is_given(&self) -> bool {
        self.cacert.is_some() || self.cert.is_some()
    }

    /// Replaces what the arguments name. Fails for a file that cannot be read.
    pub(super) fn apply(&self, tls: &mut Tls, files: &mut EtcdFiles) -> Result<(), Failure> {
        if let Some(ca) = &self.cacert {
            let pem = readable("--cacert", ca)?;
            if pem.read().is_ok_and(|pem| !has_certificate(&pem)) {
                return Err(wrong("--cacert", format!("{} has no certificate as PEM", ca.display())));
            }
            tls.ca_pem = Some(pem);
            files.ca = Some(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls.identity_pem = Some((readable("--cert", cert)?, readable("--key", key)?));
            (files.cert, files.key) = (Some(cert.clone()), Some(key.clone()));
        }
        Ok(())
    }
}
