//! Classification of failures: their meaning for the request. etcd's texts are matched here and nowhere else.

use std::{fmt, sync::Arc, time::Duration};

use etcd_client::Error as ClientError;
use tonic::{Code, ConnectError, Status};

/// Failure of a request to etcd.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// No connection was made, so nothing was sent and nothing can have been applied.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable { endpoint: Arc<str>, reason: String },
    /// Sent, and not answered in time or at all: it may have been applied, or may yet be.
    #[error("{endpoint} did not answer: {reason}")]
    Unanswered { endpoint: Arc<str>, reason: String },
    /// The response is larger than what is read: the request has to ask for less.
    #[error("{endpoint} answers with more than can be read: {message}")]
    TooLarge { endpoint: Arc<str>, message: String },
    /// etcd's own word that the lease does not exist.
    #[error("the lease does not exist any more")]
    LeaseGone,
    /// The user, the password or the client's certificate does not suffice for anything.
    #[error("{0}")]
    Denied(String),
    /// The user is known, but this key is not the user's to touch: not applied.
    #[error("{endpoint} denies access: {message}")]
    Forbidden { endpoint: Arc<str>, message: String },
    /// No connection was made: the endpoint's certificate is not trusted, or it speaks no TLS. Nothing was sent.
    #[error("the TLS handshake with {endpoint} fails: {reason}")]
    Handshake { endpoint: Arc<str>, reason: String },
    /// The endpoint speaks, but not etcd's protocol.
    #[error("{0} does not answer as an etcd does")]
    NotEtcd(Arc<str>),
    /// etcd cannot at the moment, and says so: not applied.
    #[error("{endpoint} is not able to: {message}")]
    Busy { endpoint: Arc<str>, message: String },
    /// Any other word of etcd's own: not applied.
    #[error("{endpoint} refuses: {message}")]
    Refused { endpoint: Arc<str>, message: String },
}

impl Failure {
    /// Returns true if the request may have taken effect, or may yet. A server that does not answer as an etcd does may be in
    /// front of one.
    pub(crate) fn may_have_been_applied(&self) -> bool {
        matches!(self, Self::Unanswered { .. } | Self::TooLarge { .. } | Self::NotEtcd(_))
    }

    /// Detects the answer of a member of etcd that has no leader.
    pub(super) fn has_no_leader(&self) -> bool {
        matches!(self, Self::Busy { message, .. } if message.contains("no leader"))
    }

    /// Returns true if etcd has refused the content of the request, so that a part of it may be accepted.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Forbidden { .. })
    }

    /// Returns true if the same request may succeed later without anyone's help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::TooLarge { .. } => true,
            Self::Busy { .. } | Self::LeaseGone => true,
            Self::Denied(_) | Self::Forbidden { .. } | Self::NotEtcd(_) | Self::Refused { .. } => false,
            // Like an endpoint that is away: its certificate may be renewed in place.
            Self::Handshake { .. } => true,
        }
    }

    /// Returns true if etcd does not accept the user or the token of the request. A sign-in may change that.
    pub(crate) fn is_about_user(&self) -> bool {
        matches!(self.refusal(), Some(Refusal::NoUser | Refusal::Authentication))
    }

    /// Kind of the refusal; `None` if there was no response, or if time alone may change it.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Denied(text) if text.contains("user name is empty") => Some(Refusal::NoUser),
            Self::Denied(text) if text.contains("certificate: ") => Some(Refusal::Certificate),
            Self::Denied(_) => Some(Refusal::Authentication),
            Self::Forbidden { .. } => Some(Refusal::Permission),
            Self::Busy { message, .. } if message.contains("database space exceeded") => Some(Refusal::Space),
            Self::Handshake { .. } => Some(Refusal::Handshake),
            Self::NotEtcd(_) => Some(Refusal::NotEtcd),
            Self::Refused { .. } => Some(Refusal::Other),
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::TooLarge { .. } => None,
            Self::LeaseGone | Self::Busy { .. } => None,
        }
    }
}

impl From<Failure> for Unavailable {
    fn from(failure: Failure) -> Self {
        Self(Arc::new(failure))
    }
}

/// Message of etcd or of the connection to it. Its text names the endpoint and never holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(Arc<Failure>);

impl Unavailable {
    /// Kind of the refusal; `None` if there was no response, or if time alone may change it.
    pub fn refusal(&self) -> Option<Refusal> {
        self.0.refusal()
    }

    /// Returns true if etcd refused the user, the password, the certificate or the key; waiting does not help.
    pub fn is_denied(&self) -> bool {
        matches!(*self.0, Failure::Denied(_) | Failure::Forbidden { .. })
    }

    /// Returns true if the endpoint answers, but not as etcd does.
    pub fn is_not_etcd(&self) -> bool {
        matches!(*self.0, Failure::NotEtcd(_))
    }
}

