//! `leasehold push`: a component into a registry.

use std::time::Duration;

use leasehold_artifacts::World;
use serde_json::json;
use tokio::time::timeout;

use super::{
    output::{print, print_json},
    progress::Progress,
};
use crate::{
    cli::PushArgs,
    error::Failure,
    wasm::{artifact, component, engine::Engine},
};

/// Longest duration of a push.
const PUSH_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Pushes a component, and prints the digest by which it can be referred to for good.
pub(crate) async fn push(args: PushArgs) -> Result<(), Failure> {
    let PushArgs { file, reference, json, registry } = args;
    let artifacts = registry.artifacts(&reference)?;
    // Refused before anything is sent: what is no component, and machine code.
    let info = component::inspect(&Engine::new(&[])?, &file)?;
    let bytes = tokio::fs::read(&file).await;
    let bytes = bytes.map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    let world = World { imports: info.imports, exports: info.exports };
    let progress = Progress::of(format!("pushing {}", file.display()));
    let pushed = progress.during(timeout(PUSH_TIMEOUT, artifacts.push(&reference, bytes, &world))).await;
    let pushed =
        pushed.map_err(|_| Failure::other(format!("{reference}: the push takes longer than {PUSH_TIMEOUT:?}")))?;
    let digest = pushed.map_err(|error| artifact::failure(&error))?.digest;
    let (reference, by_digest) = (reference.to_string(), reference.at_digest(&digest));
    match json {
        true => print_json(&json!({ "reference": reference, "digest": digest, "by_digest": by_digest })),
        false => print(&format!("reference  {reference}\ndigest     {digest}\nfor good   {by_digest}\n")),
    }
}
