//! Arguments of the commands for authors of components.

use std::{path::PathBuf, str::FromStr};

use clap::{ArgGroup, Args, ValueEnum};
use leasehold::ServiceName;

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

/// A version of `leasehold:registry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContractVersion {
    #[value(name = "0.1")]
    V0_1,
    #[value(name = "0.2")]
    V0_2,
}

impl ContractVersion {
    /// The version as names of interfaces have it.
    pub(crate) fn full(self) -> &'static str {
        match self {
            Self::V0_1 => "0.1.0",
            Self::V0_2 => "0.2.0",
        }
    }
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("subject").args(["folder", "check", "package"]))]
pub(crate) struct WitArgs {
    /// Folder for the packages and a first world; without it the contract is printed
    #[arg(value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,

    /// Version of wasi:http, and of the packages that go with it
    #[arg(long, value_enum, value_name = "VERSION", default_value = "0.2")]
    pub(crate) http: HttpVersion,

    /// Version of the contract, leasehold:registry
    ///
    /// Version 0.2 has the asynchronous functions only with `--http 0.3`: compilers of 0.2 do not know such functions.
    #[arg(long, value_enum, value_name = "VERSION", default_value = "0.2", conflicts_with = "check")]
    pub(crate) contract: ContractVersion,

    /// Overwrite files that have other content
    #[arg(long, requires = "folder")]
    pub(crate) force: bool,

    /// Write the contract as one binary package instead, as `wkg` publishes it
    #[arg(long, value_name = "FILE", conflicts_with = "folder")]
    pub(crate) package: Option<PathBuf>,

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

/// A language that there is a template for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    Rust,
    Go,
    C,
    Js,
    Ts,
    Python,
}

#[derive(Args, Debug)]
pub(crate) struct NewArgs {
    /// Name of the service, and of the folder that is made
    #[arg(required_unless_present = "list")]
    pub(crate) name: Option<ProjectName>,

    /// Language of the component
    #[arg(long, value_enum, value_name = "LANGUAGE", required_unless_present = "list")]
    pub(crate) lang: Option<Language>,

    /// Version of wasi:http, where a language has templates for several; `--list` shows them
    #[arg(long, value_enum, value_name = "VERSION", requires = "lang")]
    pub(crate) http: Option<HttpVersion>,

    /// A service in gRPC instead, for rust alone
    #[arg(long, requires = "lang")]
    pub(crate) grpc: bool,

    /// List the languages, and what each needs
    #[arg(long, conflicts_with_all = ["name", "lang", "http", "grpc"])]
    pub(crate) list: bool,
}

/// Name of a service that is also a name in the package managers of all languages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProjectName(ServiceName);

impl ProjectName {
    /// Longest name: that of a label in DNS.
    const MAX: usize = 63;

    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for ProjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        if !starts || !text.chars().all(is_part) || text.ends_with('-') || text.len() > Self::MAX {
            return Err(format!(
                "must be lower-case letters, digits and hyphens, {} at most, and start with a letter",
                Self::MAX
            ));
        }
        text.parse().map(Self).map_err(|error| format!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::ProjectName;

    #[test]
    fn a_name_suits_every_package_manager() {
        for good in ["user", "user-2", "a"] {
            assert_eq!(good.parse::<ProjectName>().unwrap().as_str(), good);
        }
        for bad in ["", "User", "2user", "-user", "user-", "us er", "us/er", "..", "us_er", "é", &"a".repeat(64)] {
            assert!(bad.parse::<ProjectName>().is_err(), "{bad}");
        }
    }
}
