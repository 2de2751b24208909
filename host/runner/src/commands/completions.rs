//! `leasehold completions`: a completion script for a shell, on stdout.

use clap::CommandFactory;

use super::output::print;
use crate::{
    cli::{Cli, CompletionsArgs},
    error::Failure,
};

/// Prints the completion script.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "leasehold", &mut script);
    print(&String::from_utf8_lossy(&script))
}
