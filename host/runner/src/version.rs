//! One version of a service's component, in the order it is lived: started, served through its door, retired.

use std::{sync::Arc, time::Duration};

use leasehold_wasmtime::Lifecycle;
use tokio::time::{sleep, timeout};
use wasmtime::{Store, component::Instance};

use crate::{
    component::{Loaded, cause},
    config::Spec,
    door::Door,
    engine::Engine,
    failure::{Failure, one_line},
    guest::{Guest, Host},
    instances::{Instances, Reuse},
};

/// How often a version that retires is asked whether it has answered everything.
const LOOK: Duration = Duration::from_millis(20);

/// A version that has been started.
pub(crate) struct Version {
    guest: Arc<Guest>,
    pub(crate) door: Arc<Door>,
    /// The instance that lives as long as the version, if the component asks for one.
    life: Option<Life>,
}

/// The long-lived instance.
struct Life {
    store: Store<Host>,
    instance: Instance,
    lifecycle: Lifecycle,
}

impl Version {
    /// Starts the component, within its deadline. What it registered before a failure is still registered after it.
    pub(crate) async fn start(
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        guest: Arc<Guest>,
    ) -> Result<Self, Failure> {
        let path = &spec.component;
        let pre = loaded.proxy(path)?;
        let reuse = Reuse::of(&pre, &spec.limits);
        let reuse = reuse.map_err(|said| Failure::usage(format!("{}: {said}", path.display())))?;
        let failed = |said: String| Failure::other(format!("{}: {said}", spec.name));
        let lifecycle = Lifecycle::of(&loaded.pre);
        let lifecycle = lifecycle.map_err(|error| Failure::usage(format!("{}: {}", path.display(), cause(&error))))?;
        let life = match lifecycle {
            None => None,
            Some(lifecycle) => {
                let deadline = spec.limits.start_timeout;
                // A component that computes for ever yields at every tick, and is dropped here.
                let started = timeout(deadline, Life::start(engine, &guest, loaded, lifecycle)).await;
                let outcome = started.map_err(|_| failed(format!("lifecycle.start took longer than {deadline:?}")))?;
                Some(outcome.map_err(failed)?)
            }
        };
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
        let idle = async {
            while !self.door.is_idle() {
                sleep(LOOK).await;
            }
        };
        let deadline = spec.limits.drain_timeout;
        if timeout(deadline, idle).await.is_err() {
            tracing::warn!(service = %spec.name, "the former version still answers after {deadline:?}");
        }
        self.stop(&spec).await;
        tracing::info!(service = %spec.name, "the former version has ended");
    }

    /// Stops the component, within its deadline. Once only; a second time does nothing.
    pub(crate) async fn stop(&mut self, spec: &Spec) {
        if let Some(life) = self.life.take() {
            let deadline = spec.limits.stop_timeout;
            match timeout(deadline, life.stop()).await {
                Ok(Ok(())) => {}
                Ok(Err(said)) => tracing::warn!(service = %spec.name, "{said}"),
                Err(_) => tracing::warn!(service = %spec.name, "lifecycle.stop took longer than {deadline:?}"),
            }
        }
        self.guest.ended.cancel();
    }
}

impl Life {
    async fn start(engine: &Engine, guest: &Guest, loaded: &Loaded, lifecycle: Lifecycle) -> Result<Self, String> {
        let mut store = engine.store(guest.host_for_life());
        let instance = loaded.pre.instantiate_async(&mut store).await;
        let instance = instance.map_err(|error| format!("the component cannot be instantiated: {}", cause(&error)))?;
        match lifecycle.start(&mut store, &instance).await {
            Ok(Ok(())) => Ok(Self { store, instance, lifecycle }),
            Ok(Err(said)) => Err(format!("lifecycle.start failed: {}", one_line(&said))),
            Err(error) => Err(format!("lifecycle.start trapped: {}", cause(&error))),
        }
    }

    async fn stop(mut self) -> Result<(), String> {
        let stopped = self.lifecycle.stop(&mut self.store, &self.instance).await;
        stopped.map_err(|error| format!("lifecycle.stop trapped: {}", cause(&error)))
    }
}
