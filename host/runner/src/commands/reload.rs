//! `leasehold reload`: a running host goes on with the present configuration and component files.

use serde::{Deserialize, Serialize};

use crate::{
    cli::ReloadArgs,
    commands::{
        admin_client::{Endpoint, command, part},
        output::{print, print_json},
    },
    config::{plan::Change, written::KeyChange},
    error::{Failure, shown},
};

/// Outcome of the reload of one service.
#[derive(Deserialize)]
struct Reloaded {
    service: String,
    listen: String,
    reloaded: bool,
    why: Option<String>,
}

/// Outcome of a reload of the configuration.
#[derive(Deserialize, Serialize)]
struct Reconfigured {
    dry_run: bool,
    services: Vec<ServiceChange>,
    needs_restart: Vec<KeyChange>,
}

#[derive(Deserialize, Serialize)]
struct ServiceChange {
    service: String,
    listen: String,
    change: Change,
    keys: Vec<KeyChange>,
    has_new_component: bool,
    is_drained: bool,
    why: Option<String>,
}

/// Requests the reload, waits, and reports on stdout. A service that does not go on as it should is a failure.
pub(crate) async fn reload(args: ReloadArgs) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        let path = format!("/reload/{}", part(name));
        let has_failed = |one: &Reloaded| !one.reloaded;
        return command(&args.host, &path, args.json, line, has_failed, "are not reloaded").await;
    }
    let path = if args.dry_run { "/reload?dry_run=true" } else { "/reload" };
    let (outcome, answer): (Reconfigured, _) = Endpoint::of(&args.host).await?.post(path).await?;
    match args.json {
        true => print_json(&answer)?,
        false => print(&outcome.lines())?,
    }
    match outcome.services.iter().filter(|service| service.why.is_some()).count() {
        0 => Ok(()),
        failed => Err(Failure::other(format!("{failed} of {} services are not as configured", outcome.services.len()))),
    }
}

fn line(one: &Reloaded) -> String {
    let message = match &one.why {
        None => "is reloaded".to_owned(),
        Some(why) => format!("is not reloaded: {}", shown(why)),
    };
    format!("{} on {} {message}\n", one.service, one.listen)
}

impl Reconfigured {
    /// The changes as a diff, what needs a restart, and how many services stay as they are.
    fn lines(&self) -> String {
        let mut text: String = self.services.iter().map(ServiceChange::lines).collect();
        if !self.needs_restart.is_empty() {
            text.push_str("with the next start of the host:\n");
            text.extend(self.needs_restart.iter().map(key_line));
        }
        let unchanged = self.services.iter().filter(|service| !service.is_news()).count();
        let (services, stay, are) = match unchanged {
            1 => ("service", "stays as it is", "is"),
            _ => ("services", "stay as they are", "are"),
        };
        let summary = match (self.dry_run, unchanged == self.services.len()) {
            (_, true) => format!("{unchanged} {services} {are} as configured\n"),
            (true, false) => format!("{unchanged} {services} {stay}; this was a dry run\n"),
            (false, false) => format!("{unchanged} {services} {stay}\n"),
        };
        text + &summary
    }
}

impl ServiceChange {
    fn is_news(&self) -> bool {
        self.change != Change::Unchanged || self.has_new_component || self.why.is_some()
    }

    fn lines(&self) -> String {
        if !self.is_news() {
            return String::new();
        }
        let sign = match self.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Unchanged | Change::Changed | Change::Moved => '~',
        };
        let mut text = format!("{sign} {} on {}", shown(&self.service), self.listen);
        if self.has_new_component {
            text.push_str(", new component");
        }
        if self.is_drained {
            text.push_str(", drained");
        }
        text.push('\n');
        text.extend(self.keys.iter().map(key_line));
        text.extend(self.why.iter().map(|why| format!("    failed: {}\n", shown(why))));
        text
    }
}

fn key_line(change: &KeyChange) -> String {
    let KeyChange { key, from, to, is_shown } = change;
    let value = |value: &Option<String>| value.as_deref().map_or_else(|| "absent".to_owned(), shown);
    match is_shown {
        true => format!("    {}: {} -> {}\n", shown(key), value(from), value(to)),
        false => format!("    {}: another value\n", shown(key)),
    }
}
