//! Signatures by a public key, in the format that `cosign sign --key` stores beside an artifact: a tag `sha256-….sig` with a
//! layer for each signature, whose content names the digest of the artifact's manifest.
//!
//! <https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde_json::{Value, from_slice};
use sha2::{Digest, Sha256};
use x509_parser::{pem::parse_x509_pem, prelude::FromDer, x509::SubjectPublicKeyInfo};

use crate::error::Error;

/// Media type of a signed payload.
pub(crate) const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of its layer with the signature.
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Largest payload that is read.
pub(crate) const MAX_PAYLOAD_BYTES: i64 = 64 << 10;
/// Signatures of one artifact that are tried.
pub(crate) const MAX_SIGNATURES: usize = 32;

/// Public key whose signature an artifact needs.
#[derive(Clone)]
pub struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
    id: String,
}

impl PublicKey {
    /// Parses a PEM file with one key: ECDSA over P-256 or P-384, Ed25519, or RSA of 2,048 bits or more.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let invalid = |why: &str| Error::Invalid(format!("a public key {why}"));
        let (_, pem) =
            parse_x509_pem(pem).map_err(|_| invalid("must be PEM, as `cosign generate-key-pair` writes it"))?;
        if pem.label != "PUBLIC KEY" {
            return Err(invalid(&format!("must be a PUBLIC KEY, not a {}", pem.label)));
        }
        let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| invalid("is damaged"))?;
        let parameter = info.algorithm.parameters.as_ref().and_then(|parameter| parameter.as_oid().ok());
        let curve = parameter.map(|oid| oid.to_id_string());
        let algorithm: &dyn VerificationAlgorithm = match (&*info.algorithm.algorithm.to_id_string(), curve.as_deref())
        {
            ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => &ECDSA_P256_SHA256_ASN1,
            ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => &ECDSA_P384_SHA384_ASN1,
            ("1.3.101.112", _) => &ED25519,
            ("1.2.840.113549.1.1.1", _) => &RSA_PKCS1_2048_8192_SHA256,
            _ => return Err(invalid("must be of ECDSA over P-256 or P-384, Ed25519 or RSA")),
        };
        let id = format!("sha256:{:x}", Sha256::digest(&pem.contents));
        Ok(Self { algorithm, key: info.subject_public_key.data.to_vec(), id })
    }

    /// Fingerprint of the key: the SHA-256 of its DER form.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn has_signed(&self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.key).verify(payload, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&self.id).finish()
    }
}

/// Tag beside an artifact under which its signatures are.
pub(crate) fn tag(manifest: &str) -> String {
    format!("{}.sig", manifest.replace(':', "-"))
}

/// The key, if one of these keys has signed the payload, and the payload is about the manifest with that digest.
pub(crate) fn signer<'a>(
    keys: &'a [PublicKey],
    payload: &[u8],
    signature: &str,
    manifest: &str,
) -> Option<&'a PublicKey> {
    let signature = STANDARD.decode(signature).ok()?;
    // Parsed only once the signature is known to be that of a trusted key.
    let key = keys.iter().find(|key| key.has_signed(payload, &signature))?;
    let signed: Value = from_slice(payload).ok()?;
    let critical = &signed["critical"];
    let is_about_it = critical["type"] == "cosign container image signature"
        && critical["image"]["docker-manifest-digest"] == manifest;
    is_about_it.then_some(key)
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
    };
    use serde_json::json;

    use super::{PublicKey, signer, tag};

    /// PEM of a public key, given the DER of its algorithm.
    fn pem(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u8::try_from(bytes).unwrap();
        let bits = [&[3, length(key.len() + 1), 0], key].concat();
        let all = [&[0x30, length(algorithm.len() + bits.len())], algorithm, &bits].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(all)).into_bytes()
    }

    const P256: &[u8] =
        &[0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    const EDWARDS: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];

    fn payload(manifest: &str) -> Vec<u8> {
        let image = json!({ "docker-manifest-digest": manifest });
        let critical = json!({ "type": "cosign container image signature", "image": image });
        json!({ "critical": critical, "optional": null }).to_string().into_bytes()
    }

    #[test]
    fn a_signature_counts_for_its_key_and_its_manifest_alone() {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let elliptic = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        let document = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let edwards = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let keys = [
            PublicKey::from_pem(&pem(P256, elliptic.public_key().as_ref())).unwrap(),
            PublicKey::from_pem(&pem(EDWARDS, edwards.public_key().as_ref())).unwrap(),
        ];
        let signed = payload("sha256:a");
        let by_first = STANDARD.encode(elliptic.sign(&random, &signed).unwrap());
        let by_second = STANDARD.encode(edwards.sign(&signed));
        let id = |key: Option<&PublicKey>| key.map(|key| key.id().to_owned());
        assert_eq!(id(signer(&keys, &signed, &by_first, "sha256:a")), id(Some(&keys[0])));
        assert_eq!(id(signer(&keys, &signed, &by_second, "sha256:a")), id(Some(&keys[1])));
        assert!(signer(&keys[1..], &signed, &by_first, "sha256:a").is_none(), "another key");
        assert!(signer(&keys, &signed, &by_first, "sha256:b").is_none(), "another manifest");
        assert!(signer(&keys, &payload("sha256:b"), &by_first, "sha256:b").is_none(), "another payload");
        assert!(signer(&keys, &signed, "no base64", "sha256:a").is_none());
        assert!(signer(&[], &signed, &by_first, "sha256:a").is_none());
        let other = br#"{"critical":{"type":"something else","image":{"docker-manifest-digest":"sha256:a"}}}"#;
        assert!(signer(&keys, other, &STANDARD.encode(edwards.sign(other)), "sha256:a").is_none(), "another type");
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let private = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (bad, why) in [
            (&b"text"[..], "must be PEM"),
            (private, "not a PRIVATE KEY"),
            (&pem(&[0x30, 3, 6, 1, 0x2a], b"key"), "must be of ECDSA"),
        ] {
            let error = PublicKey::from_pem(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn signatures_are_beside_their_artifact() {
        assert_eq!(tag("sha256:ab"), "sha256-ab.sig");
    }
}
