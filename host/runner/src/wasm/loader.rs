//! The components of all services, read and compiled beside everything else that a start takes.

use std::{
    collections::{BTreeSet, HashMap},
    panic::resume_unwind,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::{
    config::Spec,
    error::Failure,
    process::cpus,
    process::rlimit,
    wasm::{
        component::Loaded,
        engine::{Demand, Engine},
        scheduler::Turns,
    },
};

/// What a service is made of.
pub(crate) type Prepared = (Spec, Loaded, Engine);

/// The work that is under way.
pub(crate) struct Loading(JoinHandle<Result<Vec<Prepared>, Failure>>);

impl Loading {
    /// Begins it, on a thread of its own.
    pub(crate) fn begin(specs: &[Spec], turns: Arc<Turns>, tasks: &TaskTracker) -> Self {
        let specs = specs.to_vec();
        Self(tasks.spawn_blocking(move || load(&specs, turns)))
    }

    /// Waits for all of it, in the order of the services. Of several failures one is told.
    pub(crate) async fn end(self) -> Result<Vec<Prepared>, Failure> {
        self.0.await.context("the components could not be loaded")?
    }
}

fn load(specs: &[Spec], turns: Arc<Turns>) -> Result<Vec<Prepared>, Failure> {
    let engine = Engine::taking_turns(specs, turns)?;
    if let Some(why) = &engine.unpooled {
        tracing::warn!("no pool can be reserved for instances, so each one reserves its memory by itself: {why}");
    }
    if let Some(lack) = rlimit::lacking(Demand::of(specs).files) {
        tracing::warn!("{lack}");
    }
    let files: BTreeSet<File<'_>> = specs.iter().map(|spec| (&*spec.component, spec.precompiled)).collect();
    let files: Vec<_> = files.into_iter().collect();
    let loaded = load_files(&engine, &files)?;
    if let Some((compiled, cached)) = engine.compiled() {
        tracing::debug!(compiled, cached, "components are loaded");
    }
    let prepared = specs.iter().map(|spec| {
        let loaded = loaded[&(&*spec.component, spec.precompiled)].clone();
        loaded.check(spec)?;
        Ok((spec.clone(), loaded, engine.clone()))
    });
    prepared.collect()
}

/// A component's file, and whether it may be machine code.
type File<'a> = (&'a Path, bool);

/// Loads each file, as many at a time as there are processors.
fn load_files<'a>(engine: &Engine, files: &[File<'a>]) -> Result<HashMap<File<'a>, Loaded>, Failure> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<_>, Failure> {
        let mut loaded = Vec::new();
        while let Some(&(path, precompiled)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let component = Loaded::load(engine, path, precompiled);
            // After a failure nobody needs what is left.
            let component = component.inspect_err(|_| next.store(files.len(), Ordering::Relaxed))?;
            loaded.push(((path, precompiled), component));
        }
        Ok(loaded)
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..cpus::available().min(files.len())).map(|_| scope.spawn(work)).collect();
        let mut loaded: HashMap<_, _> = work()?.into_iter().collect();
        for other in others {
            loaded.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(loaded)
    })
}
