//! Cache of compiled components in the user's cache folder. A start maps the machine code: it is neither unpacked nor
//! copied, and processes with the same component share it. wasmtime's own cache compresses its entries (decision 15).

use std::{
    fs::{self, File, Permissions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Cursor, Read, Seek},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};
use wasmtime::{Engine, component::Component};

use crate::{process::cache_folder, wasm::error::into_anyhow};

/// Size of the cache in bytes. Beyond it the entries that were not used for the longest time are removed.
const MAX_BYTES: u64 = 1 << 30;
/// Resolution of the time of the last use.
const USE_RESOLUTION: Duration = Duration::from_secs(60 * 60);

/// The folder, with counters of misses and hits.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    max_bytes: u64,
    compiled: AtomicUsize,
    found: AtomicUsize,
}

impl Cache {
    /// Opens the cache of the user; without a usable folder the log says why.
    pub(crate) fn open() -> Option<Self> {
        let opened = cache_folder::path().and_then(|folder| {
            cache_folder::own(&folder)?;
            Ok(Self::at(folder, MAX_BYTES))
        });
        opened.inspect_err(|error| tracing::warn!("components are compiled at every start: {error:#}")).ok()
    }

    fn at(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes, compiled: AtomicUsize::new(0), found: AtomicUsize::new(0) }
    }

    /// Number of components that were compiled so far, and number of cache hits.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.compiled.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed))
    }

    /// The component whose file has this digest, if an earlier start has compiled it.
    pub(crate) fn find(&self, engine: &Engine, digest: &str) -> Option<Component> {
        let found = find(engine, &self.folder.join(name(engine, digest)))?;
        self.found.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    /// Stores the machine code that a child of this process has compiled from the file with this digest, and maps it. Fails if it is not
    /// machine code of this release.
    pub(crate) fn take(&self, engine: &Engine, digest: &str, code: &mut File) -> wasmtime::Result<Component> {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.join(name(engine, digest));
        let kept = write_from(&file, code, 0o600).map_err(anyhow::Error::from);
        if let Err(error) = &kept {
            self.not_kept(error);
        }
        self.trim();
        match kept.ok().and_then(|()| find(engine, &file)) {
            Some(component) => Ok(component),
            None => written(engine, code),
        }
    }

    /// The component in these bytes, from the cache or compiled now. Errors are those of the bytes.
    pub(crate) fn component(&self, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
        let digest = digest(bytes);
        if let Some(found) = self.find(engine, &digest) {
            return Ok(found);
        }
        let file = self.folder.join(name(engine, &digest));
        let component = Component::new(engine, bytes)?;
        self.compiled.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = keep(&component, &file) {
            self.not_kept(&error);
        }
        self.trim();
        Ok(component)
    }

    fn not_kept(&self, error: &anyhow::Error) {
        tracing::warn!("a component will be compiled at the next start, too: {}: {error:#}", self.folder.display());
    }

    fn trim(&self) {
        if let Err(error) = self.forget_old()
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("the cache may grow beyond its size: {}: {error}", self.folder.display());
        }
    }

    /// Removes old entries, and leftovers of a process that ended halfway.
    fn forget_old(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Another process may have removed it just now.
            let Some(found) = entry.metadata().ok().filter(fs::Metadata::is_file) else { continue };
            kept.push((found.modified()?, found.len(), entry.path()));
        }
        kept.sort_by(|a, b| b.cmp(a));
        let mut all = 0;
        for (_, size, path) in kept {
            all += size;
            if all > self.max_bytes {
                let _ = fs::remove_file(path); // As above.
            }
        }
        Ok(())
    }
}

fn keep(component: &Component, file: &Path) -> anyhow::Result<()> {
    Ok(write_whole(file, &component.serialize().map_err(into_anyhow)?, 0o600)?)
}

/// Loads the machine code that a child of this process has just written into a file without a name.
#[expect(unsafe_code, reason = "what this host has compiled does not have to be compiled again")]
pub(crate) fn written(engine: &Engine, code: &mut File) -> wasmtime::Result<Component> {
    code.rewind()?;
    let mut bytes = Vec::new();
    code.read_to_end(&mut bytes)?;
    // SAFETY: the file has no name, and the process that wrote it is this very program.
    unsafe { Component::deserialize(engine, bytes) }
}

/// SHA-256 of a component file, in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> Arc<str> {
    format!("{:x}", Sha256::digest(bytes)).into()
}

/// Name of the entry for a file with this digest, this processor, this compiler and its settings.
fn name(engine: &Engine, digest: &str) -> String {
    let mut settings = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    format!("{digest}-{:016x}.cwasm", settings.finish())
}

