//! Why a guest's call is refused, and the only place where the text that a guest reads is made.
//!
//! The text says what the guest can know already: its own arguments, the rules and its own limits.
//! Endpoints, leases and etcd's words stay with the host.

use std::time::Duration;

use leasehold::Invalid;
use wasmtime::component::ResourceTableError;

use crate::bindings::leasehold::registry::types;

/// Why a call is refused. Each variant ends as one case of the WIT's `error`.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An argument breaks a rule of `server-node`.
    Invalid(Invalid),
    /// The guest leaves its address to a host that has none for it.
    NoAddr,
    /// The guest asks for a longer time to live than its policy allows.
    LongTtl { asked: u32, most: Duration },
    /// The policy does not let this component publish that name.
    ForeignName,
    /// The policy does not let this component publish that address.
    ForeignAddr,
    /// The policy does not let this component look that name up.
    HiddenName,
    /// The component has as many registrations as its policy allows.
    TooMany { most: usize },
    /// The component registers more often than its policy allows.
    RegistersTooOften { burst: u32, interval: Duration },
    /// The component follows as many services as it may.
    FollowsTooMany { most: usize },
    /// The component looks up services that it does not follow more often than it may.
    LooksUpTooOften { burst: u32, interval: Duration },
    /// The host follows as many services as it may, for all of its components.
    NoRoomToFollow,
    /// The component is being stopped, or its next version has taken over.
    Ending,
    /// The host has withdrawn the component's registrations for the time being.
    Withdrawn,
    /// The policy's deadline passed.
    Deadline,
    /// The registrar said no.
    Registrar(leasehold::Error),
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<leasehold::Error> for Refusal {
    fn from(error: leasehold::Error) -> Self {
        Self::Registrar(error)
    }
}

impl From<Refusal> for types::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(invalid) => Self::InvalidArgument(invalid.to_string()),
            Refusal::NoAddr => {
                Self::InvalidArgument("addr must not be empty: the host serves this component at no address".into())
            }
            Refusal::LongTtl { asked, most } => Self::InvalidArgument(format!(
                "ttl-seconds must be at most {} for this component, not {asked}",
                most.as_secs()
            )),
            Refusal::ForeignName => Self::AccessDenied("name must be one that this component may publish".into()),
            Refusal::ForeignAddr => Self::AccessDenied("addr must be this component's own".into()),
            Refusal::HiddenName => Self::AccessDenied("name must be one that this component may look up".into()),
            Refusal::TooMany { most } => {
                Self::QuotaExceeded(format!("this component may have {most} registrations at a time"))
            }
            Refusal::RegistersTooOften { burst, interval } => Self::QuotaExceeded(format!(
                "this component may register {burst} times at once, and once in {interval:?} after that"
            )),
            Refusal::FollowsTooMany { most } => {
                Self::QuotaExceeded(format!("this component may look up {most} services at a time"))
            }
            Refusal::LooksUpTooOften { burst, interval } => Self::QuotaExceeded(format!(
                "this component may look up {burst} other services at once, and one in {interval:?} after that"
            )),
            Refusal::NoRoomToFollow => Self::QuotaExceeded(
                "the host follows as many services as it may; those that are followed already can be looked up".into(),
            ),
            Refusal::Ending => Self::Unavailable("the service is being stopped".into()),
            Refusal::Withdrawn => Self::Unavailable("the host has withdrawn the service for the time being".into()),
            Refusal::Deadline => Self::Timeout,
            Refusal::Registrar(error) => of_registrar(error),
        }
    }
}