/// Kinds of refusals: etcd, or what stands at its address, answers, and the answer is no. None is cured by waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refusal {
    /// Authentication is enabled, and no user was given.
    NoUser,
    /// The user, the password or the token is not valid.
    Authentication,
    /// etcd does not accept the certificate of this client.
    Certificate,
    /// The user may not read or write a key.
    Permission,
    /// etcd's database has reached its quota.
    Space,
    /// The endpoint's certificate is not trusted here, or it does not speak TLS.
    Handshake,
    /// The endpoint answers, but not as etcd does.
    NotEtcd,
    /// Anything else that etcd refuses in so many words.
    Other,
}

impl Refusal {
    /// Cure, in a sentence. The permission, `read` or `readwrite`, is needed for the keys that begin with `prefix`.
    pub fn cure(self, permission: &str, prefix: Option<&str>) -> String {
        match self {
            Self::NoUser => "it has authentication enabled: set etcd.user, and etcd.password_file".to_owned(),
            Self::Authentication => "check etcd.user, and what is in etcd.password_file".to_owned(),
            Self::Certificate => "check etcd.tls.cert and etcd.tls.key".to_owned(),
            Self::Permission => match prefix {
                Some(prefix) => format!(
                    "a role of the user lacks it: etcdctl role grant-permission ROLE --prefix=true {permission} {}",
                    quoted(prefix)
                ),
                None => "the user's roles lack a permission, see docs/permissions.md".to_owned(),
            },
            Self::Space => "its database is full: compact and defragment it, then etcdctl alarm disarm".to_owned(),
            Self::Handshake => {
                "check etcd.tls.ca and etcd.tls.server_name, and whether the endpoint speaks TLS at all".to_owned()
            }
            Self::NotEtcd => "check etcd.endpoints: an etcd that speaks TLS is https://…".to_owned(),
            Self::Other => "see etcd's own log".to_owned(),
        }
    }
}

/// A word for a POSIX shell. Letters, digits and what else means nothing to one stay as they are.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoUser => "no user",
            Self::Authentication => "authentication",
            Self::Certificate => "certificate",
            Self::Permission => "permission",
            Self::Space => "space",
            Self::Handshake => "TLS handshake",
            Self::NotEtcd => "not etcd",
            Self::Other => "request",
        })
    }
}

/// Classifies an error of the client.
pub(super) fn classify(endpoint: &Arc<str>, error: &ClientError) -> Failure {
    let endpoint = endpoint.clone();
    let status = match error {
        ClientError::GRpcStatus(status) => status,
        ClientError::LeaseKeepAliveError(text) if text == "lease not found" => return Failure::LeaseGone,
        error => return Failure::Unanswered { endpoint, reason: error.to_string() },
    };
    let message = status.message();
    if let Some(alert) = certificate_refused(status) {
        return Failure::Denied(format!("{endpoint} denies access: this host's certificate: {alert}"));
    }
    if let Some(reason) = never_connected(status) {
        if let Some(reason) = not_trusted(&reason) {
            return Failure::Handshake { endpoint, reason };
        }
        return Failure::Unreachable { endpoint, reason };
    }
    // The client's word, or that of a server or a proxy whose own limit it is.
    if message.contains("message length too large") || message.contains("message larger than max") {
        return Failure::TooLarge { endpoint, message: message.to_owned() };
    }
    let said_by_etcd = message.starts_with("etcdserver: ") || message.starts_with("auth: ");
    match status.code() {
        Code::NotFound if message.contains("requested lease not found") => Failure::LeaseGone,
        Code::PermissionDenied => Failure::Forbidden { endpoint, message: message.to_owned() },
        Code::Unauthenticated => Failure::Denied(format!("{endpoint} denies access: {message}")),
        _ if message.contains("authentication failed") || message.contains("user name is empty") => {
            Failure::Denied(format!("{endpoint} denies access: {message}"))
        }
        // Refusals before anything is proposed, and those that end once there is room.
        _ if ["no leader", "too many requests", "database space exceeded"]
            .iter()
            .any(|text| message.contains(text)) =>
        {
            Failure::Busy { endpoint, message: message.to_owned() }
        }
        // A proposal whose fate the member does not know.
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => {
            Failure::Unanswered { endpoint, reason: described(status) }
        }
        _ if said_by_etcd => Failure::Refused { endpoint, message: message.to_owned() },
        Code::Unimplemented => Failure::NotEtcd(endpoint),
        // A server of HTTP, but not of gRPC.
        _ if message.contains("grpc-status header missing") || message.contains("invalid compression flag") => {
            Failure::NotEtcd(endpoint)
        }
        // What HTTP/1 looks like to a client of HTTP/2.
        _ if innermost(status).to_string().contains("frame with invalid size") => Failure::NotEtcd(endpoint),
        _ => Failure::Unanswered { endpoint, reason: described(status) },
    }
}

/// Classifies the cancellation of a watch, which comes with a reason only.
#[cfg(feature = "discovery")]
pub(super) fn classify_cancellation(endpoint: &Arc<str>, reason: &str) -> Failure {
    let code = if reason.contains("permission denied") { Code::PermissionDenied } else { Code::Cancelled };
    classify(endpoint, &ClientError::GRpcStatus(Status::new(code, reason)))
}

