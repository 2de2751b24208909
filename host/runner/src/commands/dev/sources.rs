//! The sources in a folder: everything that git would track there, without components.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ignore::{
    WalkBuilder,
    overrides::{Override, OverrideBuilder},
};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::error::Failure;

/// Polling interval. Polling works where the system reports no changes: in shared and mounted folders.
const LOOK: Duration = Duration::from_millis(300);
/// Intervals for which a change may go on until it is built: a file that never rests is named then, and may be left out.
const MAX_LOOKS: usize = 10;
/// Files, at most: a folder with more of them is the wrong one.
const MAX_FILES: usize = 20_000;
/// Patterns of files and folders that are no sources, beside those of `.gitignore`.
const NO_SOURCES: [&str; 5] = ["*.wasm", "target", "node_modules", "__pycache__", "*~"];

/// The sources of a folder as they were last seen.
pub(super) struct Sources {
    place: Arc<Place>,
    known: Files,
    tasks: TaskTracker,
}

struct Place {
    folder: PathBuf,
    left_out: Override,
}

type Files = BTreeMap<PathBuf, File>;

/// One file. Its content counts alone: a build may write a file again as it was.
#[derive(Debug, Clone, Copy)]
struct File {
    modified: Option<SystemTime>,
    bytes: u64,
    content: u64,
}

impl PartialEq for File {
    fn eq(&self, other: &Self) -> bool {
        (self.bytes, self.content) == (other.bytes, other.content)
    }
}

impl Sources {
    /// Reads the sources, without those that match a pattern of `.gitignore` or of `ignored`.
    pub(super) async fn read(folder: PathBuf, ignored: &[String], tasks: &TaskTracker) -> Result<Self, Failure> {
        let mut left_out = OverrideBuilder::new(&folder);
        for pattern in NO_SOURCES.into_iter().chain(ignored.iter().map(String::as_str)) {
            left_out.add(&format!("!{pattern}")).map_err(|_| {
                Failure::usage(format!(
                    "--ignore: {pattern:?} is no pattern as in .gitignore, such as 'generated/*.rs'"
                ))
            })?;
        }
        let left_out = left_out.build().map_err(Failure::usage)?;
        let mut sources =
            Self { place: Arc::new(Place { folder, left_out }), known: Files::new(), tasks: tasks.clone() };
        sources.look().await;
        match sources.known.len() {
            MAX_FILES.. => Err(Failure::usage(format!(
                "{}: there are more than {MAX_FILES} files; --ignore leaves out what is no source",
                sources.place.folder.display()
            ))),
            _ => Ok(sources),
        }
    }

    /// Compares the sources with those that were last seen. Returns the path of one that differs.
    pub(super) async fn look(&mut self) -> Option<String> {
        let now = self.now().await?;
        let differing = differing(&self.known, &now);
        self.known = now;
        differing
    }

    /// Waits until the sources differ from those that were last seen, and have been left alone for one interval: an editor may
    /// write several files, or one in several steps. Returns the path of one that differs.
    pub(super) async fn changed(&mut self) -> String {
        let (mut last, mut looks) = (None, 0);
        loop {
            sleep(LOOK).await;
            let Some(now) = self.now().await else { continue };
            let Some(path) = differing(&self.known, &now) else { continue };
            looks += 1;
            if last.as_ref() == Some(&now) || looks >= MAX_LOOKS {
                // Of a file that never rests, the path of the latest change.
                let restless = last.and_then(|last| differing(&last, &now));
                self.known = now;
                return restless.unwrap_or(path);
            }
            last = Some(now);
        }
    }

    async fn now(&self) -> Option<Files> {
        let (place, known) = (Arc::clone(&self.place), self.known.clone());
        self.tasks.spawn_blocking(move || place.files(&known)).await.ok()
    }
}

