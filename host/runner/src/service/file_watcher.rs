//! Watch of a component file for changes, by polling.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::sleep;

/// Polling interval. Polling works where the system reports no changes: in shared and mounted folders.
const LOOK: Duration = Duration::from_millis(500);

/// The file, and its last known stamp.
pub(crate) struct FileWatcher {
    path: PathBuf,
    known: Option<Stamp>,
}

/// Properties that change with the content of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
}

impl FileWatcher {
    /// Takes the present state of the file as known.
    pub(crate) async fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), known: stamp(path).await }
    }

    /// Waits until the file has changed, and been left alone for one interval: a file that is being written is not read.
    pub(crate) async fn changed(&mut self) {
        let mut last = None;
        loop {
            sleep(LOOK).await;
            let now = stamp(&self.path).await;
            if now.is_some() && now != self.known && now == last {
                self.known = now;
                return;
            }
            last = now;
        }
    }
}

/// `None` while the file does not exist, as for a moment while it is replaced.
async fn stamp(path: &Path) -> Option<Stamp> {
    let facts = tokio::fs::metadata(path).await.ok()?;
    Some(Stamp { modified: facts.modified().ok()?, bytes: facts.len() })
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::FileWatcher;

    #[tokio::test]
    async fn a_file_has_changed_once_it_is_replaced_and_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wasm");
        fs::write(&path, "one").unwrap();
        let mut watched = FileWatcher::new(&path).await;
        assert!(timeout(Duration::from_millis(1200), watched.changed()).await.is_err());
        fs::remove_file(&path).unwrap();
        assert!(timeout(Duration::from_millis(1200), watched.changed()).await.is_err());
        fs::write(&path, "another").unwrap();
        timeout(Duration::from_secs(10), watched.changed()).await.unwrap();
        assert!(timeout(Duration::from_millis(1200), watched.changed()).await.is_err());
    }
}
