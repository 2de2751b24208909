//! The limit on file descriptors: raised as far as the system allows, and checked against the demand.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors beside connections: listeners, files, etcd, and pooled connections.
const ELSE: u64 = 256;

/// Raises the limit to the most that the system allows without asking. It is low only for programs that cannot have more
/// than 1024.
pub(crate) fn raise() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit on file descriptors stays as it is");
    }
}

/// Number of file descriptors that the process may have; `None` without a limit.
pub(crate) fn most() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Sentence about a limit that is too low for the configured limits.
pub(crate) fn lacking(files: u64) -> Option<String> {
    let (needed, most) = (files + ELSE, most()?);
    (needed > most).then(|| {
        format!(
            "files: connections and outgoing requests may come to {needed}, and the process may have {most} (ulimit -Hn, \
             LimitNOFILE): smaller limits.connections and limits.outgoing make them fit"
        )
    })
}