impl Place {
    /// The files, of which those that look as they are known are not read again. What cannot be read is left out.
    fn files(&self, known: &Files) -> Files {
        let walk = WalkBuilder::new(&self.folder)
            .require_git(false)
            .git_global(false)
            .parents(false)
            .overrides(self.left_out.clone())
            .build();
        let files = walk.filter_map(Result::ok).filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()));
        let file = |path: &Path| {
            let facts = fs::metadata(path).ok()?;
            let (modified, bytes) = (facts.modified().ok(), facts.len());
            if let Some(known) = known.get(path).filter(|known| (known.modified, known.bytes) == (modified, bytes)) {
                return Some(*known);
            }
            let mut content = DefaultHasher::new();
            fs::read(path).ok()?.hash(&mut content);
            Some(File { modified, bytes, content: content.finish() })
        };
        files.filter_map(|entry| Some((entry.path().to_owned(), file(entry.path())?))).take(MAX_FILES).collect()
    }
}

/// The path of a file that is new, gone or different, below the folder.
fn differing(before: &Files, now: &Files) -> Option<String> {
    let differs = now.iter().find(|(path, file)| before.get(*path) != Some(file));
    let path = differs.map(|(path, _)| path).or_else(|| before.keys().find(|path| !now.contains_key(*path)))?;
    Some(path.file_name().unwrap_or(path.as_os_str()).display().to_string())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use tempfile::TempDir;
    use tokio::time::{sleep, timeout};
    use tokio_util::task::TaskTracker;

    use super::Sources;

    async fn sources(folder: &Path, ignored: &[&str]) -> Sources {
        let ignored: Vec<_> = ignored.iter().map(|pattern| (*pattern).to_owned()).collect();
        Sources::read(folder.to_owned(), &ignored, &TaskTracker::new()).await.unwrap()
    }

    #[tokio::test]
    async fn sources_are_what_git_would_track_without_components() {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("src/generated")).unwrap();
        fs::create_dir_all(path("target")).unwrap();
        fs::write(path(".gitignore"), "/out\n").unwrap();
        fs::write(path("src/main.c"), "1").unwrap();
        let mut sources = sources(folder.path(), &["src/generated"]).await;
        assert_eq!(sources.look().await, None);
        for (file, is_source) in [
            ("out", false),
            ("user.wasm", false),
            ("target/user", false),
            (".hidden", false),
            ("src/generated/a.c", false),
            ("src/util.c", true),
            ("services.yaml", true),
        ] {
            fs::write(path(file), "2").unwrap();
            assert_eq!(sources.look().await.is_some(), is_source, "{file}");
        }
        // Written again as it was, changed, removed.
        fs::write(path("src/main.c"), "1").unwrap();
        assert_eq!(sources.look().await, None);
        fs::write(path("src/main.c"), "3").unwrap();
        assert_eq!(sources.look().await.as_deref(), Some("main.c"));
        fs::remove_file(path("src/main.c")).unwrap();
        assert_eq!(sources.look().await.as_deref(), Some("main.c"));
    }

    #[tokio::test]
    async fn a_change_is_noticed_once_it_is_over() {
        let folder = TempDir::new().unwrap();
        let mut sources = sources(folder.path(), &[]).await;
        assert!(timeout(Duration::from_secs(1), sources.changed()).await.is_err());
        fs::write(folder.path().join("main.go"), "package main").unwrap();
        assert_eq!(timeout(Duration::from_secs(10), sources.changed()).await.unwrap(), "main.go");
        // A file that never rests.
        let writing = async {
            for number in 0.. {
                fs::write(folder.path().join("log"), format!("{number}")).unwrap();
                sleep(Duration::from_millis(20)).await;
            }
        };
        let changed = async { timeout(Duration::from_secs(20), sources.changed()).await.unwrap() };
        tokio::select! {
            path = changed => assert_eq!(path, "log"),
            () = writing => {}
        }
    }

    #[tokio::test]
    async fn a_pattern_that_is_none_is_refused() {
        let folder = TempDir::new().unwrap();
        let read = Sources::read(folder.path().to_owned(), &["a[".to_owned()], &TaskTracker::new()).await;
        assert!(read.err().unwrap().sentence().contains("--ignore: \"a[\" is no pattern"));
    }
}
