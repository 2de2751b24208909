//! `leasehold resume`: a drained service of a running host starts again.

use serde::Deserialize;

use super::{print, print_json};
use crate::{
    cli::ResumeArgs,
    commands::admin_client::{Endpoint, part},
    error::{Failure, shown},
};

/// Outcome for one service.
#[derive(Deserialize)]
struct Resumed {
    service: String,
    listen: String,
    resumed: bool,
    why: Option<String>,
}

/// Requests the start, waits, and reports on stdout. A service that does not start is a failure.
pub(crate) async fn resume(args: ResumeArgs) -> Result<(), Failure> {
    let path = format!("/resume/{}", part(&args.name));
    let (all, answer): (Vec<Resumed>, _) = Endpoint::of(&args.host).await?.post(&path).await?;
    if args.json {
        print_json(&answer)?;
    } else {
        print(&all.iter().map(line).collect::<String>())?;
    }
    match all.iter().filter(|one| !one.resumed).count() {
        0 => Ok(()),
        failed => Err(Failure::other(format!("{failed} of {} services do not start", all.len()))),
    }
}

fn line(one: &Resumed) -> String {
    let message = match &one.why {
        None => "is served again".to_owned(),
        Some(why) => format!("does not start, and is tried again: {}", shown(why)),
    };
    format!("{} on {} {message}\n", one.service, one.listen)
}
