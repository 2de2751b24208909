//! Sources of secrets and certificates, which may change while they are in use.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Largest number of concurrent reads. If a file system does not come back, each read holds a thread.
const MAX_READS: usize = 4;

/// Reads on threads that may wait for a file system.
#[derive(Debug, Default)]
pub(crate) struct Reads(TaskTracker);

impl Reads {
    /// Runs `read` on such a thread, or at once where it does not block.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        blocks: bool,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        if !blocks {
            return read();
        }
        if self.0.len() >= MAX_READS {
            return Err("the file system does not answer".to_owned());
        }
        self.0.spawn_blocking(read).await.map_err(|error| error.to_string())?
    }
}

/// Source of a secret or a certificate. It is read again for each use: a password for each sign-in, TLS files for each
/// connection. So a rotated one needs no new start. `Debug` shows no content.
#[derive(Clone)]
pub enum Source {
    /// Always these bytes.
    Value(Vec<u8>),
    /// The content of a file, at most 1 MiB. Replace it by renaming a whole one over it.
    File(PathBuf),
    /// The latest bytes that the embedder gives, from a vault for instance.
    Given(watch::Receiver<Vec<u8>>),
}

impl Source {
    /// Reads it. Blocks as long as the file system does; the error names the file.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let path = match self {
            Self::Value(value) => return Ok(value.clone()),
            Self::Given(latest) => return Ok(latest.borrow().clone()),
            Self::File(path) => path,
        };
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))?;
        match bytes.len() as u64 > MAX_BYTES {
            true => Err(io::Error::other(format!("{} is larger than 1 MiB", path.display()))),
            false => Ok(bytes),
        }
    }

    /// The text of a password. A file may end with a line break.
    pub(crate) fn read_password(&self) -> Result<String, String> {
        let text = String::from_utf8(self.read().map_err(|error| error.to_string())?);
        let text = text.map_err(|_| format!("{self} must be UTF-8"))?;
        Ok(match self {
            Self::File(_) => text.trim_end_matches(['\r', '\n']).to_owned(),
            _ => text,
        })
    }

    /// Returns true if reading it may block.
    pub(crate) fn may_block(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// The file's name; what is no file has none.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Value(_) | Self::Given(_) => f.write_str("the configured one"),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Value(_) => f.write_str("Value"),
            Self::Given(_) => f.write_str("Given"),
        }
    }
}

impl From<Vec<u8>> for Source {
    fn from(value: Vec<u8>) -> Self {
        Self::Value(value)
    }
}

impl From<String> for Source {
    fn from(value: String) -> Self {
        Self::Value(value.into_bytes())
    }
}

impl From<&str> for Source {
    fn from(value: &str) -> Self {
        Self::Value(value.as_bytes().to_vec())
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::watch;

    use super::Source;

    #[test]
    fn a_source_is_read_anew_each_time_and_shown_by_nothing() {
        let path = std::env::temp_dir().join(format!("leasehold-source-{}", std::process::id()));
        let file = Source::from(path.clone());
        let missing = file.read_password().unwrap_err();
        assert!(missing.contains(path.to_str().unwrap()), "{missing}");
        fs::write(&path, "one\n").unwrap();
        assert_eq!(file.read_password().unwrap(), "one");
        fs::write(&path, "two\r\n").unwrap();
        assert_eq!(file.read_password().unwrap(), "two");
        fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(file.read().is_err());
        fs::remove_file(&path).unwrap();
        let (give, latest) = watch::channel(b"hunter1".to_vec());
        let given = Source::Given(latest);
        assert_eq!(given.read_password().unwrap(), "hunter1");
        give.send_replace(b"hunter2\n".to_vec());
        assert_eq!(given.read_password().unwrap(), "hunter2\n");
        assert!(!format!("{given:?} {:?}", Source::from("hunter3")).contains("hunter"));
    }
}
