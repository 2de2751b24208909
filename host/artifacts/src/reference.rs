//! References to artifacts: `oci://HOST/NAME:TAG`, or `@sha256:…` in place of the tag.

use std::{fmt, str::FromStr};

use crate::error::Error;

/// Scheme of a reference.
const SCHEME: &str = "oci://";

/// Reference to an artifact in a registry, by tag or by digest. A tag may move to another artifact, a digest does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference(oci_client::Reference);

impl Reference {
    /// Returns true if a text is meant as a reference, whether it is a correct one or not.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Host of the registry, with its port if it has one.
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// The digest, if the reference is by digest.
    pub fn digest(&self) -> Option<&str> {
        self.0.digest()
    }

    /// Text of the reference to the same name by this digest.
    pub fn at_digest(&self, digest: &str) -> String {
        format!("{SCHEME}{}/{}@{digest}", self.registry(), self.0.repository())
    }

    /// Name at the registry, with tag or digest.
    pub(crate) fn name(&self) -> String {
        match (self.0.digest(), self.0.tag()) {
            (Some(digest), _) => format!("{}@{digest}", self.0.repository()),
            (None, tag) => format!("{}:{}", self.0.repository(), tag.unwrap_or_default()),
        }
    }

    /// The same at `host`, the registry itself or a mirror of it.
    pub(crate) fn at(&self, host: &str) -> oci_client::Reference {
        let mut reference = self.0.clone();
        if host != self.registry() {
            reference.set_mirror_registry(host.to_owned());
        }
        reference
    }

    /// Reference to another tag beside it.
    pub(crate) fn with_tag(&self, tag: String) -> Self {
        Self(oci_client::Reference::with_tag(self.registry().to_owned(), self.0.repository().to_owned(), tag))
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::Invalid(format!("{text}: {why}"));
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| invalid("an artifact is oci://HOST/NAME:TAG"))?;
        let (host, name) = rest.split_once('/').ok_or_else(|| invalid("must be oci://HOST/NAME:TAG"))?;
        if host.contains('@') {
            return Err(Error::Invalid(
                "a reference has no user and no password; they belong to the registry".to_owned(),
            ));
        }
        // Without one, the first part of the name would be taken for Docker's.
        if host != "localhost" && !host.contains(['.', ':']) {
            return Err(invalid("must begin with the host of the registry, such as oci://registry.example/NAME:TAG"));
        }
        if !name.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
            return Err(invalid("must end with a tag, such as :1.4.2, or a digest, @sha256:…"));
        }
        let parsed: oci_client::Reference = rest.parse().map_err(|error| invalid(&format!("{error}")))?;
        match parsed.digest() {
            Some(digest) if !is_sha256(digest) => Err(invalid("its digest must be sha256: and 64 hexadecimal digits")),
            _ => Ok(Self(parsed)),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.registry(), self.name())
    }
}

/// Returns true for the digest of SHA-256, the one algorithm that is used here.
pub(crate) fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn a_reference_names_a_registry_and_a_tag_or_a_digest() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        for good in [
            "oci://registry.example/user:1.4.2".to_owned(),
            "oci://localhost:5000/team/deep/user:v1".to_owned(),
            format!("oci://127.0.0.1:5000/user@{digest}"),
        ] {
            let reference: Reference = good.parse().unwrap_or_else(|error| panic!("{good}: {error}"));
            assert_eq!(reference.to_string(), good);
        }
        for (bad, why) in [
            ("registry.example/user:1", "an artifact is oci://"),
            ("oci://user:1", "must be oci://HOST/NAME:TAG"),
            ("oci://team/user:1", "must begin with the host"),
            ("oci://registry.example/user", "must end with a tag"),
            ("oci://registry.example:5000/user", "must end with a tag"),
            ("oci://root:secret@registry.example/user:1", "no password"),
            ("oci://registry.example/user@sha256:abc", ""),
            ("oci://registry.example/user@sha512:abc", ""),
            ("oci://[::1]:5000/user:1", ""),
            ("oci://registry.example/UPPER:1", ""),
            ("oci://registry.example/:1", ""),
        ] {
            let error = bad.parse::<Reference>().expect_err(bad).to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{bad}: {error}");
        }
    }
}
