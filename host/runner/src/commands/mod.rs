//! Commands beside `run`: some only read, some send a request to a running host.

pub(crate) mod admin_client;
mod check;
mod compile;
mod completions;
mod componentize;
mod dev;
mod doctor;
mod drain;
mod etcd_user;
mod explain;
mod filter;
pub(crate) mod init;
mod inspect;
mod keep;
mod ls;
mod man;
mod needs;
mod new;
mod node_row;
mod order;
mod progress;
mod pull;
mod push;
mod reload;
mod resume;
pub(crate) mod run;
mod schema;
mod shell;
mod status;
mod table;
mod terminal;
mod tls_client;
mod upgrade;
pub(crate) mod watch;
mod weight;
mod wit;

use std::io::{self, Write, stdout};

use serde::Serialize;

pub(crate) use check::check;
pub(crate) use compile::compile;
pub(crate) use completions::completions;
pub(crate) use componentize::componentize;
pub(crate) use dev::dev;
pub(crate) use doctor::doctor;
pub(crate) use drain::drain;
pub(crate) use etcd_user::etcd_user;
pub(crate) use explain::explain;
pub(crate) use init::init;
pub(crate) use inspect::inspect;
pub(crate) use keep::keep;
pub(crate) use ls::ls;
pub(crate) use man::man;
pub(crate) use new::new;
pub(crate) use pull::pull;
pub(crate) use push::push;
pub(crate) use reload::reload;
pub(crate) use resume::resume;
pub(crate) use run::run;
pub(crate) use schema::schema;
pub(crate) use status::status;
pub(crate) use upgrade::upgrade;
pub(crate) use weight::weight;
pub(crate) use wit::wit;

use crate::error::Failure;

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let written = stdout().lock().write_all(text.as_bytes()).and_then(|()| stdout().flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::other(format!("cannot write: {error}")))?;
    print(&format!("{text}\n"))
}
