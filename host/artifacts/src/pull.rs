//! Pulls: from a reference to the file of a component, in the order in which it is done.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::TryStreamExt;
use oci_client::{Client, errors::DigestError, manifest::OciDescriptor, secrets::RegistryAuth};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::{
    fs::File,
    io::AsyncWriteExt,
    sync::{Mutex as AsyncMutex, Semaphore},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::{
    error::Error,
    manifest::{Layer, MANIFESTS},
    reference::{Reference, is_sha256},
    registry::Registry,
    signature::{self, PublicKey},
    store::{self, Known, Store},
};

/// Components that are downloaded at a time.
const MAX_DOWNLOADS: usize = 4;
/// Threads that read files and credentials at a time.
const MAX_THREADS: usize = 16;
/// Time for a manifest, the sign-in included.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a component.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Default size of the cache.
const MAX_CACHE_BYTES: u64 = 4 << 30;

/// Registries that artifacts come from, and the folder that keeps them.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the cache. Made if there is none. Other users must not be able to write there.
    pub folder: PathBuf,
    /// Size of the cache in bytes, 4 GiB by default. Beyond it, the components that were not used for the longest time are
    /// removed; the newest one stays.
    pub max_cache_bytes: u64,
    /// Registries that need more than their host. Others are spoken to over HTTPS, with Docker's credentials.
    pub registries: Vec<Registry>,
}

impl Options {
    /// A cache in this folder, and no registry that needs more than its host.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), max_cache_bytes: MAX_CACHE_BYTES, registries: Vec::new() }
    }
}

/// A component that was pulled, or found in the cache.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pulled {
    /// Its file, which others may use as well: it is not changed, and may be removed once the cache needs room.
    pub file: PathBuf,
    /// Digest of its manifest, by which a reference names it for good.
    pub digest: String,
    /// Fingerprint of the key whose signature was verified, where one was needed.
    pub signer: Option<String>,
}

/// Use of the artifact of the last pull of a reference while its registry does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// It stands in, as for a start.
    StandsIn,
    /// It is of no use, as where another one is to follow it: the pull fails.
    Refused,
}

/// Progress of a download: bytes so far, and bytes in all.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Pulls artifacts, and pushes them. Clones share the cache.
#[derive(Debug, Clone)]
pub struct Artifacts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    registries: Vec<Registry>,
    /// Pulls in progress, by reference: the second of two finds the file of the first.
    pulls: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
    permits: Semaphore,
    threads: Arc<Semaphore>,
    /// Work on files, each awaited by its caller.
    tasks: TaskTracker,
}

/// A registry, or a mirror of it, that this host is signed in to.
struct Session {
    client: Client,
    credentials: RegistryAuth,
    host: String,
}

