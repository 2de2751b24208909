//! Certificates for etcd and for its clients, created by the test.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

/// A private certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// Creates an authority.
    pub fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("a valid authority");
        Self { issuer }
    }

    /// The authority's certificate for clients and servers, as PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate for an etcd on loopback. etcd also uses it as a client, towards itself.
    pub fn server(&self) -> Pair {
        self.issue(&params("etcd", &["localhost", "127.0.0.1"]))
    }

    /// Issues such a certificate that expired twenty years ago.
    pub fn expired_server(&self) -> Pair {
        let mut params = params("etcd", &["localhost", "127.0.0.1"]);
        params.not_before = date_time_ymd(2004, 1, 1);
        params.not_after = date_time_ymd(2005, 1, 1);
        self.issue(&params)
    }

    /// Issues a certificate for a process on loopback with these further names: DNS names, and identities of SPIFFE.
    ///
    /// # Panics
    /// For a name that is neither.
    pub fn node(&self, common: &str, names: &[&str]) -> Pair {
        let mut params = params(common, &["localhost", "127.0.0.1"]);
        params.subject_alt_names.extend(names.iter().map(|name| {
            let text = (*name).try_into().expect("a name in ASCII");
            if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }
        }));
        self.issue(&params)
    }

    /// Issues a certificate for a client; etcd uses the name as the user.
    pub fn client(&self, name: &str) -> Pair {
        self.issue(&params(name, &[]))
    }

    /// The same, run out twenty years ago.
    pub fn expired_client(&self, name: &str) -> Pair {
        let mut params = params(name, &[]);
        params.not_before = date_time_ymd(2004, 1, 1);
        params.not_after = date_time_ymd(2005, 1, 1);
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Pair {
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer);
        Pair { certificate: certificate.expect("a valid certificate").pem(), key: key.serialize_pem() }
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key can be made")
}

fn params(name: &str, addresses: &[&str]) -> CertificateParams {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(addresses).expect("valid names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}
