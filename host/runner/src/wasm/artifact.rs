//! The file of a component: its own, or one that is pulled from a registry first.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use leasehold_artifacts::{Error, Pulled};
use tokio::time::{sleep, timeout};

use crate::{
    config::{Artifact, Spec},
    error::{Failure, one_line},
    process::cache_folder,
    wasm::{component::Loaded, engine::Engine, initial_memory},
};

/// Longest duration of one pull.
const PULL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Time after which a pull is logged, and interval of further lines.
const FIRST_LOG: Duration = Duration::from_secs(1);
const REMIND: Duration = Duration::from_secs(10);

/// Loads the component of a service: pulled, if it is in a registry, checked against the limit of its memory, and compiled
/// in a child process if necessary.
pub(crate) async fn load(engine: &Engine, spec: &Spec) -> Result<Loaded, Failure> {
    let file = locate(spec).await?;
    initial_memory::check_aside(engine, spec, file.clone()).await?;
    let loaded = Loaded::load_aside(engine.clone(), file, spec.precompiled).await;
    loaded.map_err(|failure| named(spec, failure))
}

/// The file of a service's component.
pub(crate) async fn locate(spec: &Spec) -> Result<PathBuf, Failure> {
    match &spec.artifact {
        None => Ok(spec.component.clone()),
        // Boxed, so that a service with a file does not pay for it.
        Some(artifact) => Ok(Box::pin(pull(artifact)).await?.file),
    }
}

/// Names the reference in front of a failure that names a file in the cache.
pub(crate) fn named(spec: &Spec, failure: Failure) -> Failure {
    match &spec.artifact {
        Some(Artifact { reference, .. }) => failure.map(|sentence| format!("{reference}: {sentence}")),
        None => failure,
    }
}

/// Pulls a component, and logs the progress of a long pull.
pub(crate) async fn pull(artifact: &Artifact) -> Result<Pulled, Failure> {
    let Artifact { reference, artifacts, .. } = artifact;
    let artifacts = artifacts.as_ref().map_err(Failure::other)?;
    cache_folder::own(&cache_folder::path()?)?;
    let keys = artifact.read_keys().map_err(Failure::usage)?;
    let (begun, bytes, total) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(0));
    let note = |so_far, all| {
        bytes.store(so_far, Relaxed);
        total.store(all, Relaxed);
    };
    let progress = async {
        sleep(FIRST_LOG).await;
        loop {
            let megabytes = |bytes: &AtomicU64| bytes.load(Relaxed) as f64 / 1e6;
            tracing::info!("pulling {reference}: {:.1} of {:.1} MB", megabytes(&bytes), megabytes(&total));
            sleep(REMIND).await;
        }
    };
    let pulled = tokio::select! {
        pulled = timeout(PULL_TIMEOUT, artifacts.pull(reference, &keys, &note)) => pulled,
        never = progress => match never {},
    };
    let pulled = pulled.unwrap_or_else(|_| {
        let registry = reference.registry().to_owned();
        Err(Error::unavailable(registry, format!("the pull takes longer than {PULL_TIMEOUT:?}")))
    });
    let pulled = pulled.map_err(|error| {
        let text = reference.to_string();
        failure(&error)
            .map(|sentence| if sentence.starts_with(&text) { sentence } else { format!("{text}: {sentence}") })
    })?;
    if begun.elapsed() > FIRST_LOG {
        tracing::info!("pulled {reference} in {:.1?}", begun.elapsed());
    }
    Ok(pulled)
}

/// The failure of a command or a service whose artifact cannot be had.
pub(crate) fn failure(error: &Error) -> Failure {
    let sentence = one_line(&error.to_string());
    match error {
        Error::Invalid(_) | Error::Unusable(_) => Failure::usage(sentence),
        _ => Failure::other(sentence),
    }
}
