//! `leasehold drain`: one service of a running host ends, the others go on.

use serde::Deserialize;

use super::{print, print_json};
use crate::{
    cli::DrainArgs,
    commands::admin_client::{Endpoint, part},
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
pub(crate) async fn drain(args: DrainArgs) -> Result<(), Failure> {
    let path = format!("/drain/{}", part(&args.name));
    let (drained, answer): (Vec<Drained>, _) = Endpoint::of(&args.host).await?.post(&path).await?;
    if args.json {
        return print_json(&answer);
    }
    let lines: String = drained.iter().map(line).collect();
    print(&lines)
}

fn line(drained: &Drained) -> String {
    let keys = if drained.keys_gone { "" } else { "; its keys go with their lease" };
    let requests = if drained.all_answered { "" } else { "; requests were cut off" };
    format!("{} on {} is drained{keys}{requests}\n", drained.service, drained.listen)
}
