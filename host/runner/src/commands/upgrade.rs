//! `leasehold upgrade`: a new process of the binary takes a running host over.

use serde::Deserialize;

use crate::{
    cli::UpgradeArgs,
    commands::{
        admin_client::Endpoint,
        output::{print, print_json},
    },
    error::Failure,
};

#[derive(Deserialize)]
struct Upgraded {
    pid: u32,
}

/// Requests the upgrade, waits until the new process serves, and reports on stdout.
pub(crate) async fn upgrade(args: UpgradeArgs) -> Result<(), Failure> {
    let (Upgraded { pid }, answer) = Endpoint::of(&args.host).await?.post("/upgrade").await?;
    match args.json {
        true => print_json(&answer),
        false => print(&format!("process {pid} serves; the former one drains\n")),
    }
}
