//! A reload, from the component's file to a version that can be served; what is served goes on meanwhile.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::{
    config::{DELETE_TIMEOUT, Spec},
    error::Failure,
    service::{handle::Asker, revision::Version},
    wasm::{component::Loaded, context::Guest, engine::Engine, initial_memory},
};

/// One that is under way.
pub(crate) struct Reload {
    /// Who waits for it, unless it is the file that asked.
    asker: Option<Asker<Result<(), Failure>>>,
    making: BoxFuture<'static, Result<Made, Failure>>,
}

/// What it is made of.
pub(crate) struct Aside {
    pub(crate) spec: Spec,
    pub(crate) engine: Engine,
    /// What is served.
    pub(crate) former: Arc<Guest>,
    /// How requests name the service, and who retires, where the host calls the component.
    pub(crate) handler: Option<(String, TaskTracker)>,
}

/// What can be served now.
pub(crate) struct Made {
    pub(crate) loaded: Loaded,
    /// Started and asked; `None` for a program, of which there is one at a time.
    pub(crate) version: Option<Version>,
}

impl Reload {
    /// With what is in the file, or with what was loaded from it before.
    pub(crate) fn begin(asker: Option<Asker<Result<(), Failure>>>, aside: Aside, loaded: Option<Loaded>) -> Self {
        Self { asker, making: aside.make(loaded).boxed() }
    }

    /// Waits for it; once only. Dropped halfway, it goes on where it was.
    pub(crate) async fn made(&mut self) -> Result<Made, Failure> {
        (&mut self.making).await
    }

    /// Says how it went.
    pub(crate) fn end(self, outcome: Result<(), Failure>) {
        if let Some(asker) = self.asker {
            let _ = asker.send(outcome); // Whoever asked may have gone away.
        }
    }
}

impl Aside {
    async fn make(self, loaded: Option<Loaded>) -> Result<Made, Failure> {
        let loaded = match loaded {
            Some(loaded) => loaded,
            None => {
                let Aside { engine, spec, .. } = &self;
                initial_memory::check_aside(engine, spec).await?;
                Loaded::load_aside(engine.clone(), spec.component.clone(), spec.precompiled).await?
            }
        };
        loaded.check(&self.spec)?;
        let Some((authority, retiring)) = &self.handler else {
            loaded.program(&self.spec.component)?;
            return Ok(Made { loaded, version: None });
        };
        // One at a time: each has an instance that lives as long as it does.
        retiring.close();
        retiring.wait().await;
        retiring.reopen();
        let guest = Arc::new(self.former.successor());
        let started = Version::beside(&self.spec, &self.engine, &loaded, Arc::clone(&guest), authority).await;
        if started.is_err() {
            give_back(&self.spec, &guest, &self.former).await;
        }
        Ok(Made { version: Some(started?), loaded })
    }
}

/// Undoes what a version registered that is not served.
pub(crate) async fn give_back(spec: &Spec, guest: &Guest, former: &Guest) {
    guest.ended.cancel();
    let undone = timeout(DELETE_TIMEOUT, guest.registry.give_back(&former.registry)).await;
    if !matches!(undone, Ok(Ok(()))) {
        tracing::warn!(service = %spec.name, "a key of the new version may stay for a while");
    }
    if former.registry.is_withdrawn() {
        // What the new version had brought back goes again.
        drop(timeout(DELETE_TIMEOUT, former.registry.withdraw()).await);
    }
}
