//! Reasons for which a component's call is refused, and the only place where the text that the component reads is made.
//!
//! The text says what the component can know already: its own arguments, the rules and its own limits.
//! Endpoints, leases and etcd's words stay with the host.

use std::time::Duration;

use leasehold::{Error, Invalid};
use wasmtime::component::ResourceTableError;

/// Reason for a refused call, with its text. Each variant ends as one case of the WIT's `error`.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(
    not(all(feature = "discovery", feature = "p3")),
    expect(dead_code, reason = "calls that are not there are not refused")
)]
pub(crate) enum CallRefusal {
    /// An argument breaks a rule of `server-node`.
    #[error("{0}")]
    Invalid(Invalid),
    /// The embedder has no registry for the component's store.
    #[error("this component has no access to the registry")]
    NoRegistry,
    /// The component leaves its address to a host that has none for it.
    #[error("addr must not be empty: the host serves this component at no address")]
    NoAddr,
    /// The component requests a longer time to live than its policy allows.
    #[error("ttl-seconds must be at most {} for this component, not {requested}", .max.as_secs())]
    LongTtl { requested: u32, max: Duration },
    /// The policy does not let this component publish that name.
    #[error("name is not in this component's allow.names")]
    ForeignName,
    /// The policy does not let this component publish that address.
    #[error("addr must be this component's own")]
    ForeignAddr,
    /// The policy does not let this component look that name up.
    #[error("name is not in this component's allow.discover")]
    HiddenName,
    /// The component has as many registrations as its policy allows.
    #[error("this component may have {max} registrations at a time")]
    TooMany { max: usize },
    /// The component registers more often than its policy allows.
    #[error("this component may register {burst} times at once, and once in {interval:?} after that")]
    RegisterRate { burst: u32, interval: Duration },
    /// The component follows as many services as it may.
    #[error("this component may look up {max} services at a time")]
    TooManyViews { max: usize },
    /// The component looks up services that it does not follow more often than it may.
    #[error("this component may look up {burst} other services at once, and one in {interval:?} after that")]
    LookupRate { burst: u32, interval: Duration },
    /// The component has as many open watches as its policy allows.
    #[error("this component may watch {max} services at a time, over all of its instances")]
    TooManyWatches { max: usize },
    /// The component has as many asynchronous calls in progress as it may.
    #[error("this component may have {max} asynchronous calls of the registry in progress")]
    TooManyCalls { max: usize },
    /// The host follows as many services as it may, for all of its components.
    #[error("the host follows as many services as it may; those that are followed already can be looked up")]
    HostViewsFull,
    /// The component is being stopped, or its next revision has taken over.
    #[error("the service is being stopped")]
    Ending,
    /// The registrar has ended, under a component that goes on.
    #[error("the host's registry has ended")]
    HostEnded,
    /// The host has withdrawn the component's registrations for the time being.
    #[error("the host has withdrawn the service for the time being")]
    Withdrawn,
    /// The policy's deadline passed.
    #[error("timeout")]
    Deadline,
    /// The registrar refused.
    #[error("{}", text(.0))]
    Registrar(Error),
}

impl CallRefusal {
    /// Text for the host's log, with the details that the component does not get.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::Registrar(error) => error.to_string(),
            Self::Deadline => "it took longer than the deadline of the component's policy".to_owned(),
            refusal => refusal.to_string(),
        }
    }
}

impl From<Invalid> for CallRefusal {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<Error> for CallRefusal {
    fn from(error: Error) -> Self {
        Self::Registrar(error)
    }
}

/// Text about an error of the registrar, without its keys, leases and endpoints.
fn text(error: &Error) -> String {
    let text = match error {
        Error::Invalid(invalid) => return invalid.to_string(),
        Error::Quota { .. } => "the host has no room for more registrations",
        Error::Conflict { .. } => "a live lease of another host holds the key",
        Error::Duplicate(_) => "this host keeps the key for another component",
        Error::Unavailable(_) => "the registry cannot be reached, or refused",
        Error::Timeout { .. } => "timeout",
        Error::Ended => "not registered",
        _ => "the host could not do it",
    };
    text.to_owned()
}

/// End of a component's call without its value: with a case of the WIT's `error`, or with a trap. The traits in
/// [`bindings`](crate::bindings) return it.
///
/// A platform that implements one of them itself, and calls that of [`RegistryCtxView`](crate::RegistryCtxView) or not, converts
/// its own errors:
///
/// | from | the component gets |
/// |---|---|
/// | the WIT's `error`, of either version | that case |
/// | [`leasehold::Error`], [`leasehold::Invalid`] | the case and the text that the registry has for it |
/// | [`wasmtime::Error`] | a trap, unless it holds the WIT's `error` |
/// | [`ResourceTableError`] | a trap |
#[derive(Debug)]
pub struct CallError(CallEnd);

#[derive(Debug)]
enum CallEnd {
    Refused(CallRefusal),
    Trapped(wasmtime::Error),
}

impl CallError {
    /// The refusal, unless the call traps.
    pub(crate) fn refusal(&self) -> Option<&CallRefusal> {
        match &self.0 {
            CallEnd::Refused(refusal) => Some(refusal),
            CallEnd::Trapped(_) => None,
        }
    }

    /// The registry's refusal; `Err` for any other end.
    pub(crate) fn into_refusal(self) -> wasmtime::Result<CallRefusal> {
        match self.0 {
            CallEnd::Refused(refusal) => Ok(refusal),
            CallEnd::Trapped(error) => Err(error),
        }
    }
}

/// A trap, unless it holds the WIT's `error`.
impl From<wasmtime::Error> for CallError {
    fn from(error: wasmtime::Error) -> Self {
        Self(CallEnd::Trapped(error))
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        CallRefusal::from(error).into()
    }
}

impl From<Invalid> for CallError {
    fn from(invalid: Invalid) -> Self {
        CallRefusal::from(invalid).into()
    }
}

impl From<CallRefusal> for CallError {
    fn from(refusal: CallRefusal) -> Self {
        Self(CallEnd::Refused(refusal))
    }
}

/// A handle that the component does not have, or a table that it filled up: its own fault, and no case of `error`.
impl From<ResourceTableError> for CallError {
    fn from(error: ResourceTableError) -> Self {
        Self(CallEnd::Trapped(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::component::ResourceTableError;

    use super::{CallError, CallRefusal};

    #[test]
    fn a_bad_handle_traps() {
        assert!(CallError::from(ResourceTableError::NotPresent).into_refusal().is_err());
        assert!(CallError::from(CallRefusal::Ending).into_refusal().is_ok());
    }
}
