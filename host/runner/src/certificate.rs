//! Certificates: their files, and the names in those that a trusted authority has issued.

use std::path::Path;

use leasehold::Source;
use tokio_rustls::rustls::{
    self, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// Beginning of an identity of SPIFFE.
pub(crate) const SPIFFE: &str = "spiffe://";

/// Reads a file now; the sentence names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    Source::from(path.to_owned()).read().map_err(|error| error.to_string())
}

/// The certificates in a file's text, one at least.
pub(crate) fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(format!("{} holds no certificate as PEM", path.display())),
    }
}

/// The private key in a file's text.
pub(crate) fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| format!("{} holds no private key as PEM", path.display()))
}

/// The authorities in a file's text.
pub(crate) fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for authority in chain(path, pem)? {
        let added = roots.add(authority);
        added.map_err(|error| format!("{} holds no usable authority: {error}", path.display()))?;
    }
    Ok(roots)
}

/// Reason why a certificate cannot be used with a key.
pub(crate) fn unusable(cert: &Path, key: &Path, error: &rustls::Error) -> String {
    let (cert, key) = (cert.display(), key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => format!("{key} is not the key of the certificate in {cert}"),
        error => format!("{cert} and {key} cannot be used: {error}"),
    }
}

/// Names of the holder of a certificate: the identity of SPIFFE, then the DNS names among its alternative names, or the common name if
/// there is neither. Empty if it cannot be parsed.
pub(crate) fn names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let mut names: Vec<_> = identity(&certificate).into_iter().collect();
    names.extend(alternative_names(&certificate, |name| matches!(name, GeneralName::DNSName(_))));
    if names.is_empty() {
        names.extend(common_name(&certificate));
    }
    names
}

/// Returns true if the identity of SPIFFE in a certificate is this one.
pub(crate) fn is_identity(certificate: &[u8], identity: &str) -> bool {
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, certificate)| self::identity(&certificate).is_some_and(|found| found == identity))
}

/// The identity of SPIFFE: the only URI among the alternative names (X.509-SVID, section 2).
fn identity(certificate: &X509Certificate<'_>) -> Option<String> {
    let uris = alternative_names(certificate, |name| matches!(name, GeneralName::URI(_)));
    let [uri] = <[String; 1]>::try_from(uris).ok()?;
    uri.starts_with(SPIFFE).then_some(uri)
}

/// Name for people: the common name, else the first alternative name.
pub(crate) fn shown_name(certificate: &[u8]) -> String {
    let parsed = X509Certificate::from_der(certificate).ok().map(|(_, certificate)| certificate);
    let name = parsed.and_then(|certificate| {
        let alternative = || alternative_names(&certificate, |_| true).into_iter().next();
        common_name(&certificate).or_else(alternative)
    });
    crate::error::shown(&name.unwrap_or_else(|| "without a name".to_owned()))
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate.subject().iter_common_name().find_map(|name| name.as_str().ok()).map(ToOwned::to_owned)
}

fn alternative_names(certificate: &X509Certificate<'_>, is_meant: impl Fn(&GeneralName<'_>) -> bool) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let meant = names.value.general_names.iter().filter(|name| is_meant(name));
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    };
    meant.filter_map(text).collect()
}
