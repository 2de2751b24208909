//! Asynchronous calls of a component, which the host drives.

use std::{panic::resume_unwind, sync::Arc, task::Poll};

use futures::poll;
use tokio_util::task::AbortOnDropHandle;

use super::{
    RegistryCtx,
    state::{MAX_CALLS, RunningCall},
};
use crate::error::{CallError, CallRefusal};

impl RegistryCtx {
    /// Begins an asynchronous call of the component.
    pub(crate) fn begin_call(&self) -> Result<RunningCall, CallRefusal> {
        let permit = Arc::clone(&self.calls.0).try_acquire_owned();
        permit.map_err(|_| CallRefusal::TooManyCalls { max: MAX_CALLS })
    }

    /// Drives a call on the host's side: it goes on while the component's store stands still, and ends when this future is dropped.
    ///
    /// Its first steps are taken in place, so that a registration that the component begins and leaves behind belongs to its
    /// revision before the component does anything else, and a reload that follows leaves the key as it is.
    pub(crate) async fn driven<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, CallError>> + Send + 'static,
    ) -> Result<T, CallError> {
        let mut call = Box::pin(call);
        if let Poll::Ready(outcome) = poll!(&mut call) {
            return outcome;
        }
        match AbortOnDropHandle::new(self.shared.tasks.spawn(call)).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(_) => Err(CallRefusal::Ending.into()),
        }
    }
}
