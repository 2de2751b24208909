//! One version of a service's component, in the order it is lived: started, served through its door, retired.

use std::sync::Arc;

use tokio::time::timeout;
use wasmtime_wasi_http::handler::ProxyPre;

use crate::{
    component::Loaded,
    config::Spec,
    door::Door,
    engine::Engine,
    failure::Failure,
    guest::{Guest, Host},
    instances::{Instances, Reuse},
    life::Life,
};

/// A version that has been started.
pub(crate) struct Version {
    guest: Arc<Guest>,
    pub(crate) door: Arc<Door>,
    life: Option<Life>,
}

impl Version {
    /// Starts the component, within its deadline. What it registered before a failure is still registered after it.
    pub(crate) async fn start(
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        pre: ProxyPre<Host>,
        guest: Arc<Guest>,
    ) -> Result<Self, Failure> {
        let reuse = Reuse::of(&pre, &spec.limits);
        let reuse = reuse.map_err(|said| Failure::usage(format!("{}: {said}", spec.component.display())))?;
        let life = Life::start(spec, engine, loaded, &guest).await?;
        let instances = Instances {
            name: spec.name.clone(),
            engine: engine.clone(),
            pre,
            guest: Arc::clone(&guest),
            request_timeout: spec.limits.request_timeout,
            reuse,
        };
        let door = Arc::new(Door::new(spec.name.clone(), instances, &spec.limits));
        Ok(Self { guest, door, life })
    }

    /// Ends it once its requests are answered, or have had their time. Nobody is sent to it any more.
    pub(crate) async fn retire(mut self, spec: Spec) {
        self.guest.replaced.cancel();
        let deadline = spec.limits.drain_timeout;
        if timeout(deadline, self.door.emptied()).await.is_err() {
            tracing::warn!(service = %spec.name, "the former version still answers after {deadline:?}");
        }
        self.stop(&spec).await;
        tracing::info!(service = %spec.name, "the former version has ended");
    }

    /// Stops the component, within its deadline. Once only; a second time does nothing.
    pub(crate) async fn stop(&mut self, spec: &Spec) {
        if let Some(life) = self.life.take() {
            life.stop(spec).await;
        }
        self.guest.ended.cancel();
    }
}
