//! Keeps service registrations alive in etcd.

mod config;
mod error;
mod etcd;
mod layout;
mod node;
mod registrar;
mod status;
mod weight;

pub use config::{Credentials, LoadSource, Options, Ownership, Terms, Tls, Ttl};
pub use error::{Error, Unavailable};
pub use layout::Layout;
pub use node::{Addr, Invalid, Metadata, ServerNode, ServiceName, Version, Weight};
pub use registrar::{EtcdStatus, Listed, Registrar, Registration};
pub use status::{Event, State, Status, What};
pub use weight::{Damping, Load, weight_of};
