//! Look-ups that wait while the instance serves its other requests, and the nodes of a service as a stream.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use wit_bindgen::rt::async_support::StreamReaderStream;

use crate::{error::Error, p3::bindings::leasehold::registry::async_discovery, registration::Node};

pub use async_discovery::Snapshot;

/// The nodes of a service, and of one version unless it is empty; at most 1000, or the limit that the host configures.
pub async fn resolve(name: &str, version: &str) -> Result<Vec<Node>, Error> {
    let found = async_discovery::resolve(name.to_owned(), version.to_owned()).await;
    found.map_err(|error| Error::of(format!("resolve {name}"), error))
}

/// One node of a service, by the host's balancer; `None` if there is no node.
pub async fn pick(name: &str, version: &str) -> Result<Option<Node>, Error> {
    let picked = async_discovery::pick(name.to_owned(), version.to_owned()).await;
    picked.map_err(|error| Error::of(format!("pick {name}"), error))
}

/// The nodes of a service, and of one version unless it is empty: now, and after each change.
pub async fn watch(name: &str, version: &str) -> Result<Watch, Error> {
    let states = async_discovery::watch(name.to_owned(), version.to_owned()).await;
    let states = states.map_err(|error| Error::of(format!("watch {name}"), error))?;
    Ok(Watch(states.into_stream()))
}

/// The states of a service, also as a stream. Nothing is queued: a late reader reads the latest state.
///
/// It ends when the host drains this service or another version of the component has taken over. Dropping it closes the watch.
pub struct Watch(StreamReaderStream<Snapshot>);

impl Watch {
    /// The next state, which is the first one at once; `None` at the end. A call that is dropped loses no state.
    pub async fn next(&mut self) -> Option<Snapshot> {
        poll_fn(|cx| Pin::new(&mut self.0).poll_next(cx)).await
    }
}

impl Stream for Watch {
    type Item = Snapshot;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Snapshot>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