impl Artifacts {
    /// Makes no folder and no connection yet.
    pub fn new(options: Options) -> Self {
        let shared = Shared {
            store: Store::new(options.folder, options.max_cache_bytes),
            registries: options.registries,
            pulls: Mutex::default(),
            permits: Semaphore::new(MAX_DOWNLOADS),
            threads: Arc::new(Semaphore::new(MAX_THREADS)),
            tasks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The component of a reference: from the registry, or from the cache if it is there with that digest. With `keys`, one
    /// of them has to have signed it, which is checked before it is downloaded.
    ///
    /// While the registry does not answer, or with nothing of use, the artifact of the last pull of this reference stands in, with
    /// a warning, if that is allowed and its signature was verified by one of `keys` then. A reference by digest in the cache
    /// needs no registry at all. Another pull of the same reference is waited for. A manifest may take a minute, and
    /// a component 15.
    pub async fn pull(
        &self,
        reference: &Reference,
        keys: &[PublicKey],
        former: Former,
        progress: Progress<'_>,
    ) -> Result<Pulled, Error> {
        let lock = self.lock_of(reference);
        let _only = lock.lock().await;
        let cached = self.cached(reference, keys).await?;
        if reference.digest().is_some()
            && let Some(cached) = cached
        {
            return Ok(cached);
        }
        match (self.pull_from_registries(reference, keys, progress).await, cached) {
            (Err(error), Some(cached)) if former == Former::StandsIn && error.is_transient() => {
                tracing::warn!("{reference}: {error}; {} of an earlier pull is used", cached.digest);
                Ok(cached)
            }
            (outcome, _) => outcome,
        }
    }

    /// Digest that a reference leads to now.
    pub async fn resolve(&self, reference: &Reference) -> Result<String, Error> {
        if let Some(digest) = reference.digest() {
            return Ok(digest.to_owned());
        }
        let mut outcome = Err(Error::Invalid(format!("{reference}: no registry")));
        for host in self.hosts(reference) {
            outcome = within(MANIFEST_TIMEOUT, &host, async {
                let session = self.session(&host).await?;
                let digest = session.client.fetch_manifest_digest(&reference.at(&host), &session.credentials).await;
                digest.map_err(|error| Error::of(error, &host, &reference.name()))
            })
            .await;
            // A mirror may be behind: while it is away, its registry does not take its place in turn.
            if !matches!(outcome, Err(Error::NotFound { .. } | Error::Denied { .. })) {
                break;
            }
        }
        outcome
    }

    /// The artifact of the last pull of this reference, if the cache has it.
    async fn cached(&self, reference: &Reference, keys: &[PublicKey]) -> Result<Option<Pulled>, Error> {
        let (store, reference, keys) = (self.shared.store.clone(), reference.clone(), keys.to_vec());
        self.blocking(move || {
            let Some(known) = store.known(&reference) else { return Ok(None) };
            let signer = known.signers.iter().find(|signer| keys.iter().any(|key| key.id() == **signer)).cloned();
            let is_as_meant = reference.digest().is_none_or(|digest| digest == known.manifest);
            if !is_as_meant || (signer.is_none() && !keys.is_empty()) {
                return Ok(None);
            }
            Ok(store.find(&known.layer()).map(|file| Pulled { file, digest: known.manifest, signer }))
        })
        .await
    }

    /// Tries the mirrors, then the registry, whose error counts.
    async fn pull_from_registries(
        &self,
        reference: &Reference,
        keys: &[PublicKey],
        progress: Progress<'_>,
    ) -> Result<Pulled, Error> {
        let mut outcome = Err(Error::Invalid(format!("{reference}: no registry")));
        for host in self.hosts(reference) {
            outcome = self.pull_from(&host, reference, keys, progress).await;
            match &outcome {
                Ok(_) => break,
                Err(error) if host != reference.registry() => {
                    tracing::info!("{reference}: not from the mirror {host}: {error}");
                }
                Err(_) => {}
            }
        }
        outcome
    }

    async fn pull_from(
        &self,
        host: &str,
        reference: &Reference,
        keys: &[PublicKey],
        progress: Progress<'_>,
    ) -> Result<Pulled, Error> {
        let (session, name) = (within(MANIFEST_TIMEOUT, host, self.session(host)).await?, reference.name());
        let (manifest, digest) = within(MANIFEST_TIMEOUT, host, session.manifest(reference)).await?;
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(Error::Unusable(format!("{host} sends {digest} in place of {expected}")));
        }
        let layer = Layer::of(&manifest, &name)?;
        let signer = match keys {
            [] => None,
            keys => Some(within(MANIFEST_TIMEOUT, host, session.signer(reference, &digest, keys)).await?),
        };
        let (store, wanted) = (self.shared.store.clone(), layer.clone());
        let file = match self.blocking(move || Ok(store.find(&wanted))).await? {
            Some(file) => file,
            None => self.download(&session, reference, &layer, progress).await?,
        };
        let known = Known {
            reference: reference.to_string(),
            manifest: digest.clone(),
            layer: layer.digest,
            bytes: layer.bytes,
            signers: signer.iter().cloned().collect(),
        };
        let (store, noted) = (self.shared.store.clone(), reference.clone());
        if let Err(error) = self.blocking(move || store.note_known(&noted, known)).await {
            tracing::warn!("{reference}: without its registry, it will not be found: {error}");
        }
        Ok(Pulled { file, digest, signer })
    }

    async fn download(
        &self,
        session: &Session,
        reference: &Reference,
        layer: &Layer,
        progress: Progress<'_>,
    ) -> Result<PathBuf, Error> {
        let _permit = self.shared.permits.acquire().await.expect("it is never closed");
        let store = self.shared.store.clone();
        let (file, written) = self
            .blocking(move || {
                let file = store.begin()?;
                let written = file.reopen().map_err(|error| Error::Cache(error.to_string()))?;
                Ok((file, written))
            })
            .await?;
        let host = &session.host;
        within(DOWNLOAD_TIMEOUT, host, session.blob(reference, layer, File::from_std(written), progress)).await?;
        let (store, digest) = (self.shared.store.clone(), layer.digest.clone());
        self.blocking(move || store.keep(file, &digest)).await
    }

    /// Mirrors of a registry, then the registry.
    fn hosts(&self, reference: &Reference) -> Vec<String> {
        let mut hosts = self.registry(reference.registry()).mirrors;
        hosts.push(reference.registry().to_owned());
        hosts
    }

    fn registry(&self, host: &str) -> Registry {
        let known = self.shared.registries.iter().find(|registry| registry.host == host);
        known.cloned().unwrap_or_else(|| Registry::at(host))
    }

    async fn session(&self, host: &str) -> Result<Session, Error> {
        let registry = self.registry(host);
        let made = self.blocking(move || Ok((registry.client()?, registry.credentials()?))).await;
        made.map(|(client, credentials)| Session { client, credentials, host: host.to_owned() })
    }

    /// Session for a push, which goes to no mirror.
    pub(crate) async fn push_session(&self, reference: &Reference) -> Result<(Client, RegistryAuth), Error> {
        let Session { client, credentials, .. } = self.session(reference.registry()).await?;
        Ok((client, credentials))
    }

    fn lock_of(&self, reference: &Reference) -> Arc<AsyncMutex<()>> {
        let mut pulls = self.shared.pulls.lock();
        pulls.retain(|_, pull| pull.strong_count() > 0);
        let pull = pulls.entry(reference.to_string()).or_default();
        pull.upgrade().unwrap_or_else(|| {
            let lock = Arc::default();
            *pull = Arc::downgrade(&lock);
            lock
        })
    }

    /// Runs work on a thread that may block. Where neither a file system nor a program that keeps credentials comes back, work
    /// waits rather than takes all threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let thread = Arc::clone(&self.shared.threads).acquire_owned().await.expect("it is never closed");
        let done = self.shared.tasks.spawn_blocking(move || {
            let _thread = thread;
            work()
        });
        let done = done.await;
        done.unwrap_or_else(|error| Err(Error::Cache(error.to_string())))
    }
}

