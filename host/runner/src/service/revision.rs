//! One revision of a service's component, in the order it is lived: opened, started, served through its dispatcher, retired.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use crate::{
    config::Spec,
    error::Failure,
    inbound::dispatch::Dispatcher,
    service::{health::probe, lifecycle::LifecycleInstance},
    wasm::{
        admission::Admission,
        component::Loaded,
        context::ServiceContext,
        engine::Engine,
        instance::Instances,
        reuse::{Reusable, Reuse},
    },
};

/// Pause between two probes of a revision that is not served yet.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// A revision that accepts requests.
pub(crate) struct Revision {
    pub(crate) context: Arc<ServiceContext>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    lifecycle: Option<LifecycleInstance>,
}

impl Revision {
    /// Makes the dispatcher. Nothing of the component runs yet.
    pub(crate) fn open(
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        context: Arc<ServiceContext>,
    ) -> Result<Self, Failure> {
        let pre = loaded.handler(&spec.component)?;
        let reuse = Reuse::of(&pre, &spec.limits);
        let reuse = reuse.map_err(|message| Failure::usage(format!("{}: {message}", spec.component.display())))?;
        let instances = Instances {
            name: spec.name.clone(),
            engine: engine.clone(),
            pre,
            context: Arc::clone(&context),
            request_timeout: spec.limits.request_timeout,
            stream_timeout: spec.limits.stream_timeout(),
            reusable: Reusable::new(spec.name.clone(), reuse),
        };
        let dispatcher = Arc::new(Dispatcher::new(spec.name.clone(), instances, &spec.limits));
        Ok(Self { context, dispatcher, lifecycle: None })
    }

    /// Calls the component's `lifecycle.start` within its deadline. Registrations that it made before a failure stay.
    pub(crate) async fn start_lifecycle(
        &mut self,
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
    ) -> Result<(), Failure> {
        self.lifecycle = LifecycleInstance::start(spec, engine, loaded, &self.context).await?;
        Ok(())
    }

    /// Opens and starts a revision beside the served one, and waits for its health check, if there is one. A component that
    /// registers itself is probed before its `lifecycle.start`, any other after it. A revision that fails is stopped; one whose
    /// service is drained meanwhile is dropped without `lifecycle.stop`, and the keys that it registered are deleted.
    pub(crate) async fn beside(
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        context: Arc<ServiceContext>,
        authority: &str,
    ) -> Result<Self, Failure> {
        let mut revision = Self::open(spec, engine, loaded, context)?;
        let begun = async {
            if spec.is_probed_before_start() {
                proven(&revision.dispatcher, spec, authority).await?;
                revision.start_lifecycle(spec, engine, loaded).await
            } else {
                revision.start_lifecycle(spec, engine, loaded).await?;
                proven(&revision.dispatcher, spec, authority).await
            }
        };
        match begun.await {
            Ok(()) => Ok(revision),
            Err(failure) => {
                revision.stop(spec).await;
                Err(failure)
            }
        }
    }

    /// Ends a replaced revision once its requests are answered, or `drain_timeout` has passed.
    pub(crate) async fn retire(mut self, spec: Spec) {
        self.context.replaced.cancel();
        self.context.registry.end_watches();
        let deadline = spec.limits.drain_timeout;
        if timeout(deadline, self.dispatcher.drained()).await.is_err() {
            tracing::warn!(service = %spec.name, "the former version still answers after {deadline:?}");
        }
        self.stop(&spec).await;
        tracing::info!(service = %spec.name, "the former version has ended");
    }

    /// Stops the component within its deadline. A second call does nothing.
    pub(crate) async fn stop(&mut self, spec: &Spec) {
        self.context.registry.end_watches();
        if let Some(lifecycle) = self.lifecycle.take() {
            lifecycle.stop(spec).await;
        }
        self.context.ended.cancel();
    }
}

/// Probes a revision that is not served yet until it passes, for as long as a start may take.
async fn proven(dispatcher: &Dispatcher, spec: &Spec, authority: &str) -> Result<(), Failure> {
    let Some(health) = &spec.health else { return Ok(()) };
    let until = Instant::now() + spec.limits.start_timeout;
    // The probes do not queue behind the requests of the former revision.
    let admission = Admission::new(1);
    loop {
        match probe::probe(dispatcher, &admission, Some(health), authority).await {
            Ok(()) => return Ok(()),
            Err(_) if Instant::now() < until => sleep(PROBE_PAUSE).await,
            Err(message) => {
                return Err(Failure::other(format!("{}: the new version's health check fails: {message}", spec.name)));
            }
        }
    }
}
