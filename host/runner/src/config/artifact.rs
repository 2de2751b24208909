//! Components in registries: where a component comes from, and the keys that have to have signed it.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use leasehold::Source;
use leasehold_artifacts::{Artifacts, Options, PublicKey, Reference, Registry};

use crate::process::cache_folder;

/// Folder within the cache.
const FOLDER: &str = "artifacts";
/// Interval at which a component without a configuration file is watched, which is the default of `artifacts.poll`.
pub(crate) const ARTIFACT_POLL: Duration = Duration::from_secs(30);

/// Origin of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    File(PathBuf),
    Registry(Reference),
}

/// A component that is pulled from a registry.
#[derive(Clone)]
pub(crate) struct Artifact {
    pub(crate) reference: Reference,
    /// Files of public keys; one of the keys has to have signed the component. Read again for each pull.
    pub(crate) keys: Vec<PathBuf>,
    /// Interval at which `run --watch` looks where a tag leads.
    pub(crate) poll: Duration,
    /// Registries and the cache; the error says why there is no cache.
    pub(crate) artifacts: Result<Artifacts, String>,
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact").field("reference", &self.reference).field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Artifact {
    /// The keys as they are now. Blocks as long as the file system does.
    pub(crate) fn read_keys(&self) -> Result<Vec<PublicKey>, String> {
        self.keys.iter().map(|path| read_key(path)).collect()
    }
}

/// Reads a public key. The error names the file.
pub(crate) fn read_key(path: &Path) -> Result<PublicKey, String> {
    let pem = Source::from(path.to_owned()).read().map_err(|error| error.to_string())?;
    PublicKey::from_pem(&pem).map_err(|error| format!("{}: {error}", path.display()))
}

/// These registries, and the user's cache of that size.
pub(crate) fn artifacts(registries: Vec<Registry>, max_cache_bytes: u64) -> Result<Artifacts, String> {
    let folder = cache_folder::path().map_err(|error| format!("components cannot be pulled: {error:#}"))?;
    let mut options = Options::new(folder.join(FOLDER));
    options.registries = registries;
    options.max_cache_bytes = max_cache_bytes;
    Ok(Artifacts::new(options))
}
