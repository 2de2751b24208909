//! The component's optional `lifecycle`: found once per component, called on one of its instances.

use wasmtime::{
    AsContextMut,
    component::{Component, Instance, InstancePre},
};

use crate::bindings::exports::leasehold::registry::lifecycle::GuestIndices;

/// The interface that a component exports to be started and stopped.
const INTERFACE: &str = "leasehold:registry/lifecycle@0.1.0";

/// The longest text of a failed start that the host keeps, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// The `lifecycle` of a component that exports one.
///
/// Call `start` and `stop` once each, on the same long-lived instance. Neither has a deadline of its own: interrupt a
/// component that does not return by an epoch deadline on its store, and a component that waits by dropping the call.
#[derive(Clone)]
pub struct Lifecycle {
    indices: GuestIndices,
}

impl std::fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifecycle").finish_non_exhaustive()
    }
}

impl Lifecycle {
    /// The lifecycle that this component exports; `None` when it exports none.
    ///
    /// Fails if it exports another item by that name.
    pub fn of<T>(pre: &InstancePre<T>) -> wasmtime::Result<Option<Self>> {
        match Self::is_exported(pre.component()) {
            true => Ok(Some(Self { indices: GuestIndices::new(pre)? })),
            false => Ok(None),
        }
    }

    /// Returns true if `component` exports the interface.
    pub fn is_exported(component: &Component) -> bool {
        component.get_export_index(None, INTERFACE).is_some()
    }

    /// Calls the component's `start`, in which a service registers.
    ///
    /// The outer error is a trap, after which the instance is of no more use; the inner one is the component's own text,
    /// cut to 1 KiB. After either the embedder owes a [`stop_all`](crate::RegistryCtx::stop_all).
    pub async fn start<T: Send>(
        &self,
        mut store: impl AsContextMut<Data = T>,
        instance: &Instance,
    ) -> wasmtime::Result<Result<(), String>> {
        let guest = self.indices.load(&mut store, instance)?;
        Ok(guest.call_start(&mut store).await?.map_err(cut))
    }

    /// Calls the component's `stop`, after its requests are answered. An error is a trap.
    pub async fn stop<T: Send>(
        &self,
        mut store: impl AsContextMut<Data = T>,
        instance: &Instance,
    ) -> wasmtime::Result<()> {
        let guest = self.indices.load(&mut store, instance)?;
        guest.call_stop(&mut store).await
    }
}

/// The component's text, short enough for a log line.
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}
