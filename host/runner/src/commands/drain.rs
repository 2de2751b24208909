//! `leasehold drain`: one service of a running host ends, the others go on.

use serde::Deserialize;

use super::{print, print_json};
use crate::{cli::DrainArgs, commands::admin_client, error::Failure};

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
    let answer = admin_client::post(&args.admin, &format!("/drain/{}", admin_client::part(&args.name))).await?;
    if args.json {
        return print_json(&answer);
    }
    let drained: Vec<Drained> =
        serde_json::from_value(answer).map_err(|_| Failure::other("the response of the host is of another version"))?;
    let lines: String = drained.iter().map(line).collect();
    print(&lines)
}

fn line(drained: &Drained) -> String {
    let keys = if drained.keys_gone { "" } else { "; its keys go with their lease" };
    let requests = if drained.all_answered { "" } else { "; requests were cut off" };
    format!("{} on {} is drained{keys}{requests}\n", drained.service, drained.listen)
}
