//! `leasehold resume`: a drained service of a running host starts again.

use serde::Deserialize;

use crate::{
    cli::ServiceArgs,
    commands::admin_client::{command, part},
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
pub(crate) async fn resume(args: ServiceArgs) -> Result<(), Failure> {
    let path = format!("/resume/{}", part(&args.name));
    command(&args.host, &path, args.json, line, |one| !one.resumed, "do not start").await
}

fn line(one: &Resumed) -> String {
    let message = match &one.why {
        None => "is served again".to_owned(),
        Some(why) => format!("does not start, and is tried again: {}", shown(why)),
    };
    format!("{} on {} {message}\n", one.service, one.listen)
}