/// The cases of the registrar's errors. The host's log keeps what the guest is not told.
fn of_registrar(error: leasehold::Error) -> types::Error {
    use leasehold::Error;

    tracing::debug!(%error, "a component's call was refused");
    match error {
        Error::Invalid(invalid) => types::Error::InvalidArgument(invalid.to_string()),
        Error::Quota { .. } => types::Error::QuotaExceeded("the host has no room for more registrations".into()),
        Error::Conflict { .. } => types::Error::Conflict("a live lease of somebody else holds the key".into()),
        Error::Duplicate(_) => types::Error::Conflict("this host keeps the key for somebody else".into()),
        Error::Unavailable(_) => types::Error::Unavailable("the registry cannot be reached, or refused".into()),
        Error::Timeout { .. } => types::Error::Timeout,
        Error::Ended => types::Error::NotRegistered,
        _ => types::Error::Other("the host could not do it".into()),
    }
}

/// Why a guest's call ends without its value: with a case of the WIT's `error`, or with a trap.
///
/// Opaque; it is public because the traits in [`bindings`](crate::bindings) return it.
#[derive(Debug)]
pub struct CallError(Outcome);

#[derive(Debug)]
enum Outcome {
    Refused(Refusal),
    Trapped(wasmtime::Error),
}

impl CallError {
    /// What the guest is told; `Err` traps it.
    pub(crate) fn into_answer(self) -> wasmtime::Result<types::Error> {
        match self.0 {
            Outcome::Refused(refusal) => Ok(refusal.into()),
            Outcome::Trapped(error) => Err(error),
        }
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self(Outcome::Refused(refusal))
    }
}

/// A handle that the guest does not have, or a table that it filled up: its own fault, and no case of `error`.
impl From<ResourceTableError> for CallError {
    fn from(error: ResourceTableError) -> Self {
        Self(Outcome::Trapped(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::Error;
    use wasmtime::component::ResourceTableError;

    use super::{CallError, Refusal, types};

    fn told(error: Error) -> types::Error {
        Refusal::from(error).into()
    }

    #[test]
    fn a_guest_reads_no_lease_and_no_key() {
        let conflict = Error::Conflict { key: "/secret/10.0.0.1:1".into(), lease: 0xbeef };
        for error in [conflict, Error::Duplicate("/secret/10.0.0.1:1".into())] {
            let text = format!("{:?}", told(error));
            assert!(text.starts_with("Error::Conflict"), "{text}");
            assert!(!text.contains("secret") && !text.contains("beef"), "{text}");
        }
    }

    #[test]
    fn a_quota_says_what_is_limited() {
        let (burst, interval) = (3, Duration::from_secs(1));
        for (refusal, what) in [
            (Refusal::TooMany { most: 3 }, "may have 3 registrations"),
            (Refusal::RegistersTooOften { burst, interval }, "may register 3 times at once, and once in 1s"),
            (Refusal::FollowsTooMany { most: 3 }, "may look up 3 services"),
            (Refusal::LooksUpTooOften { burst, interval }, "may look up 3 other services at once, and one in 1s"),
            (Refusal::NoRoomToFollow, "the host follows as many services as it may"),
            (
                Refusal::from(Error::Quota { what: "registrations", limit: 3 }),
                "the host has no room for more registrations",
            ),
        ] {
            match refusal.into() {
                types::Error::QuotaExceeded(text) => assert!(text.contains(what), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_late_answer_is_a_timeout() {
        let late = Error::Timeout { what: "register", after: Duration::from_secs(1), why: None };
        assert!(matches!(told(late), types::Error::Timeout));
        assert!(matches!(Refusal::Deadline.into(), types::Error::Timeout));
    }

    #[test]
    fn an_ended_registration_is_not_registered() {
        assert!(matches!(told(Error::Ended), types::Error::NotRegistered));
    }

    #[test]
    fn a_broken_rule_names_its_field() {
        let invalid = "a/b".parse::<leasehold::ServiceName>().unwrap_err();
        match Refusal::from(invalid).into() {
            types::Error::InvalidArgument(text) => assert!(text.starts_with("name must"), "{text}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bad_handle_traps() {
        assert!(CallError::from(ResourceTableError::NotPresent).into_answer().is_err());
        assert!(CallError::from(Refusal::Ending).into_answer().is_ok());
    }
}
