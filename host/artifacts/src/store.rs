//! Cache of artifacts in a folder: blobs by their digest, and for each reference the manifest that it led to last, so that a
//! host starts while the registry does not answer.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{error::Error, manifest::Layer, reference::Reference};

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
    /// Size in bytes, beyond which the entries that were not used for the longest time are removed.
    max_bytes: u64,
}

/// Artifact that a reference led to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The reference, for those who look into the folder.
    pub(crate) reference: String,
    /// Digest of its manifest.
    pub(crate) manifest: String,
    /// Digest of its component, and the size of that.
    pub(crate) layer: String,
    pub(crate) bytes: u64,
    /// Fingerprints of keys whose signature was verified.
    #[serde(default)]
    pub(crate) signers: Vec<String>,
}

impl Known {
    pub(crate) fn layer(&self) -> Layer {
        Layer { digest: self.layer.clone(), bytes: self.bytes }
    }
}

impl Store {
    pub(crate) fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes }
    }

    /// Makes the folder if there is none.
    fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }

    /// The artifact that the reference led to last.
    pub(crate) fn known(&self, reference: &Reference) -> Option<Known> {
        let known: Known = serde_json::from_slice(&fs::read(self.note(reference)).ok()?).ok()?;
        (known.reference == reference.to_string()).then_some(known)
    }

    /// Notes what a reference leads to. Signatures that others have verified for the same manifest stay noted.
    pub(crate) fn note_known(&self, reference: &Reference, mut known: Known) -> Result<(), Error> {
        if let Some(before) = self.known(reference).filter(|before| before.manifest == known.manifest) {
            known.signers.extend(before.signers);
            known.signers.sort_unstable();
            known.signers.dedup();
        }
        let write = || {
            self.make()?;
            let mut file = NamedTempFile::new_in(&self.folder)?;
            file.write_all(&serde_json::to_vec(&known)?)?;
            file.persist(self.note(reference)).map_err(|error| error.error)?;
            io::Result::Ok(())
        };
        write().map_err(|error| self.failed(&error))
    }

    /// The file of a blob that is in the folder, as a whole. A damaged one is removed, and treated as a miss.
    pub(crate) fn find(&self, layer: &Layer) -> Option<PathBuf> {
        let file = self.blob(&layer.digest);
        let mut content = File::open(&file).ok()?;
        if digest(&mut content).ok()? != layer.digest {
            tracing::warn!("{} is damaged, and pulled again", file.display());
            let _ = fs::remove_file(&file); // The next one takes its place in any case.
            return None;
        }
        let _ = File::options().write(true).open(&file).and_then(|file| file.set_modified(SystemTime::now())); // It is removed sooner.
        Some(file)
    }

    /// A file for a blob that is about to be pulled.
    pub(crate) fn begin(&self) -> Result<NamedTempFile, Error> {
        let begun = self.make().and_then(|()| NamedTempFile::new_in(&self.folder));
        begun.map_err(|error| self.failed(&error))
    }

    /// Keeps a pulled blob, whose digest is checked, and makes room for it.
    pub(crate) fn keep(&self, file: NamedTempFile, digest: &str) -> Result<PathBuf, Error> {
        let path = self.blob(digest);
        let kept = file.as_file().sync_all().and_then(|()| file.persist(&path).map_err(|error| error.error));
        kept.map_err(|error| self.failed(&error))?;
        if let Err(error) = self.trim(&path) {
            tracing::warn!("the cache of artifacts may grow beyond its size: {}: {error}", self.folder.display());
        }
        Ok(path)
    }

    /// Removes the blobs that were not used for the longest time, but not `newest`, and the notes about blobs that are gone.
    fn trim(&self, newest: &Path) -> io::Result<()> {
        let (mut found, mut notes) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Another process may have removed it just now.
            let Some(facts) = entry.metadata().ok().filter(fs::Metadata::is_file) else { continue };
            let path = entry.path();
            match path.extension().is_some_and(|extension| extension == "json") {
                true => notes.push(path),
                false => found.push((path == newest, facts.modified()?, facts.len(), path)),
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        let (mut bytes, mut has_removed) = (0_u64, false);
        for (is_newest, _, size, path) in found {
            bytes = bytes.saturating_add(size);
            if bytes > self.max_bytes && !is_newest {
                let _ = fs::remove_file(path); // As above.
                has_removed = true;
            }
        }
        for note in notes.into_iter().filter(|_| has_removed) {
            let known = fs::read(&note).ok().and_then(|note| serde_json::from_slice::<Known>(&note).ok());
            if !known.is_some_and(|known| self.blob(&known.layer).exists()) {
                let _ = fs::remove_file(note); // As above.
            }
        }
        Ok(())
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{}.wasm", digest.replace(':', "-")))
    }

    fn note(&self, reference: &Reference) -> PathBuf {
        self.folder.join(format!("{:x}.json", Sha256::digest(reference.to_string())))
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::Cache(format!("{}: {error}", self.folder.display()))
    }
}

