//! The keys of one service in etcd: each step with a deadline, and a line in the log where a key may stay.

use leasehold::{Error, ServerNode};
use leasehold_wasmtime::RegistryCtx;
use tokio::time::{error::Elapsed, timeout};

use crate::{
    config::{DELETE_TIMEOUT, Register, Spec},
    connect,
    error::Failure,
};

/// Registers a node on behalf of a component that does not register itself.
pub(super) async fn register(spec: &Spec, node: Option<ServerNode>, registry: &RegistryCtx) -> Result<(), Failure> {
    let failed = |message: String| Failure::other(format!("{}: {message}", spec.name));
    let node = node.ok_or_else(|| failed("there is no address to publish".to_owned()))?;
    let deadline = spec.limits.start_timeout;
    match timeout(deadline, registry.register_node(node)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) if registry.refused().is_some() => {
            Err(explained(failed("cannot be registered".to_owned()), registry))
        }
        Ok(Err(error)) => Err(failed(format!("cannot be registered: {error}"))),
        Err(_) => Err(failed(format!("could not be registered within {deadline:?}"))),
    }
}

/// Failure of a start, with the cure where etcd has refused a key: a component knows that in general words only.
pub(super) fn explained(failure: Failure, registry: &RegistryCtx) -> Failure {
    match registry.refused().and_then(|(key, why)| Some((why.refusal()?, key, why))) {
        Some((refusal, key, why)) => {
            let cure = refusal.cure("readwrite", Some(connect::folder(&key)));
            Failure::refused(format!("{}: etcd: {why}; {cure}", failure.sentence()))
        }
        None => failure,
    }
}

/// Takes the keys out of etcd until they are restored.
pub(super) async fn withdraw(spec: &Spec, registry: &RegistryCtx) {
    let withdrawn = timeout(DELETE_TIMEOUT, registry.withdraw()).await;
    confirmed(spec, withdrawn, "for a while");
}

/// Brings back the keys that were withdrawn, or registers for the first time. The error is a sentence for the log.
pub(super) async fn restore(spec: &Spec, node: Option<ServerNode>, registry: &RegistryCtx) -> Result<(), String> {
    let deadline = spec.limits.start_timeout;
    let restored = async {
        registry.restore().await.map_err(|error| error.to_string())?;
        match spec.register == Register::Host && registry.registrations().is_empty() {
            true => register(spec, node, registry).await.map_err(|failure| failure.sentence()),
            false => Ok(()),
        }
    };
    let restored = timeout(deadline, restored).await;
    restored.unwrap_or_else(|_| Err(format!("etcd does not answer within {deadline:?}")))
}

/// Deletes the keys of former revisions that this one did not register.
pub(super) async fn take_over(spec: &Spec, registry: &RegistryCtx) {
    if !matches!(timeout(DELETE_TIMEOUT, registry.take_over()).await, Ok(Ok(()))) {
        tracing::warn!(service = %spec.name, "a key of the former version may stay for a while");
    }
}

/// Undoes the registrations of a revision that is not served.
pub(super) async fn give_back(spec: &Spec, registry: &RegistryCtx, former: &RegistryCtx) {
    let undone = timeout(DELETE_TIMEOUT, registry.give_back(former)).await;
    if !matches!(undone, Ok(Ok(()))) {
        tracing::warn!(service = %spec.name, "a key of the new version may stay for a while");
    }
    if former.is_withdrawn() {
        // The keys that the new revision had brought back are withdrawn again.
        drop(timeout(DELETE_TIMEOUT, former.withdraw()).await);
    }
}

/// Deletes all keys, for good. Returns true if etcd confirmed that.
pub(super) async fn delete(spec: &Spec, registry: &RegistryCtx) -> bool {
    let deleted = timeout(DELETE_TIMEOUT, registry.stop_all()).await;
    confirmed(spec, deleted, "until its lease ends")
}

fn confirmed(spec: &Spec, outcome: Result<Result<(), Error>, Elapsed>, stays: &str) -> bool {
    match outcome {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::warn!(service = %spec.name, "a key may stay {stays}: {error}"),
        Err(_) => tracing::warn!(service = %spec.name, "a key may stay {stays}: etcd does not answer"),
    }
    false
}
