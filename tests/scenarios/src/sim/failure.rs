//! The errors of etcd, with the codes and texts of `rpctypes/error.go`.

use tonic::{Code, Status};

/// Reason why etcd refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    EmptyKey,
    /// An empty operation of a transaction, or an `ignore_` flag on a missing key.
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOperations,
    DuplicateKey,
    InvalidSort,
    Compacted,
    FutureRevision,
    NoSpace,
    TooLarge,
    /// More bytes than the gRPC server accepts.
    MessageTooLarge(usize),
    LeaseNotFound,
    LeaseExists,
    TtlTooLarge,
    AuthNotEnabled,
    WrongPassword,
    InvalidToken,
    NoUser,
    PermissionDenied,
    LeaderChanged,
    NoLeader,
    TimedOut,
    NotSupported,
}

/// Largest message that etcd's gRPC server accepts: 1.5 MiB, and 512 KiB for overhead.
pub(crate) const MESSAGE_LIMIT: usize = 2 * 1024 * 1024;

impl Failure {
    /// The gRPC status.
    pub(crate) fn status(self) -> Status {
        let (code, message) = match self {
            Self::EmptyKey => (Code::InvalidArgument, "key is not provided"),
            Self::KeyNotFound => (Code::InvalidArgument, "key not found"),
            Self::ValueProvided => (Code::InvalidArgument, "value is provided"),
            Self::LeaseProvided => (Code::InvalidArgument, "lease is provided"),
            Self::TooManyOperations => (Code::InvalidArgument, "too many operations in txn request"),
            Self::DuplicateKey => (Code::InvalidArgument, "duplicate key given in txn request"),
            Self::InvalidSort => (Code::InvalidArgument, "invalid sort option"),
            Self::Compacted => (Code::OutOfRange, "mvcc: required revision has been compacted"),
            Self::FutureRevision => (Code::OutOfRange, "mvcc: required revision is a future revision"),
            Self::NoSpace => (Code::ResourceExhausted, "mvcc: database space exceeded"),
            Self::TooLarge => (Code::InvalidArgument, "request is too large"),
            Self::MessageTooLarge(size) => {
                let text = format!("grpc: received message larger than max ({size} vs. {MESSAGE_LIMIT})");
                return Status::resource_exhausted(text);
            }
            Self::LeaseNotFound => (Code::NotFound, "requested lease not found"),
            Self::LeaseExists => (Code::FailedPrecondition, "lease already exists"),
            Self::TtlTooLarge => (Code::OutOfRange, "too large lease TTL"),
            Self::AuthNotEnabled => (Code::FailedPrecondition, "authentication is not enabled"),
            Self::WrongPassword => (Code::InvalidArgument, "authentication failed, invalid user ID or password"),
            Self::InvalidToken => (Code::Unauthenticated, "invalid auth token"),
            Self::NoUser => (Code::InvalidArgument, "user name is empty"),
            Self::PermissionDenied => (Code::PermissionDenied, "permission denied"),
            Self::LeaderChanged => (Code::Unavailable, "leader changed"),
            Self::NoLeader => (Code::Unavailable, "no leader"),
            Self::TimedOut => (Code::Unavailable, "request timed out"),
            Self::NotSupported => {
                return Status::unimplemented("the simulated etcd does not have this call");
            }
        };
        Status::new(code, format!("etcdserver: {message}"))
    }

    /// The text in the reason of a cancelled watch.
    pub(crate) fn reason(self) -> String {
        let status = self.status();
        let code = format!("{:?}", status.code());
        format!("rpc error: code = {code} desc = {}", status.message())
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        failure.status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_as_go_prints_it() {
        assert_eq!(
            Failure::InvalidToken.reason(),
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
        );
    }
}
