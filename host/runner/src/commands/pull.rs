//! `leasehold pull`: a component from a registry into the cache, and into a file.

use std::time::Duration;

use leasehold_artifacts::Former;
use serde::Serialize;

use super::{
    output::{print, print_json},
    progress::Progress,
};
use crate::{
    cli::PullArgs,
    config::Artifact,
    error::Failure,
    wasm::{artifact, cache},
};

/// Mode of an ordinary file, readable beyond its owner.
const MODE: u32 = 0o666;

#[derive(Serialize)]
struct Report {
    reference: String,
    /// Digest of the manifest, by which a reference names it for good.
    digest: String,
    /// File of the component.
    file: String,
    bytes: usize,
    /// Fingerprint of the key that has signed it, where one is needed.
    signer: Option<String>,
}

/// Pulls a component, and prints its digest.
pub(crate) async fn pull(args: PullArgs) -> Result<(), Failure> {
    let PullArgs { reference, output, verify, json, registry } = args;
    let artifacts = Ok(registry.artifacts(&reference)?);
    let progress = Progress::of(format!("pulling {reference}"));
    let artifact = Artifact { reference: reference.clone(), keys: verify, poll: Duration::ZERO, artifacts };
    let pulled = progress.during(artifact::pull(&artifact, Former::StandsIn)).await?;
    let cannot_read = |error| Failure::other(format!("cannot read {}: {error}", pulled.file.display()));
    let bytes = tokio::fs::read(&pulled.file).await.map_err(cannot_read)?;
    let file = match &output {
        Some(output) => {
            let written = cache::write_whole(output, &bytes, MODE);
            written.map_err(|error| Failure::other(format!("cannot write {}: {error}", output.display())))?;
            output
        }
        None => &pulled.file,
    };
    let report = Report {
        reference: reference.to_string(),
        digest: pulled.digest,
        file: file.display().to_string(),
        bytes: bytes.len(),
        signer: pulled.signer,
    };
    if json { print_json(&report) } else { print(&text(&report)) }
}

fn text(report: &Report) -> String {
    let Report { reference, digest, file, bytes, signer } = report;
    let signer = signer.as_ref().map(|signer| format!("signed by  {signer}\n")).unwrap_or_default();
    format!("reference  {reference}\ndigest     {digest}\nfile       {file} ({bytes} bytes)\n{signer}")
}
