//! Help, the version, and usage errors: the command lines that run nothing.

use std::{
    env,
    io::{Write, stderr},
    process::ExitCode,
};

use clap::{CommandFactory, error::ErrorKind};

use crate::{
    cli::Cli,
    error::Failure,
    telemetry::log::{self, LogFormat},
};

/// Prints help, the version, or the error of the arguments.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Stdout may be closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let commands = Cli::command();
    let names: Vec<_> = commands.get_subcommands().filter(|one| !one.is_hide_set()).map(|one| one.get_name()).collect();
    let given: Vec<_> = env::args().skip(1).collect();
    if let [.., help, option] = &*given
        && help == "help"
        && ["-h", "--help"].contains(&option.as_str())
    {
        // clap has no help of its help. Stdout may be closed.
        let _ = Cli::command().print_long_help();
        return ExitCode::SUCCESS;
    }
    let text = match error.kind() {
        // clap would show all of its help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("a command is missing: {}", names.join(", "))
        }
        _ => error.to_string(),
    };
    let message = text.split("\n\nUsage:").next().unwrap_or_default().trim_start_matches("error: ");
    let message = message.split("\n\nFor more").next().unwrap_or_default();
    let of_command = given.iter().find(|word| names.contains(&word.as_str()));
    let of_command = of_command.map_or_else(String::new, |name| format!("{name} "));
    let failure = Failure::usage(format!("{message}; see leasehold {of_command}--help"));
    // Stderr may be closed.
    let _ = stderr().write_all(log::last_words(&failure, LogFormat::Text, true).as_bytes());
    ExitCode::from(failure.code())
}
