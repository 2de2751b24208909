//! Certificates made in the test, for etcd and for its clients.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate authority of its own.
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
    /// A new authority; nobody trusts it yet.
    pub fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("a valid authority");
        Self { issuer }
    }

    /// What a client or a server must trust, as PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for an etcd on loopback. etcd uses it as a client too, towards itself.
    pub fn server(&self) -> Pair {
        self.issue(&params("etcd", &["localhost", "127.0.0.1"]))
    }

    /// The same, run out twenty years ago.
    pub fn expired_server(&self) -> Pair {
        let mut params = params("etcd", &["localhost", "127.0.0.1"]);
        params.not_before = date_time_ymd(2004, 1, 1);
        params.not_after = date_time_ymd(2005, 1, 1);
        self.issue(&params)
    }

    /// A certificate for a client; etcd takes the name for its user.
    pub fn client(&self, name: &str) -> Pair {
        self.issue(&params(name, &[]))
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
