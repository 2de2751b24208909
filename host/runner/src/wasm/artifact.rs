//! The file of a component, which is pulled first if the component is in a registry.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use leasehold_artifacts::{Error, Pulled};
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
pub(crate) async fn load(engine: &Engine, spec: &Spec) -> Result<Loaded, Failure> {
    load_from(engine, spec, locate(spec).await?).await
}

/// Loads the component that is to follow the served one: a registry that does not answer is a failure.
pub(crate) async fn load_next(engine: &Engine, spec: &Spec) -> Result<Loaded, Failure> {
    load_from(engine, spec, locate_now(spec).await?).await
}

async fn load_from(engine: &Engine, spec: &Spec, located: Located) -> Result<Loaded, Failure> {
    let (file, manifest) = located;
    initial_memory::check_aside(engine, spec, file.clone()).await?;
    let loaded = Loaded::load_aside(engine.clone(), file, spec.precompiled).await;
    loaded.map(|loaded| Loaded { manifest, ..loaded }).map_err(|failure| named(spec, failure))
}

/// The file of a component, and the digest of its manifest if it is from a registry.
type Located = (PathBuf, Option<Arc<str>>);

/// The file of a service's component.
pub(crate) async fn locate(spec: &Spec) -> Result<Located, Failure> {
    locate_by(spec, true).await
}

/// The file of the component to which the reference of a service leads now.
pub(crate) async fn locate_now(spec: &Spec) -> Result<Located, Failure> {
    locate_by(spec, false).await
}

async fn locate_by(spec: &Spec, may_be_former: bool) -> Result<Located, Failure> {
    match &spec.artifact {
        None => Ok((spec.component.clone(), None)),
        Some(artifact) => {
            // Boxed, so that a service with a file does not pay for it.
            let Pulled { file, digest, .. } = Box::pin(pull(artifact, may_be_former)).await?;
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

/// Pulls a component, and logs the progress of a long pull. While the registry does not answer, that of the former pull of the
/// reference takes its place if it `may_be_former`.
pub(crate) async fn pull(artifact: &Artifact, may_be_former: bool) -> Result<Pulled, Failure> {
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
    let pulling = async {
        match may_be_former {
            true => artifacts.pull(reference, &keys, &note).await,
            false => artifacts.pull_anew(reference, &keys, &note).await,
        }
    };
    let pulled = tokio::select! {
        pulled = pulling => pulled,
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