/// Waits for a step of a pull, for so long at most.
async fn within<T>(time: Duration, host: &str, step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Err(Error::unavailable(host, format!("nothing complete within {time:?}")));
    Box::pin(timeout(time, step)).await.unwrap_or_else(late)
}

impl Session {
    fn failed(&self, error: oci_client::errors::OciDistributionError, name: &str) -> Error {
        Error::of(error, &self.host, name)
    }

    /// A manifest and its digest, which is that of the bytes whatever the registry says.
    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String), Error> {
        let image = reference.at(&self.host);
        let pulled = self.client.pull_manifest_raw(&image, &self.credentials, &MANIFESTS).await;
        let (manifest, _) = pulled.map_err(|error| self.failed(error, &reference.name()))?;
        let digest = store::digest(&mut &*manifest).map_err(|error| Error::Cache(error.to_string()))?;
        Ok((manifest.to_vec(), digest))
    }

    /// Fingerprint of the first of the keys that has signed the manifest with that digest.
    async fn signer(&self, reference: &Reference, manifest: &str, keys: &[PublicKey]) -> Result<String, Error> {
        let unsigned =
            |why: &str| Error::Unsigned(format!("{reference} ({manifest}) is not signed by a trusted key: {why}"));
        let beside = reference.with_tag(signature::tag(manifest));
        let image = beside.at(&self.host);
        let signatures = match self.client.pull_manifest_raw(&image, &self.credentials, &MANIFESTS).await {
            Ok((signatures, _)) => signatures,
            Err(error) => {
                return Err(match self.failed(error, &beside.name()) {
                    Error::NotFound { .. } => unsigned("there is no signature beside it"),
                    error => error,
                });
            }
        };
        let parsed: oci_client::manifest::OciImageManifest =
            serde_json::from_slice(&signatures).map_err(|error| unsigned(&format!("its signatures: {error}")))?;
        let is_signature = |layer: &&OciDescriptor| {
            layer.media_type == signature::PAYLOAD
                && (0..=signature::MAX_PAYLOAD_BYTES).contains(&layer.size)
                && is_sha256(&layer.digest)
        };
        for layer in parsed.layers.iter().filter(is_signature).take(signature::MAX_SIGNATURES) {
            let Some(signature) = layer.annotations.as_ref().and_then(|all| all.get(signature::SIGNATURE)) else {
                continue;
            };
            let mut payload = Vec::new();
            let wanted = Layer { digest: layer.digest.clone(), bytes: layer.size.unsigned_abs() };
            self.blob(&beside, &wanted, &mut payload, &|_, _| {}).await?;
            if let Some(key) = signature::signer(keys, &payload, signature, manifest) {
                return Ok(key.id().to_owned());
            }
        }
        Err(unsigned("those beside it are by others"))
    }

    /// Writes a blob, whose size and digest are checked.
    async fn blob(
        &self,
        reference: &Reference,
        layer: &Layer,
        mut to: impl tokio::io::AsyncWrite + Unpin,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let name = reference.name();
        let unusable = |why: String| Error::Unusable(format!("{} sends a wrong answer for {name}: {why}", self.host));
        let unavailable = |why: String| Error::Unavailable { registry: self.host.clone(), why };
        let descriptor = OciDescriptor { digest: layer.digest.clone(), ..OciDescriptor::default() };
        let image = reference.at(&self.host);
        let stream = self.client.pull_blob_stream(&image, &descriptor).await;
        let mut stream = stream.map_err(|error| self.failed(error, &name))?.stream;
        let (mut bytes, mut hasher) = (0, Sha256::new());
        loop {
            let chunk = match stream.try_next().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error)
                    if error.get_ref().is_some_and(|error| error.is::<DigestError>()) && bytes == layer.bytes =>
                {
                    return Err(unusable(format!("its content is not that of {}", layer.digest)));
                }
                Err(error) => {
                    return Err(unavailable(format!(
                        "the download ended after {bytes} of {} bytes: {error}",
                        layer.bytes
                    )));
                }
            };
            bytes += chunk.len() as u64;
            if bytes > layer.bytes {
                return Err(unusable(format!("more than the {} bytes of its manifest", layer.bytes)));
            }
            hasher.update(&chunk);
            to.write_all(&chunk).await.map_err(|error| Error::Cache(error.to_string()))?;
            progress(bytes, layer.bytes);
        }
        to.flush().await.map_err(|error| Error::Cache(error.to_string()))?;
        if bytes < layer.bytes {
            return Err(unavailable(format!("the download ended after {bytes} of {} bytes", layer.bytes)));
        }
        match format!("sha256:{:x}", hasher.finalize()) == layer.digest {
            true => Ok(()),
            false => Err(unusable(format!("its content is not that of {}", layer.digest))),
        }
    }
}
