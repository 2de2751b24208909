//! The component's optional `lifecycle`: found once per component, called on one of its instances.

use wasmtime::{
    AsContextMut,
    component::{Component, Instance, InstancePre},
};

#[cfg(feature = "p3")]
use crate::bindings::v0_2::exports::leasehold::registry::async_lifecycle;
use crate::bindings::{
    v0_1::exports::leasehold::registry::lifecycle as lifecycle_0_1, v0_2::exports::leasehold::registry::lifecycle,
};

/// The interfaces that a component exports to be started and stopped. Of several that it exports, the first is called.
const INTERFACES: [&str; 3] = [ASYNC, PLAIN, PLAIN_0_1];
const ASYNC: &str = "leasehold:registry/async-lifecycle@0.2.0";
const PLAIN: &str = "leasehold:registry/lifecycle@0.2.0";
const PLAIN_0_1: &str = "leasehold:registry/lifecycle@0.1.0";

/// The longest text of a failed start that the host keeps, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// The `lifecycle` of a component that exports one.
///
/// Call `start` and `stop` once each, on the same long-lived instance. Neither has a deadline of its own: interrupt a
/// component that does not return by an epoch deadline on its store, and a component that waits by dropping the call.
#[derive(Clone)]
pub struct Lifecycle {
    indices: Indices,
}

/// Places of the functions in the component, by interface.
#[derive(Clone)]
enum Indices {
    Plain0_1(lifecycle_0_1::GuestIndices),
    Plain(lifecycle::GuestIndices),
    #[cfg(feature = "p3")]
    Async(async_lifecycle::GuestIndices),
}

impl std::fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifecycle").finish_non_exhaustive()
    }
}

impl Lifecycle {
    /// The lifecycle that this component exports; `None` when it exports none.
    ///
    /// Fails if it exports another item by that name, and for an asynchronous lifecycle without the feature `p3`.
    pub fn of<T>(pre: &InstancePre<T>) -> wasmtime::Result<Option<Self>> {
        let indices = match exported(pre.component()) {
            None => return Ok(None),
            #[cfg(feature = "p3")]
            Some(ASYNC) => Indices::Async(async_lifecycle::GuestIndices::new(pre)?),
            #[cfg(not(feature = "p3"))]
            Some(ASYNC) => wasmtime::bail!("{ASYNC} needs the feature `p3` of leasehold-wasmtime"),
            Some(PLAIN) => Indices::Plain(lifecycle::GuestIndices::new(pre)?),
            Some(_) => Indices::Plain0_1(lifecycle_0_1::GuestIndices::new(pre)?),
        };
        Ok(Some(Self { indices }))
    }

    /// Returns true if `component` exports a lifecycle of any version.
    pub fn is_exported(component: &Component) -> bool {
        exported(component).is_some()
    }

    /// Calls the component's `start`, in which a service registers.
    ///
    /// The outer error is a trap, after which the instance is of no more use; the inner one is the component's own text,
    /// cut to 1 KiB. After either the embedder owes a [`stop_all`](crate::RegistryCtx::stop_all).
    pub async fn start<T: Send + 'static>(
        &self,
        mut store: impl AsContextMut<Data = T>,
        instance: &Instance,
    ) -> wasmtime::Result<Result<(), String>> {
        let started = match &self.indices {
            Indices::Plain0_1(indices) => indices.load(&mut store, instance)?.call_start(&mut store).await,
            Indices::Plain(indices) => indices.load(&mut store, instance)?.call_start(&mut store).await,
            #[cfg(feature = "p3")]
            Indices::Async(indices) => {
                let guest = indices.load(&mut store, instance)?;
                store.as_context_mut().run_concurrent(async |store| guest.call_start(store).await).await?
            }
        };
        Ok(started?.map_err(cut))
    }

    /// Calls the component's `stop`, after its requests are answered. An error is a trap.
    pub async fn stop<T: Send + 'static>(
        &self,
        mut store: impl AsContextMut<Data = T>,
        instance: &Instance,
    ) -> wasmtime::Result<()> {
        match &self.indices {
            Indices::Plain0_1(indices) => indices.load(&mut store, instance)?.call_stop(&mut store).await,
            Indices::Plain(indices) => indices.load(&mut store, instance)?.call_stop(&mut store).await,
            #[cfg(feature = "p3")]
            Indices::Async(indices) => {
                let guest = indices.load(&mut store, instance)?;
                store.as_context_mut().run_concurrent(async |store| guest.call_stop(store).await).await?
            }
        }
    }
}

/// The interface of a component that is called.
fn exported(component: &Component) -> Option<&'static str> {
    INTERFACES.into_iter().find(|interface| component.get_export_index(None, interface).is_some())
}

/// The component's text, short enough for a log line.
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}
