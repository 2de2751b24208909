//! Keeps service registrations alive in etcd: lease, keepalive, recovery, weight and the clean end.
//!
//! A [`Registrar`] owns one thread, which owns every lease. [`Registrar::register`] returns once the key is in etcd; from then
//! on the registrar restores the key after any failure of etcd or the network, until [`Registration::stop`] deletes it.
//! [`Registrar::watch`] keeps a [`View`] of the nodes of a service, from which a [`Balancer`] picks one for each call.
//!
//! ```no_run
//! use leasehold::{Options, Registrar, ServerNode};
//!
//! # async fn example() -> Result<(), leasehold::Error> {
//! let registrar = Registrar::start(Options::new(["http://127.0.0.1:2379"]))?;
//! let user = registrar.register(ServerNode::new("user", "10.0.0.5:8080")?).await?;
//! println!("{} is {}", user.key(), user.status().state);
//! user.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! All of these are on by default.
//!
//! | feature | brings |
//! |---|---|
//! | `discovery` | reading: [`View`], [`Balancer`], `resolve`, `list`, `watch_keys` |
//! | `load` | weights that follow the load of this machine: `LoadSource::Machine` |
//! | `tls` | endpoints with `https`; without it [`Registrar::start`] refuses them |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
#[cfg(feature = "discovery")]
mod discovery;
mod error;
mod etcd;
mod faults;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod layout;
mod lease;
mod lease_id;
mod node;
mod options;
mod placement;
mod registrar;
mod registration;
mod reminder;
#[cfg(feature = "simulation")]
mod sim;
mod source;
mod status;
mod timers;
mod weight;

#[cfg(feature = "discovery")]
pub use discovery::balancer::{Balancer, Choice, InFlight, OutlierRules, Pick, PickRules, Traffic};
#[cfg(feature = "discovery")]
pub use discovery::key_watch::{KeyEvent, KeyWatch, WatchEvent};
#[cfg(feature = "discovery")]
pub use discovery::list::{LeaseTtl, RawEntry};
#[cfg(feature = "discovery")]
pub use discovery::nodes::{NodeEvent, Nodes};
#[cfg(feature = "discovery")]
pub use discovery::view::View;
pub use error::Error;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub use etcd::Dial;
pub use etcd::auth::{Access, CreatedUser, Grant, NewUser};
pub use etcd::health::{Alarm, Health, Member};
pub use etcd::latency::{Latency, Verb};
pub use etcd::{Refusal, Unavailable};
pub use faults::Fault;
pub use layout::Layout;
pub use lease_id::LeaseId;
pub use node::{Addr, Invalid, Metadata, ServerNode, ServiceName, Version, Weight};
pub use options::{Credentials, LoadSource, Options, Ownership, Terms, Tls, Ttl};
pub use registrar::{EtcdStatus, LeaseStatus, Registrar};
pub use registration::Registration;
#[doc(hidden)]
pub use reminder::Reminder;
pub use source::Source;
pub use status::{Event, EventKind, State, Status};
pub use weight::{Damping, Load, weight_of};
