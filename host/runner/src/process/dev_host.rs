//! The running `run --dev` of this user: a record of its private etcd, beside the data of that etcd, for commands that look into
//! it.

use std::{
    env,
    fs::{self, DirEntry, File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

/// Beginning of the name of a folder with a private etcd, among the temporary files.
pub(crate) const FOLDER: &str = "leasehold-dev-";
/// Name of the record in that folder.
const RECORD: &str = "host.json";
/// Largest record that is read, in bytes.
const MAX_BYTES: u64 = 16 << 10;

/// Description of a running `run --dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DevHost {
    pub(crate) pid: u32,
    /// Endpoint of its private etcd.
    pub(crate) endpoint: String,
    /// Its configuration file, which has the layouts; none for a single component or standard input.
    pub(crate) file: Option<PathBuf>,
}

/// A published record. It counts for as long as this value exists, also if the process is killed.
#[derive(Debug)]
pub(crate) struct Published {
    _lock: File,
}

impl DevHost {
    /// Publishes the record in the folder of the private etcd, with which it goes.
    pub(crate) fn publish(&self, folder: &Path) -> io::Result<Published> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(folder.join(RECORD))?;
        // A record without a lock is left over, or not written yet.
        file.lock()?;
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(Published { _lock: file })
    }

    /// All that run at the moment, the latest first.
    pub(crate) fn running() -> Vec<Self> {
        Self::running_in(&env::temp_dir())
    }

    fn running_in(temporary: &Path) -> Vec<Self> {
        let entries = fs::read_dir(temporary).into_iter().flatten().flatten();
        let mut running: Vec<(SystemTime, Self)> = entries.filter_map(|entry| Self::of(&entry)).collect();
        running.sort_by(|(a, _), (b, _)| b.cmp(a));
        running.into_iter().map(|(_, host)| host).collect()
    }

    /// The record in a folder of this user alone, if its host runs.
    fn of(folder: &DirEntry) -> Option<(SystemTime, Self)> {
        folder.file_name().to_str()?.strip_prefix(FOLDER)?;
        // Not through a link, behind which is a folder of another user.
        let metadata = folder.metadata().ok()?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        if !metadata.is_dir() || !is_ours {
            return None;
        }
        let file = File::open(folder.path().join(RECORD)).ok()?;
        let begun = file.metadata().ok()?.modified().ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {}
            Ok(()) | Err(TryLockError::Error(_)) => return None,
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        Some((begun, serde_json::from_slice(&text).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
        path::PathBuf,
    };

    use tempfile::TempDir;

    use super::{DevHost, FOLDER};

    fn host(port: u16) -> DevHost {
        DevHost { pid: 7, endpoint: format!("http://127.0.0.1:{port}"), file: Some(PathBuf::from("/a.yaml")) }
    }

    #[test]
    fn a_record_counts_while_its_host_runs() {
        let temporary = TempDir::new().unwrap();
        let folder = tempfile::Builder::new().prefix(FOLDER).tempdir_in(temporary.path()).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(DevHost::running_in(temporary.path()), []);
        let published = host(1).publish(folder.path()).unwrap();
        assert_eq!(DevHost::running_in(temporary.path()), [host(1)]);
        drop(published);
        assert_eq!(DevHost::running_in(temporary.path()), [], "its file is left over");
        assert_eq!(DevHost::running_in(&temporary.path().join("missing")), []);
    }

    #[test]
    fn a_folder_that_others_may_write_to_does_not_count() {
        let temporary = TempDir::new().unwrap();
        let folder = tempfile::Builder::new().prefix(FOLDER).tempdir_in(temporary.path()).unwrap();
        let _published = host(1).publish(folder.path()).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(DevHost::running_in(temporary.path()), []);
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(DevHost::running_in(temporary.path()), [host(1)]);
        let link = temporary.path().join(format!("{FOLDER}link"));
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert_eq!(DevHost::running_in(temporary.path()), [host(1)], "a link counts once more");
    }
}
