//! `leasehold man`: one man page for the program and one for each command.

use std::fs;

use clap::CommandFactory;

use crate::{
    cli::{Cli, ManArgs},
    error::Failure,
};

/// Writes `leasehold.1` and `leasehold-COMMAND.1` into the folder.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let written =
        fs::create_dir_all(&args.folder).and_then(|()| clap_mangen::generate_to(Cli::command(), &args.folder));
    written.map_err(|error| Failure::other(format!("cannot write man pages to {}: {error}", args.folder.display())))
}
