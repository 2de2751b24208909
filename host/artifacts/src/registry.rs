//! Registries: where they are, and how this host signs in.

use std::{fmt, sync::Once, time::Duration};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use leasehold::Source;
use oci_client::{
    Client,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use tokio_rustls::rustls::{
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::error::Error;

/// Time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without a byte of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A registry, with the way in which this host speaks to it.
#[derive(Clone, Default)]
pub struct Registry {
    /// Host, with its port if it is not the usual one.
    pub host: String,
    /// User; without one, the credentials of Docker's configuration (`~/.docker/config.json`), if it has any.
    pub username: Option<String>,
    /// Password or token of the user. Read again for each pull.
    pub password: Option<Source>,
    /// Authorities of the registry's certificate, as PEM, besides those that the system trusts. Read again for each pull.
    pub ca: Option<Source>,
    /// Hosts that are tried before the registry itself, in this order.
    pub mirrors: Vec<String>,
    /// Speaks HTTP instead of HTTPS. Secrets and components can be read and changed on their way; their digests hold for
    /// references by digest alone.
    pub plain_http: bool,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("host", &self.host).field("username", &self.username).finish_non_exhaustive()
    }
}

impl Registry {
    /// The usual way to the registry at `host`.
    pub fn at(host: impl Into<String>) -> Self {
        Self { host: host.into(), ..Self::default() }
    }

    /// A client, with the certificates as they are now. Blocks as long as the file system does.
    pub(crate) fn client(&self) -> Result<Client, Error> {
        // Of the process; an embedder that has chosen another provider keeps it.
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| drop(ring::default_provider().install_default()));
        let protocol = if self.plain_http { ClientProtocol::Http } else { ClientProtocol::Https };
        let mut extra_root_certificates = Vec::new();
        if let Some(ca) = &self.ca {
            let data = ca.read().map_err(|error| Error::Invalid(error.to_string()))?;
            // The client takes a text without any as no authority.
            if CertificateDer::pem_slice_iter(&data).next().is_none_or(|first| first.is_err()) {
                return Err(Error::Invalid(format!("{ca} must hold PEM certificates")));
            }
            extra_root_certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        let config = ClientConfig {
            protocol,
            extra_root_certificates,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("leasehold/", env!("CARGO_PKG_VERSION")),
            platform_resolver: None,
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|error| Error::Invalid(format!("no client for {}: {error}", self.host)))
    }

    /// Credentials as they are now. Blocks as long as the file system, or the program that keeps them, does.
    pub(crate) fn credentials(&self) -> Result<RegistryAuth, Error> {
        let password = |source: &Source| {
            let bytes = source.read().map_err(|error| Error::Invalid(error.to_string()))?;
            let text = String::from_utf8(bytes);
            let text = text.map_err(|_| Error::Invalid(format!("the password for {} must be UTF-8", self.host)))?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        match (&self.username, &self.password) {
            (Some(username), Some(source)) => Ok(RegistryAuth::Basic(username.clone(), password(source)?)),
            (None, Some(source)) => Ok(RegistryAuth::Bearer(password(source)?)),
            (_, None) => self.docker_credentials(),
        }
    }

    fn docker_credentials(&self) -> Result<RegistryAuth, Error> {
        match docker_credential::get_credential(&self.host) {
            Ok(DockerCredential::UsernamePassword(username, password)) => Ok(RegistryAuth::Basic(username, password)),
            // Good for an exchange alone, which the client does not know.
            Ok(DockerCredential::IdentityToken(_)) => Err(Error::Invalid(format!(
                "Docker's configuration has an identity token for {}, which is not supported; a user and a password are",
                self.host
            ))),
            Err(
                CredentialRetrievalError::ConfigNotFound
                | CredentialRetrievalError::ConfigReadError
                | CredentialRetrievalError::NoCredentialConfigured,
            ) => Ok(RegistryAuth::Anonymous),
            // Its output may hold the secret.
            Err(CredentialRetrievalError::HelperFailure { helper, .. }) => Err(Error::Invalid(format!(
                "{helper}, which Docker's configuration names for {}, gives no credentials",
                self.host
            ))),
            Err(error) => Err(Error::Invalid(format!("Docker's configuration for {}: {error}", self.host))),
        }
    }
}

#[cfg(test)]
mod tests {
    use leasehold::Source;
    use oci_client::secrets::RegistryAuth;

    use super::Registry;

    #[test]
    fn a_password_is_read_anew_and_shown_by_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let registry = Registry {
            username: Some("ci".into()),
            password: Some(Source::File(file.clone())),
            ..Registry::at("registry.example")
        };
        assert!(registry.credentials().unwrap_err().to_string().contains("cannot read"));
        for password in ["hunter2", "hunter3"] {
            std::fs::write(&file, format!("{password}\n")).unwrap();
            assert!(registry.credentials().unwrap() == RegistryAuth::Basic("ci".into(), password.into()));
        }
        assert!(!format!("{registry:?}").contains("hunter"));
    }

    #[test]
    fn a_certificate_that_is_none_is_an_error() {
        let registry = Registry { ca: Some(Source::Value(b"no PEM".to_vec())), ..Registry::at("registry.example") };
        assert!(registry.client().is_err());
        assert!(Registry::at("registry.example").client().is_ok());
    }
}
