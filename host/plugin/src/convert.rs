//! Conversions to the types of the WIT.

use leasehold::{ServerNode, State, Status, Weight};

use crate::{
    bindings::v0_2::leasehold::registry::{registrar::RegistrationInfo, registry_types as types},
    error::{CallError, CallRefusal},
    registration::ComponentRegistration,
};

impl From<&ServerNode> for types::ServerNode {
    fn from(node: &ServerNode) -> Self {
        Self {
            name: node.name.as_str().to_owned(),
            addr: node.addr.as_str().to_owned(),
            version: node.version.as_str().to_owned(),
            weight: node.weight.map(Weight::value),
            metadata: node.metadata.pairs().to_vec(),
        }
    }
}

/// The node that a registration publishes, with its current weight.
pub(crate) fn published(registration: &ComponentRegistration) -> types::ServerNode {
    types::ServerNode { weight: Some(registration.status().weight.value()), ..(&registration.node()).into() }
}

/// A registration without its handle.
pub(crate) fn described(registration: &ComponentRegistration) -> RegistrationInfo {
    let publication = registration.registration();
    RegistrationInfo {
        key: publication.key().to_string(),
        node: published(registration),
        status: registration.status().into(),
        publishes_metadata: publication.publishes_metadata(),
    }
}

impl From<Status> for types::Status {
    fn from(status: Status) -> Self {
        Self {
            state: status.state.into(),
            weight: status.weight.value(),
            ttl_remaining_ms: u64::try_from(status.ttl_remaining.as_millis()).unwrap_or(u64::MAX),
            renewals: status.renewals,
            recoveries: status.recoveries,
        }
    }
}

impl From<State> for types::State {
    fn from(state: State) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::Registered => Self::Registered,
            State::Suspect => Self::Suspect,
            State::Recovering => Self::Recovering,
            State::Conflict => Self::Conflict,
            State::Draining => Self::Draining,
            State::Stopped => Self::Stopped,
        }
    }
}

impl From<CallRefusal> for types::Error {
    fn from(refusal: CallRefusal) -> Self {
        use leasehold::Error;

        let text = refusal.to_string();
        match refusal {
            CallRefusal::Invalid(_)
            | CallRefusal::NoAddr
            | CallRefusal::LongTtl { .. }
            | CallRefusal::Registrar(Error::Invalid(_)) => Self::InvalidArgument(text),
            CallRefusal::NoRegistry | CallRefusal::ForeignName | CallRefusal::ForeignAddr | CallRefusal::HiddenName => {
                Self::AccessDenied(text)
            }
            CallRefusal::TooMany { .. }
            | CallRefusal::RegisterRate { .. }
            | CallRefusal::TooManyViews { .. }
            | CallRefusal::LookupRate { .. }
            | CallRefusal::TooManyWatches { .. }
            | CallRefusal::TooManyCalls { .. }
            | CallRefusal::HostViewsFull
            | CallRefusal::Registrar(Error::Quota { .. }) => Self::QuotaExceeded(text),
            CallRefusal::Registrar(Error::Conflict { .. } | Error::Duplicate(_)) => Self::Conflict(text),
            CallRefusal::Ending
            | CallRefusal::HostEnded
            | CallRefusal::Withdrawn
            | CallRefusal::Registrar(Error::Unavailable(_)) => Self::Unavailable(text),
            CallRefusal::Deadline | CallRefusal::Registrar(Error::Timeout { .. }) => Self::Timeout,
            CallRefusal::Registrar(Error::Ended) => Self::NotRegistered,
            CallRefusal::Registrar(_) => Self::Other(text),
        }
    }
}

/// A refusal of the platform's own.
impl From<types::Error> for CallError {
    fn from(error: types::Error) -> Self {
        wasmtime::Error::from(error).into()
    }
}

impl CallError {
    /// The WIT's `error` that the component gets; `Err` traps it. The result of `convert_error` in an own implementation of
    /// `registry_types::Host`.
    pub fn downcast(self) -> wasmtime::Result<types::Error> {
        self.into_refusal().map(Into::into).or_else(wasmtime::Error::downcast)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use leasehold::Error;
    use wasmtime::{component::ResourceTableError, format_err};

    use super::{CallError, CallRefusal, types};

    fn converted(error: Error) -> types::Error {
        CallRefusal::from(error).into()
    }

    #[test]
    fn a_component_reads_no_lease_and_no_key() {
        let conflict = Error::Conflict { key: "/secret/10.0.0.1:1".into(), lease: leasehold::LeaseId::new(0xbeef) };
        for error in [conflict, Error::Duplicate("/secret/10.0.0.1:1".into())] {
            let text = format!("{:?}", converted(error));
            assert!(text.starts_with("Error::Conflict"), "{text}");
            assert!(!text.contains("secret") && !text.contains("beef"), "{text}");
        }
    }

    #[test]
    fn errors_of_a_platform_become_cases_or_traps() {
        let refused = |error: CallError| error.downcast().unwrap();
        let denied = || types::Error::AccessDenied("of another tenant".into());
        for error in [denied().into(), CallError::from(wasmtime::Error::from(denied()))] {
            assert!(matches!(refused(error), types::Error::AccessDenied(text) if text == "of another tenant"));
        }
        let conflict = Error::Conflict { key: "/secret/10.0.0.1:1".into(), lease: None };
        match refused(conflict.into()) {
            types::Error::Conflict(text) => assert!(!text.contains("secret"), "{text}"),
            other => panic!("{other:?}"),
        }
        let invalid = "a/b".parse::<leasehold::ServiceName>().unwrap_err();
        assert!(matches!(refused(invalid.into()), types::Error::InvalidArgument(_)));
        for trap in [CallError::from(format_err!("a fault")), ResourceTableError::NotPresent.into()] {
            let text = trap.downcast().unwrap_err().to_string();
            assert!(["a fault", &ResourceTableError::NotPresent.to_string()].contains(&text.as_str()), "{text}");
        }
    }

    #[test]
    fn a_quota_names_its_limit() {
        let (burst, interval) = (3, Duration::from_secs(1));
        for (refusal, what) in [
            (CallRefusal::TooMany { max: 3 }, "may have 3 registrations"),
            (CallRefusal::RegisterRate { burst, interval }, "may register 3 times at once, and once in 1s"),
            (CallRefusal::TooManyViews { max: 3 }, "may look up 3 services"),
            (CallRefusal::LookupRate { burst, interval }, "may look up 3 other services at once, and one in 1s"),
            (CallRefusal::TooManyWatches { max: 3 }, "may watch 3 services"),
            (CallRefusal::TooManyCalls { max: 3 }, "may have 3 asynchronous calls"),
            (CallRefusal::HostViewsFull, "the host follows as many services as it may"),
            (
                CallRefusal::from(Error::Quota { what: "registrations", limit: 3 }),
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
        assert!(matches!(converted(late), types::Error::Timeout));
        assert!(matches!(CallRefusal::Deadline.into(), types::Error::Timeout));
    }

    #[test]
    fn an_ended_registration_is_not_registered() {
        assert!(matches!(converted(Error::Ended), types::Error::NotRegistered));
    }

    #[test]
    fn a_broken_rule_names_its_field() {
        let invalid = "a/b".parse::<leasehold::ServiceName>().unwrap_err();
        match CallRefusal::from(invalid).into() {
            types::Error::InvalidArgument(text) => assert!(text.starts_with("name must"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}
