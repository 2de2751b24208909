//! `leasehold reload`: services of a running host go on with the present content of their component files.

use serde::Deserialize;

use super::{print, print_json};
use crate::{
    cli::ReloadArgs,
    commands::admin_client,
    error::{Failure, shown},
};

/// Outcome of one reload.
#[derive(Deserialize)]
struct Reloaded {
    service: String,
    listen: String,
    reloaded: bool,
    why: Option<String>,
}

/// Requests the reload, waits, and reports on stdout. A service that was not reloaded is a failure.
pub(crate) async fn reload(args: ReloadArgs) -> Result<(), Failure> {
    let path = args.name.as_deref().map_or_else(String::new, |name| format!("/{}", admin_client::part(name)));
    let answer = admin_client::post(&args.admin, &format!("/reload{path}")).await?;
    let all: Vec<Reloaded> = serde_json::from_value(answer.clone())
        .map_err(|_| Failure::other("the response of the host is of another version"))?;
    if args.json {
        print_json(&answer)?;
    } else {
        print(&all.iter().map(line).collect::<String>())?;
    }
    match all.iter().filter(|one| !one.reloaded).count() {
        0 => Ok(()),
        failed => Err(Failure::other(format!("{failed} of {} services are not reloaded", all.len()))),
    }
}

fn line(one: &Reloaded) -> String {
    let message = match &one.why {
        None => "is reloaded".to_owned(),
        Some(why) => format!("is not reloaded: {}", shown(why)),
    };
    format!("{} on {} {message}\n", one.service, one.listen)
}
