//! One run of a program, in the order it is lived: started, listening, signalled, ended.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use wasmtime::Store;
use wasmtime_wasi::I32Exit;

use crate::{
    config::Spec,
    error::Failure,
    service::{health::probe, keys, lifecycle::LifecycleInstance},
    telemetry::service_metrics::Incident,
    wasm::{
        component::{Loaded, ProgramPre},
        context::{ProgramSignals, ServiceContext, StoreState},
        engine::Engine,
        error::cause,
    },
};

/// Pause between two attempts to connect to a program that is about to listen.
const KNOCK_PAUSE: Duration = Duration::from_millis(20);

/// A run that listens. Dropping it ends the program.
pub(crate) struct Run {
    context: Arc<ServiceContext>,
    /// The running program, until its end was noticed.
    running: Option<JoinHandle<String>>,
    signals: ProgramSignals,
    cut: Option<DropGuard>,
    lifecycle: Option<LifecycleInstance>,
}

impl Run {
    /// Runs the component until it listens, and then starts its `lifecycle`, each within its deadline. Registrations that it
    /// made before a failure stay.
    pub(crate) async fn start(
        spec: &Spec,
        engine: &Engine,
        loaded: &Loaded,
        pre: ProgramPre,
        context: Arc<ServiceContext>,
        tasks: &TaskTracker,
    ) -> Result<Self, Failure> {
        let (signals, cut) = (ProgramSignals::default(), CancellationToken::new());
        let store = engine.store(context.store_for_program(spec, &signals));
        let interrupt = Arc::clone(&store.data().usage.interrupt).exclusive();
        let running = interrupt.until(cut.clone().cancelled_owned(), run(store, pre, Arc::clone(&context)));
        let running = tasks.spawn(async move { running.await.unwrap_or_default() });
        let mut started =
            Self { context, running: Some(running), signals, cut: Some(cut.drop_guard()), lifecycle: None };

        let deadline = spec.limits.start_timeout;
        let listens = started.signals.listens.clone();
        let listening = async {
            listens.cancelled().await;
            while probe::probe_at(spec.reachable(), None, None).await.is_err() {
                sleep(KNOCK_PAUSE).await;
            }
        };
        let failed = |message: String| Failure::other(format!("{}: {message}", spec.name));
        tokio::select! {
            why = started.ended() => {
                let failure = failed(format!("it did not listen on {}: {why}", spec.listen));
                return Err(keys::explained(failure, &started.context.registry));
            }
            listening = timeout(deadline, listening) => listening
                .map_err(|_| failed(format!("it did not listen on {} within {deadline:?}", spec.listen)))?,
        }
        started.lifecycle = LifecycleInstance::start(spec, engine, loaded, &started.context).await?;
        Ok(started)
    }

    /// Waits for the end, and returns its reason. Dropped halfway, it may be called again.
    pub(crate) async fn ended(&mut self) -> String {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let message = running.await.unwrap_or_else(|_| "the host failed in it".to_owned());
        self.running = None;
        message
    }

    /// Signals the end to the program, gives it `drain_timeout`, and then ends it. Returns true if it ended by itself.
    ///
    /// May be called again if it was broken off.
    pub(crate) async fn stop(&mut self, spec: &Spec) -> bool {
        self.signals.end.cancel();
        self.context.registry.end_watches();
        let mut by_itself = true;
        if self.running.is_some() {
            let deadline = spec.limits.drain_timeout;
            if let Ok(why) = timeout(deadline, self.ended()).await {
                tracing::debug!(service = %spec.name, "{why}");
            } else {
                by_itself = false;
                tracing::warn!(service = %spec.name, "it did not end within {deadline:?}, and its connections were cut off");
                self.cut = None;
                self.ended().await;
            }
        }
        if let Some(lifecycle) = self.lifecycle.take() {
            lifecycle.stop(spec).await;
        }
        self.context.ended.cancel();
        by_itself
    }
}

/// Runs a component to its end, and returns the reason of that.
async fn run(mut store: Store<StoreState>, pre: ProgramPre, context: Arc<ServiceContext>) -> String {
    let outcome = match pre {
        ProgramPre::P2(pre) => match pre.instantiate_async(&mut store).await {
            Ok(command) => command.wasi_cli_run().call_run(&mut store).await,
            Err(error) => return format!("the component cannot be instantiated: {}", cause(&error)),
        },
        ProgramPre::P3(pre) => match pre.instantiate_async(&mut store).await {
            Ok(command) => {
                let running = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
                running.await.flatten()
            }
            Err(error) => return format!("the component cannot be instantiated: {}", cause(&error)),
        },
    };
    match outcome {
        Ok(Ok(())) => "the component returned".to_owned(),
        Ok(Err(())) => "the component returned with an error".to_owned(),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => format!("the component exited with {code}"),
            None => {
                context.stats().incident(Incident::Trap);
                format!("the component trapped: {}", store.data().cause(&error))
            }
        },
    }
}
