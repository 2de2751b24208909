//! `leasehold reload`: services of a running host go on with the present content of their component files.

use serde::Deserialize;

use crate::{
    cli::ReloadArgs,
    commands::admin_client::{command, part},
    error::{Failure, shown},
};

/// Outcome of one reload.
#[derive(Deserialize)]
struct Reloaded {
    service: String,
    listen: String,
    phase: String,
    reloaded: bool,
    why: Option<String>,
}

impl Reloaded {
    /// Returns true if the service is drained, and so stays as it is.
    fn is_drained(&self) -> bool {
        matches!(&*self.phase, "draining" | "drained")
    }
}

/// Requests the reload, waits, and reports on stdout. A service that was not reloaded is a failure, unless it is drained and
/// was not named.
pub(crate) async fn reload(args: ReloadArgs) -> Result<(), Failure> {
    let path = args.name.as_deref().map_or_else(String::new, |name| format!("/{}", part(name)));
    let has_failed = |one: &Reloaded| !one.reloaded && (args.name.is_some() || !one.is_drained());
    command(&args.host, &format!("/reload{path}"), args.json, line, has_failed, "are not reloaded").await
}

fn line(one: &Reloaded) -> String {
    let message = match &one.why {
        None => "is reloaded".to_owned(),
        Some(why) => format!("is not reloaded: {}", shown(why)),
    };
    format!("{} on {} {message}\n", one.service, one.listen)
}