/// Detects the answer to a sign-in where no user needs one.
pub(super) fn is_without_authentication(status: &Status) -> bool {
    status.message().contains("authentication is not enabled")
}

/// The cause why no connection was made, when that is what happened.
fn never_connected(status: &Status) -> Option<String> {
    let mut error: &(dyn std::error::Error + 'static) = status;
    let mut connecting = false;
    while let Some(source) = error.source() {
        connecting |= source.is::<ConnectError>();
        error = source;
    }
    connecting.then(|| error.to_string())
}

/// Reason why this side gave up a handshake, from the words of rustls.
fn not_trusted(reason: &str) -> Option<String> {
    if reason.contains("received corrupt message of type") {
        return Some("it does not speak TLS".to_owned());
    }
    reason.contains("invalid peer certificate").then(|| reason.to_owned())
}

/// The alert with which an endpoint turned down the certificate that this client showed, or did not show.
fn certificate_refused(status: &Status) -> Option<String> {
    const ALERTS: [&str; 6] = [
        "BadCertificate",
        "CertificateExpired",
        "CertificateRequired",
        "CertificateRevoked",
        "CertificateUnknown",
        "UnknownCA",
    ];
    let text = innermost(status).to_string();
    let (_, alert) = text.split_once("received fatal alert: ")?;
    let alert = alert.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    ALERTS.contains(&alert).then(|| alert.to_owned())
}

/// The innermost cause, which is where a transport says what happened.
fn innermost(status: &Status) -> &(dyn std::error::Error + 'static) {
    let mut error: &(dyn std::error::Error + 'static) = status;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// The status with its innermost cause.
fn described(status: &Status) -> String {
    let error = innermost(status);
    match (status.message(), error.to_string()) {
        ("", cause) => cause,
        (message, cause) if cause.contains(message) => cause,
        (message, _) if std::ptr::addr_eq(error, status) => message.to_owned(),
        (message, cause) => format!("{message}: {cause}"),
    }
}

/// A duration to be shown: in whole milliseconds, since what is left of a deadline has a long fraction.
pub(super) fn rounded(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from((duration.as_micros() + 500) / 1000).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use etcd_client::Error as ClientError;
    use tonic::{Code, Status};

    use super::{Failure, Refusal, classify, quoted};

    fn failure(code: Code, message: &str) -> Failure {
        classify(&Arc::from("http://e:1"), &ClientError::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn a_lost_lease_is_recognised_in_both_of_its_forms() {
        let as_text = ClientError::LeaseKeepAliveError("lease not found".to_owned());
        assert!(matches!(classify(&Arc::from("e"), &as_text), Failure::LeaseGone));
        assert!(matches!(failure(Code::NotFound, "etcdserver: requested lease not found"), Failure::LeaseGone));
    }

    #[test]
    fn an_unknown_fate_counts_as_unanswered() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Cancelled, ""),
            (Code::Unknown, "transport error"),
        ] {
            assert!(failure(code, message).may_have_been_applied(), "{message}");
        }
    }

    #[test]
    fn a_refusal_was_not_applied() {
        for (code, message) in [
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
        ] {
            assert!(!failure(code, message).may_have_been_applied(), "{message}");
        }
    }

    #[test]
    fn what_is_no_etcd_may_stand_in_front_of_one() {
        let unimplemented = failure(Code::Unimplemented, "");
        let error_page = failure(Code::Internal, "grpc-status header missing, mapped from HTTP status code 500");
        let http_1 = failure(Code::Internal, "h2 protocol error: frame with invalid size");
        for failure in [unimplemented, error_page, http_1] {
            assert!(matches!(failure, Failure::NotEtcd(_)) && failure.may_have_been_applied(), "{failure}");
        }
    }

    #[test]
    fn an_answer_that_is_too_large_is_no_reason_to_ask_elsewhere() {
        let decoding = "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes";
        for (code, message) in [
            (Code::OutOfRange, decoding),
            (Code::ResourceExhausted, "grpc: trying to send message larger than max (5000000 vs. 4194304)"),
        ] {
            let failure = failure(code, message);
            // A write may have been applied all the same.
            assert!(matches!(failure, Failure::TooLarge { .. }) && failure.may_have_been_applied(), "{message}");
        }
    }

    #[test]
    fn a_refused_certificate_is_denied() {
        let refused = failure(Code::Unknown, "received fatal alert: CertificateRequired");
        assert!(matches!(refused, Failure::Denied(_)), "{refused}");
        let broken = failure(Code::Unknown, "received fatal alert: BadRecordMac");
        assert!(broken.may_have_been_applied(), "{broken}");
    }

    #[test]
    fn a_cure_can_be_pasted_into_a_shell() {
        assert_eq!(
            Refusal::Permission.cure("readwrite", Some("/user/")),
            "a role of the user lacks it: etcdctl role grant-permission ROLE --prefix=true readwrite /user/"
        );
        assert_eq!(quoted("/$(rm x)/"), "'/$(rm x)/'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
