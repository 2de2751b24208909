//! `leasehold drain`: one service of a running host ends, the others go on.

use serde::Deserialize;

use crate::{
    cli::ServiceArgs,
    commands::admin_client::{command, part},
    error::Failure,
};

/// Outcome of one drain.
#[derive(Deserialize)]
struct Drained {
    service: String,
    listen: String,
    keys_gone: bool,
    all_answered: bool,
}

/// Requests the drain, waits, and reports on stdout.
pub(crate) async fn drain(args: ServiceArgs) -> Result<(), Failure> {
    let path = format!("/drain/{}", part(&args.name));
    command(&args.host, &path, args.json, line, |_| false, "are not drained").await
}

fn line(drained: &Drained) -> String {
    let keys = if drained.keys_gone { "" } else { "; its keys go with their lease" };
    let requests = if drained.all_answered { "" } else { "; requests were cut off" };
    format!("{} on {} is drained{keys}{requests}\n", drained.service, drained.listen)
}
