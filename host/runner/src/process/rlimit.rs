//! File descriptors: as many as the system lets the process have, and whether these are enough.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Beside connections: listeners, files, etcd, and connections that are kept for the next request.
const ELSE: u64 = 256;

/// Raises the limit to the most that the system allows without asking. It is low only for programs that cannot have more
/// than 1024.
pub(crate) fn raise() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit on file descriptors stays as it is");
    }
}

/// How many the process can have; `None` where that is not limited.
pub(crate) fn most() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// What is to be said where they are not enough for all that the limits allow.
pub(crate) fn lacking(files: u64) -> Option<String> {
    let (needed, most) = (files + ELSE, most()?);
    (needed > most).then(|| {
        format!(
            "files: connections and outgoing requests may come to {needed}, and the process may have {most} (ulimit -Hn, \
             LimitNOFILE): smaller limits.connections and limits.outgoing make them fit"
        )
    })
}