/// Digest of a content, as registries write it.
pub(crate) fn digest(content: &mut impl io::Read) -> io::Result<String> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
    loop {
        match content.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(format!("sha256:{:x}", hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write,
        time::{Duration, SystemTime},
    };

    use super::{Known, Store, digest};
    use crate::manifest::Layer;

    fn keep(store: &Store, content: &[u8]) -> Layer {
        let mut file = store.begin().unwrap();
        file.write_all(content).unwrap();
        let layer = Layer { digest: digest(&mut &*content).unwrap(), bytes: content.len() as u64 };
        store.keep(file, &layer.digest).unwrap();
        layer
    }

    #[test]
    fn a_blob_is_found_by_its_digest_and_a_damaged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("artifacts"), 1 << 20);
        let layer = keep(&store, b"component");
        let file = store.find(&layer).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"component");
        fs::write(&file, b"something else").unwrap();
        assert!(store.find(&layer).is_none() && !file.exists());
    }

    #[test]
    fn blobs_that_are_not_used_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned(), 25);
        let [first, second] = [b"first 1234", b"second 123"].map(|content| {
            let layer = keep(&store, content);
            let old = SystemTime::now() - Duration::from_secs(1000);
            File::options().write(true).open(store.blob(&layer.digest)).unwrap().set_modified(old).unwrap();
            layer
        });
        assert!(store.find(&first).is_some(), "it is used again");
        let third = keep(&store, b"third 1234");
        assert!(store.find(&first).is_some() && store.find(&second).is_none() && store.find(&third).is_some());
        let large = keep(&store, &[0; 100]);
        assert!(store.find(&large).is_some(), "the newest one stays, however large it is");
    }

    #[test]
    fn a_reference_is_known_as_it_was_noted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned(), 1 << 20);
        let reference = "oci://registry.example/user:1".parse().unwrap();
        assert!(store.known(&reference).is_none());
        let known = Known {
            reference: "oci://registry.example/user:1".into(),
            manifest: "sha256:a".into(),
            layer: "sha256:b".into(),
            bytes: 7,
            signers: vec!["sha256:c".into()],
        };
        store.note_known(&reference, known.clone()).unwrap();
        // A pull without keys forgets no signature, unless the tag has moved.
        store.note_known(&reference, Known { signers: Vec::new(), ..known.clone() }).unwrap();
        let found = store.known(&reference).unwrap();
        assert_eq!((found.manifest, found.layer, found.signers), (known.manifest, known.layer, known.signers));
        assert!(store.known(&"oci://registry.example/user:2".parse().unwrap()).is_none());
        let moved = Known { manifest: "sha256:d".into(), signers: Vec::new(), ..store.known(&reference).unwrap() };
        store.note_known(&reference, moved).unwrap();
        assert!(store.known(&reference).unwrap().signers.is_empty());
        fs::write(store.note(&reference), "{").unwrap();
        assert!(store.known(&reference).is_none());
    }
}
