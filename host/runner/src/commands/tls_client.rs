//! TLS of a client: the authorities that it trusts, and its own certificate.

use std::sync::Arc;

use leasehold::Tls;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// The configuration of a client. The error is for the operator.
pub(super) fn config(tls: &Tls) -> Result<ClientConfig, String> {
    let mut authorities = RootCertStore::empty();
    match &tls.ca_pem {
        None => drop(authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(ca) => {
            for authority in certificates(&ca.read().map_err(|error| error.to_string())?)? {
                authorities.add(authority).map_err(|error| error.to_string())?;
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = config.with_root_certificates(authorities);
    let Some((certificate, key)) = &tls.identity_pem else { return Ok(config.with_no_client_auth()) };
    let chain = certificates(&certificate.read().map_err(|error| error.to_string())?)?;
    let key = PrivateKeyDer::from_pem_slice(&key.read().map_err(|error| error.to_string())?);
    let key = key.map_err(|_| "no private key as PEM".to_owned())?;
    config.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|_| "no certificate as PEM".to_owned())
}
