//! Asynchronous calls of a component, which the host drives.

use std::{panic::resume_unwind, sync::Arc, task::Poll};

use futures::poll;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::RegistryCtx;
use crate::error::{CallError, CallRefusal};

/// Asynchronous calls of one component in progress, at most: an instance can begin any number of them.
const MAX_CALLS: usize = 256;

/// A place among the asynchronous calls in progress, given back when it is dropped.
pub(crate) type RunningCall = OwnedSemaphorePermit;

/// Permits of further calls.
#[derive(Debug, Clone)]
pub(super) struct RunningCalls(Arc<Semaphore>);

impl RunningCalls {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CALLS)))
    }
}

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
