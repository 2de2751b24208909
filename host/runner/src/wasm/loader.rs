//! Loading of all services' components at the start, independent of one another: no component waits for the compilation of
//! another.

use std::{collections::HashMap, panic::resume_unwind, path::PathBuf, sync::Arc, thread};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::{
    config::Spec,
    error::Failure,
    process::cpus,
    process::rlimit,
    wasm::{
        component::{Loaded, Lookup},
        engine::{Demand, Engine},
        scheduler::Scheduler,
    },
};

/// A component that is being loaded, shared by its services.
pub(crate) type PendingComponent = Shared<BoxFuture<'static, Result<Loaded, Arc<Failure>>>>;

/// The engine and the components while they are being loaded.
pub(crate) struct Loading {
    engine: oneshot::Receiver<Result<Engine, Failure>>,
    components: HashMap<File, PendingComponent>,
}

/// Path of a component, and true if it may be machine code.
type File = (PathBuf, bool);
/// Sender of one loaded component.
type Handover = oneshot::Sender<Result<Loaded, Failure>>;

impl Loading {
    /// Begins to load on a thread of its own.
    pub(crate) fn begin(specs: &[Spec], scheduler: Arc<Scheduler>, tasks: &TaskTracker) -> Self {
        let (mut components, mut files) = (HashMap::new(), Vec::new());
        // In the order of the services.
        // Those of registries are pulled by their services.
        for spec in specs.iter().filter(|spec| spec.artifact.is_none()) {
            let file = (spec.component.clone(), spec.precompiled);
            components.entry(file.clone()).or_insert_with(|| {
                let (handover, component) = oneshot::channel();
                files.push((file, handover));
                let failed = |_| Err(Failure::other("the component could not be loaded"));
                component.map(move |loaded| loaded.unwrap_or_else(failed).map_err(Arc::new)).boxed().shared()
            });
        }
        let (built, engine) = oneshot::channel();
        let (specs, aside) = (specs.to_vec(), tasks.clone());
        tasks.spawn_blocking(move || match build(&specs, scheduler) {
            Ok(engine) => {
                let _ = built.send(Ok(engine.clone())); // The process may be ending.
                load(&engine, files, &aside);
            }
            Err(failure) => drop(built.send(Err(failure))),
        });
        Self { engine, components }
    }

    /// Waits for the engine, while the components are being loaded.
    pub(crate) async fn engine(self) -> Result<(Engine, Components), Failure> {
        let failed = |_| Err(Failure::other("the component engine could not be started"));
        Ok((self.engine.await.unwrap_or_else(failed)?, Components(self.components)))
    }
}

/// The components that are being loaded.
pub(crate) struct Components(HashMap<File, PendingComponent>);

impl Components {
    /// The component of a service.
    pub(crate) fn of(&self, spec: &Spec) -> Option<PendingComponent> {
        self.0.get(&(spec.component.clone(), spec.precompiled)).cloned()
    }
}

fn build(specs: &[Spec], scheduler: Arc<Scheduler>) -> Result<Engine, Failure> {
    let engine = Engine::with_scheduler(specs, scheduler)?;
    if let Some(why) = &engine.unpooled {
        tracing::warn!("no pool can be reserved for instances, so each one reserves its memory by itself: {why}");
    }
    if let Some(lack) = rlimit::lacking(Demand::of(specs).files) {
        tracing::warn!("{lack}");
    }
    Ok(engine)
}

/// Loads each file that was compiled before, as many at a time as there are processors. The others are compiled in child
/// processes, the smallest first.
fn load(engine: &Engine, files: Vec<(File, Handover)>, tasks: &TaskTracker) {
    let threads = cpus::available().min(files.len());
    let files = Mutex::new(files.into_iter());
    let next = || files.lock().next();
    let work = || {
        let mut to_compile = Vec::new();
        while let Some(((path, precompiled), handover)) = next() {
            match Loaded::find(engine, &path, precompiled) {
                Ok(Lookup::NotCompiled(bytes)) => to_compile.push((bytes.len(), path, precompiled, handover)),
                Ok(Lookup::Loaded(loaded)) => hand_over(handover, Ok(loaded)),
                Err(failure) => hand_over(handover, Err(failure)),
            }
        }
        to_compile
    };
    let mut to_compile = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut to_compile = work();
        for other in others {
            to_compile.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        to_compile
    });
    to_compile.sort_unstable_by_key(|(bytes, ..)| *bytes);
    let engine = engine.clone();
    tasks.spawn(async move {
        let compile = |(_, path, precompiled, handover)| {
            let engine = engine.clone();
            async move { hand_over(handover, Loaded::load_aside(engine, path, precompiled).await) }
        };
        join_all(to_compile.into_iter().map(compile)).await;
        if let Some((compiled, cached)) = engine.compiled() {
            tracing::debug!(compiled, cached, "components are loaded");
        }
    });
}

fn hand_over(handover: Handover, loaded: Result<Loaded, Failure>) {
    drop(handover.send(loaded)); // Its services may have ended.
}