/// Loads an entry. A corrupt entry is treated as a miss.
#[expect(unsafe_code, reason = "what this host has compiled does not have to be compiled again")]
fn find(engine: &Engine, file: &Path) -> Option<Component> {
    let opened = File::open(file).ok()?;
    // SAFETY: only this user writes in this folder, and this host writes an entry as a whole or not at all, and never
    // changes it.
    let mapped = unsafe { Component::deserialize_file(engine, file) };
    let found = mapped.or_else(|error| {
        tracing::debug!("{} cannot be mapped: {error:#}", file.display());
        // A file in a folder mounted without execute permission can be read nevertheless.
        let code = fs::read(file)?;
        // SAFETY: as above.
        unsafe { Component::deserialize(engine, code) }
    });
    let found = found.inspect_err(|error| tracing::debug!("{} is of no use: {error:#}", file.display())).ok()?;
    let now = SystemTime::now();
    if opened.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|used| used + USE_RESOLUTION < now) {
        let _ = File::options().write(true).open(file).and_then(|file| file.set_modified(now)); // It is removed sooner.
    }
    Some(found)
}

/// Writes a file atomically, in the place of an existing one of that name.
pub(crate) fn write_whole(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_from(file, &mut Cursor::new(content), mode)
}

/// Writes the content of `content` from its beginning, atomically.
fn write_from(file: &Path, content: &mut (impl Read + Seek), mode: u32) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut written = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    content.rewind()?;
    io::copy(content, written.as_file_mut())?;
    written.as_file().sync_all()?;
    written.persist(file).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::{Path, PathBuf},
        time::{Duration, SystemTime},
    };

    use tempfile::TempDir;
    use wasmtime::Engine;

    use super::{Cache, MAX_BYTES};

    /// A component that does nothing, with a custom section that distinguishes it from others.
    fn component(letter: u8) -> Vec<u8> {
        [b"\0asm\x0d\0\x01\0".as_slice(), &[0, 2, 1, letter]].concat()
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn age(file: &Path, age: Duration) {
        File::options().write(true).open(file).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn a_compiled_component_serves_every_cache_and_engine_of_the_kind() {
        let folder = TempDir::new().unwrap();
        for counts in [(1, 0), (0, 1)] {
            let (cache, engine) = (Cache::at(folder.path().into(), MAX_BYTES), Engine::default());
            cache.component(&engine, &component(b'a')).unwrap();
            assert_eq!(cache.counts(), counts);
        }
        let cache = Cache::at(folder.path().into(), MAX_BYTES);
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        cache.component(&Engine::new(&config).unwrap(), &component(b'a')).unwrap();
        cache.component(&Engine::default(), &component(b'b')).unwrap();
        assert_eq!(cache.counts(), (2, 0));
        assert!(cache.component(&Engine::default(), b"\0asm\x0d\0\x01\0garbage").is_err());
        assert_eq!(files(folder.path()).len(), 3);
    }

    #[test]
    fn a_corrupt_entry_is_compiled_anew() {
        let (folder, engine) = (TempDir::new().unwrap(), Engine::default());
        let cache = Cache::at(folder.path().into(), MAX_BYTES);
        cache.component(&engine, &component(b'a')).unwrap();
        let file = files(folder.path()).remove(0);
        let whole = fs::read(&file).unwrap();
        for damaged in [&whole[..0], &whole[..100], &whole[..whole.len() / 2], b"something else"] {
            // As another file, since this one is mapped.
            fs::remove_file(&file).unwrap();
            fs::write(&file, damaged).unwrap();
            cache.component(&engine, &component(b'a')).unwrap();
            assert_eq!(fs::read(&file).unwrap(), whole);
        }
        assert_eq!(cache.counts(), (5, 0));
    }

    #[test]
    fn unused_entries_make_room() {
        let (folder, engine) = (TempDir::new().unwrap(), Engine::default());
        let cache = Cache::at(folder.path().into(), MAX_BYTES);
        cache.component(&engine, &component(b'a')).unwrap();
        let first = files(folder.path()).remove(0);
        let size = fs::metadata(&first).unwrap().len();
        age(&first, Duration::from_secs(1_000_000));
        cache.component(&engine, &component(b'b')).unwrap();
        let second = files(folder.path()).into_iter().find(|file| *file != first).unwrap();
        age(&second, Duration::from_secs(100_000));
        let left_behind = folder.path().join(".tmp123");
        fs::write(&left_behind, "half of it").unwrap();
        age(&left_behind, Duration::from_secs(50_000));

        // The first is used again, and so the second is the oldest.
        cache.component(&engine, &component(b'a')).unwrap();
        let cache = Cache::at(folder.path().into(), 2 * size + 100);
        cache.component(&engine, &component(b'c')).unwrap();
        assert!(first.exists() && !second.exists() && left_behind.exists());
        let cache = Cache::at(folder.path().into(), size + 100);
        cache.component(&engine, &component(b'd')).unwrap();
        assert_eq!(files(folder.path()).len(), 1, "only what was compiled last has room");
    }

    #[test]
    fn where_nothing_can_be_kept_components_are_compiled() {
        let (folder, engine) = (TempDir::new().unwrap(), Engine::default());
        let cache = Cache::at(folder.path().join("gone"), MAX_BYTES);
        cache.component(&engine, &component(b'a')).unwrap();
        cache.component(&engine, &component(b'a')).unwrap();
        assert_eq!(cache.counts(), (2, 0));
    }
}
