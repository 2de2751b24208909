//! Policy of one component, and the one place where its arguments are parsed and checked against the policy.

use std::time::Duration;

use leasehold::{Addr, Metadata, ServerNode, ServiceName, Terms, Ttl, Weight};

use crate::{bindings::v0_2::leasehold::registry::registry_types as types, error::CallRefusal};

/// Service names that a component may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// These and no others; an empty list is none.
    Only(Vec<ServiceName>),
    /// Every well-formed name.
    Any,
}

impl Names {
    /// Returns true if `name` is among them.
    pub fn allow(&self, name: &ServiceName) -> bool {
        match self {
            Self::Only(names) => names.contains(name),
            Self::Any => true,
        }
    }
}

impl FromIterator<ServiceName> for Names {
    fn from_iter<I: IntoIterator<Item = ServiceName>>(names: I) -> Self {
        Self::Only(names.into_iter().collect())
    }
}

/// Rights of one component in the registry. The default allows nothing.
///
/// Written by struct update, `Policy { addr, ..Policy::default() }`; use it also where every field is given, since a minor release
/// may add one.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The names under which it may register. For other names `register` returns `access-denied`.
    ///
    /// By default none.
    pub names: Names,
    /// The names that it may look up. For other names `resolve` returns `access-denied`.
    ///
    /// By default none.
    pub discover: Names,
    /// Address at which the host serves the component: published if the component leaves `addr` empty. Without it an empty
    /// `addr` is `invalid-argument`.
    pub addr: Option<Addr>,
    /// Further addresses that the component may publish, each compared letter by letter. Others are `access-denied`.
    pub addrs: Vec<Addr>,
    /// Registrations that the component may have at a time, those in progress included; one more is `quota-exceeded`.
    ///
    /// By default 16.
    pub max_registrations: usize,
    /// Interval at which one more registration becomes available to a component that has made twice as many as it may have
    /// at a time; an earlier one is `quota-exceeded`. It bounds the writes to etcd of a component that registers and stops in
    /// a loop; registering an existing registration costs nothing.
    ///
    /// By default 1 s.
    pub registration_interval: Duration,
    /// Nodes that `resolve` and a watch return, at most: the same subset each time, of a service that has more. Most of the duration of
    /// such a call is the copy of the nodes into the component.
    ///
    /// By default 1000.
    pub max_nodes: usize,
    /// Watches of services that the component may have open at a time; one more is `quota-exceeded`.
    ///
    /// By default 256.
    pub max_watches: usize,
    /// Metadata of the nodes that `pick` and calls by name prefer, as [`Balancer::with_preferred`] has it.
    ///
    /// [`Balancer::with_preferred`]: leasehold::Balancer::with_preferred
    ///
    /// By default none.
    pub prefer: Metadata,
    /// Longest time to live that the component may request; a longer one is `invalid-argument`.
    /// It bounds how long the keys of a dead host stay.
    ///
    /// By default 1 h.
    pub max_ttl: Duration,
    /// Longest wait of one call for the registry, over and above the registrar's own deadlines. A call that takes longer
    /// returns `timeout`. Too short a deadline makes `register` fail on a slow etcd.
    ///
    /// By default 30 s.
    pub deadline: Duration,
    /// Terms of the component's registrations; their `ttl` applies if the component requests none.
    ///
    /// By default those of the registrar.
    pub terms: Terms,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            names: Names::Only(Vec::new()),
            discover: Names::Only(Vec::new()),
            addr: None,
            addrs: Vec::new(),
            max_registrations: 16,
            registration_interval: Duration::from_secs(1),
            max_nodes: 1000,
            max_watches: 256,
            prefer: Metadata::default(),
            max_ttl: Duration::from_secs(60 * 60),
            deadline: Duration::from_secs(30),
            terms: Terms::default(),
        }
    }
}

impl Policy {
    /// A component that serves `name` at `addr`, and looks nothing up.
    pub fn serving(name: ServiceName, addr: Addr) -> Self {
        Self { names: Names::from_iter([name]), addr: Some(addr), ..Self::default() }
    }

    /// Parses a node, and checks that the component may publish it.
    pub(crate) fn admit(&self, node: types::ServerNode) -> Result<ServerNode, CallRefusal> {
        let name: ServiceName = node.name.parse()?;
        let addr = match node.addr.as_str() {
            "" => self.addr.clone().ok_or(CallRefusal::NoAddr)?,
            addr => addr.parse()?,
        };
        let node = ServerNode {
            name,
            addr,
            version: node.version.parse()?,
            weight: node.weight.map(Weight::try_from).transpose()?,
            metadata: Metadata::try_from(node.metadata)?,
        };
        if !self.names.allow(&node.name) {
            return Err(CallRefusal::ForeignName);
        }
        if self.addr.as_ref() != Some(&node.addr) && !self.addrs.contains(&node.addr) {
            return Err(CallRefusal::ForeignAddr);
        }
        Ok(node)
    }

