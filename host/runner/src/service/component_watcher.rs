//! Watch of a component for changes, by polling: of its file, or of its tag in a registry.

use std::{
    future::pending,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{Artifact, Spec};

/// Polling interval. Polling works where the system reports no changes: in shared and mounted folders.
const LOOK: Duration = Duration::from_millis(500);

/// Watch of a component.
pub(crate) enum ComponentWatcher {
    File(FileWatcher),
    Artifact(ArtifactWatcher),
}

impl ComponentWatcher {
    /// Takes the present component as known.
    pub(crate) async fn new(spec: &Spec) -> Self {
        match &spec.artifact {
            None => Self::File(FileWatcher::new(&spec.component).await),
            Some(artifact) => {
                Self::Artifact(ArtifactWatcher { artifact: artifact.clone(), next: Instant::now() + artifact.poll })
            }
        }
    }

    /// Waits until there is another component than the served one, whose manifest has this digest if it is from a registry.
    pub(crate) async fn changed(&mut self, served: Option<&str>) {
        match self {
            Self::File(file) => file.changed().await,
            Self::Artifact(artifact) => match served {
                Some(served) => artifact.changed(served).await,
                // The attempts to start it pull it.
                None => pending().await,
            },
        }
    }
}

/// A reference, and the time at which it is looked up next.
pub(crate) struct ArtifactWatcher {
    artifact: Artifact,
    next: Instant,
}

impl ArtifactWatcher {
    /// Waits until the tag leads to another artifact than the served one, at each interval anew: a reload that fails is tried
    /// again, and so is a registry that does not answer.
    async fn changed(&mut self, served: &str) {
        let Artifact { reference, poll, artifacts, .. } = &self.artifact;
        let Ok(artifacts) = artifacts else { return pending().await };
        if reference.digest().is_some() {
            return pending().await; // It leads to one artifact for good.
        }
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + *poll;
            match artifacts.resolve(reference).await {
                Ok(digest) if digest != served => return,
                Ok(_) => {}
                Err(error) => tracing::debug!("{reference}: {error}"),
            }
        }
    }
}

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
    async fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), known: stamp(path).await }
    }

    /// Waits until the file has changed, and been left alone for one interval: a file that is being written is not read.
    async fn changed(&mut self) {
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
