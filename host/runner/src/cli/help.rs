//! Help, the version, and usage errors: the command lines that run nothing.

use std::{
    io::{Write, stderr},
    process::ExitCode,
};

use clap::error::ErrorKind;

use crate::{
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
    let text = match error.kind() {
        // clap would show all of its help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "a command is missing: run, ls, watch, doctor, check, explain, inspect, compile, new, wit, componentize, status, \
             drain, resume, weight or reload"
                .to_owned()
        }
        _ => error.to_string(),
    };
    let message = text.split("\n\nUsage:").next().unwrap_or_default().trim_start_matches("error: ");
    let message = message.split("\n\nFor more").next().unwrap_or_default();
    let failure = Failure::usage(format!("{message}; see leasehold --help"));
    // Stderr may be closed.
    let _ = stderr().write_all(log::last_words(&failure, LogFormat::Text, true).as_bytes());
    ExitCode::from(failure.code())
}