    /// Terms with the requested time to live; 0 requests the host's.
    pub(crate) fn terms_for(&self, ttl_seconds: u32) -> Result<Terms, CallRefusal> {
        if ttl_seconds == 0 {
            return Ok(self.terms.clone());
        }
        if Duration::from_secs(ttl_seconds.into()) > self.max_ttl {
            return Err(CallRefusal::LongTtl { requested: ttl_seconds, max: self.max_ttl });
        }
        Ok(Terms { ttl: Some(Ttl::try_from(u64::from(ttl_seconds))?), ..self.terms.clone() })
    }

    /// Parses a service and a version, and checks that the component may look them up.
    #[cfg(feature = "discovery")]
    pub(crate) fn admit_lookup(
        &self,
        name: &str,
        version: &str,
    ) -> Result<(ServiceName, leasehold::Version), CallRefusal> {
        let service = (name.parse()?, version.parse()?);
        match self.discover.allow(&service.0) {
            true => Ok(service),
            false => Err(CallRefusal::HiddenName),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Names, Policy, types};

    const OWN: &str = "127.0.0.1:10002";

    fn policy() -> Policy {
        let mut policy = Policy::serving("greeter".parse().unwrap(), OWN.parse().unwrap());
        policy.addrs.push("greeter.example:80".parse().unwrap());
        policy
    }

    fn node(name: &str, addr: &str) -> types::ServerNode {
        types::ServerNode {
            name: name.into(),
            addr: addr.into(),
            version: String::new(),
            weight: None,
            metadata: Vec::new(),
        }
    }

    fn refused(node: types::ServerNode) -> types::Error {
        policy().admit(node).expect_err("must be refused").into()
    }

    #[test]
    fn an_empty_addr_is_the_hosts() {
        assert_eq!(policy().admit(node("greeter", "")).unwrap().addr.as_str(), OWN);
        let without_addr = Policy { addr: None, ..policy() };
        let error = without_addr.admit(node("greeter", "")).expect_err("has no addr").into();
        assert!(matches!(error, types::Error::InvalidArgument(_)), "{error:?}");
    }

    #[test]
    fn a_component_publishes_only_its_own_names_and_addresses() {
        assert!(policy().admit(node("greeter", OWN)).is_ok());
        assert!(policy().admit(node("greeter", "greeter.example:80")).is_ok());
        for denied in [node("payments", OWN), node("greeter", "127.0.0.1:10003")] {
            let error = refused(denied);
            assert!(matches!(error, types::Error::AccessDenied(_)), "{error:?}");
        }
    }

    #[test]
    fn a_broken_rule_is_an_invalid_argument() {
        let with = |change: fn(&mut types::ServerNode)| {
            let mut node = node("greeter", OWN);
            change(&mut node);
            node
        };
        for bad in [
            node("", OWN),
            node("gre/eter", OWN),
            node("greeter", "127.0.0.1"),
            node("greeter", "0.0.0.0:80"),
            with(|node| node.version = "v/1".into()),
            with(|node| node.weight = Some(0)),
            with(|node| node.weight = Some(101)),
            with(|node| node.metadata = vec![("k".into(), "v".repeat(2 << 20))]),
            with(|node| node.metadata = (0..65).map(|i| (i.to_string(), String::new())).collect()),
        ] {
            let error = refused(bad);
            assert!(matches!(error, types::Error::InvalidArgument(_)), "{error:?}");
        }
    }

    #[test]
    fn a_ttl_has_its_range() {
        let ttl = |seconds| policy().terms_for(seconds).map(|terms| terms.ttl.map(leasehold::Ttl::seconds));
        assert_eq!(ttl(0).unwrap(), None);
        assert_eq!(ttl(3600).unwrap(), Some(3600));
        for long in [3601, u32::MAX] {
            let error = ttl(long).expect_err("is too long").into();
            assert!(matches!(error, types::Error::InvalidArgument(_)), "{error:?}");
        }
    }

    #[test]
    fn a_lookup_needs_its_own_permission() {
        let error = policy().admit_lookup("greeter", "").expect_err("may look nothing up").into();
        assert!(matches!(error, types::Error::AccessDenied(_)), "{error:?}");
        let permitted = Policy { discover: Names::Any, ..policy() };
        assert!(permitted.admit_lookup("payments", "v1").is_ok());
        let error = permitted.admit_lookup("pay/ments", "").expect_err("breaks a rule").into();
        assert!(matches!(error, types::Error::InvalidArgument(_)), "{error:?}");
    }
}
