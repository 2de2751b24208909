//! The file of a component, which is pulled first if the component is in a registry.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use leasehold_artifacts::{Error, Former, Pulled};
use tokio::time::sleep;

use crate::{
    config::{Artifact, Spec},
    error::{Failure, one_line},
    process::cache_folder,
    wasm::{component::Loaded, engine::Engine, initial_memory},
};

/// Time after which a pull is logged, and interval of further lines.
const FIRST_LOG: Duration = Duration::from_secs(1);
const REMIND: Duration = Duration::from_secs(10);

/// Loads the component of a service: pulled, if it is in a registry, checked against the limit of its memory, and compiled
/// in a child process if necessary.
pub(crate) async fn load(engine: &Engine, spec: &Spec, former: Former) -> Result<Loaded, Failure> {
    let (file, manifest) = locate(spec, former).await?;
    initial_memory::check_aside(engine, spec, file.clone()).await?;
    let loaded = Loaded::load_aside(engine.clone(), file, spec.precompiled).await;
    loaded.map(|loaded| Loaded { manifest, ..loaded }).map_err(|failure| named(spec, failure))
}

/// The file of a service's component, and the digest of its manifest if it is from a registry.
pub(crate) async fn locate(spec: &Spec, former: Former) -> Result<(PathBuf, Option<Arc<str>>), Failure> {
    match &spec.artifact {
        None => Ok((spec.component.clone(), None)),
        Some(artifact) => {
            // Boxed, so that a service with a file does not pay for it.
            let Pulled { file, digest, .. } = Box::pin(pull(artifact, former)).await?;
            Ok((file, Some(digest.into())))
        }
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
pub(crate) async fn pull(artifact: &Artifact, former: Former) -> Result<Pulled, Failure> {
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
        pulled = artifacts.pull(reference, &keys, former, &note) => pulled,
        never = progress => match never {},
    };
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
        Error::Invalid(_) => Failure::usage(sentence),
        _ => Failure::other(sentence),
    }
}
