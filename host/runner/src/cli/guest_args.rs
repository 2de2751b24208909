//! Arguments of the commands for authors of components.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

/// A version of `wasi:http`, with the WASI packages of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HttpVersion {
    #[value(name = "0.2")]
    P2,
    #[value(name = "0.3")]
    P3,
}

impl HttpVersion {
    /// The version without its patch number.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P2 => "0.2",
            Self::P3 => "0.3",
        }
    }
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("subject").args(["folder", "check"]))]
pub(crate) struct WitArgs {
    /// Folder for the packages and a first world; without it the contract is printed
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,

    /// Version of wasi:http, and of the packages that go with it
    #[arg(long, value_enum, value_name = "VERSION", default_value = "0.2")]
    pub(crate) http: HttpVersion,

    /// Overwrite files that have other content
    #[arg(long, requires = "folder")]
    pub(crate) force: bool,

    /// Compare a component with the host instead: the versions that it wants, and those that the host has
    #[arg(long, value_name = "FILE")]
    pub(crate) check: Option<PathBuf>,

    /// One JSON value
    #[arg(long, requires = "subject")]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ComponentizeArgs {
    /// A core module (.wasm)
    pub(crate) file: PathBuf,

    /// File for the component [default: beside it, as .component.wasm]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Folder of WIT, for a module without WIT in it
    #[arg(long, value_name = "DIR")]
    pub(crate) wit: Option<PathBuf>,

    /// The world of that folder, if it has several
    #[arg(long, value_name = "NAME", requires = "wit")]
    pub(crate) world: Option<String>,
}
