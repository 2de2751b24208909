//! Arguments of commands to a running host.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use leasehold::{Source, Tls, Weight};

use super::{argument::readable, tls_args::TlsArgs};
use crate::{config::EtcdFiles, error::Failure};

/// Arguments that select a running host.
#[derive(Args, Debug)]
#[command(next_help_heading = "The running host")]
pub(crate) struct AdminArgs {
    /// Its admin endpoint, as unix:PATH or a URL [default: the socket of the host that runs here]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    pub(crate) admin: Option<String>,

    /// Its configuration file, which names the endpoint and the token
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// A file with the token of commands over TCP [default: $LEASEHOLD_ADMIN_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    #[command(flatten)]
    tls: TlsArgs,
}

/// Environment variable with a file that has the token of commands.
const TOKEN_FILE: &str = "LEASEHOLD_ADMIN_TOKEN_FILE";

impl AdminArgs {
    /// The token of commands, where the arguments or the environment name its file.
    pub(crate) fn token(&self) -> Result<Option<Source>, Failure> {
        if let Some(file) = &self.token_file {
            return readable("--token-file", file).map(Some);
        }
        let file = std::env::var_os(TOKEN_FILE).filter(|file| !file.is_empty());
        file.map(|file| readable(TOKEN_FILE, Path::new(&file))).transpose()
    }

    /// Authorities, and the client's own certificate.
    pub(crate) fn tls(&self) -> Result<Tls, Failure> {
        let mut tls = Tls::default();
        self.tls.apply(&mut tls, &mut EtcdFiles::default())?;
        Ok(tls)
    }
}

/// A service to send a command to.
#[derive(Args, Debug)]
pub(crate) struct ServiceArgs {
    /// The service
    pub(crate) name: String,

    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct WeightArgs {
    /// The service
    pub(crate) name: String,

    /// The weight, 1 to 100; or auto
    pub(crate) weight: NewWeight,

    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}

/// A weight to set; `None` for the weight as configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewWeight(pub(crate) Option<Weight>);

impl FromStr for NewWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self(None));
        }
        let weight = text.parse::<u32>().ok().and_then(|weight| weight.try_into().ok());
        weight.map(|weight| Self(Some(weight))).ok_or_else(|| format!("must be 1 to 100, or auto, not {text:?}"))
    }
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Only this service
    pub(crate) name: Option<String>,

    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// One line alone, and exit code 1 unless the host is in this condition
    #[arg(long, value_name = "CONDITION", conflicts_with_all = ["name", "json"])]
    pub(crate) probe: Option<Probe>,

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}

/// A condition of a host, as probes of orchestrators check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probe {
    /// The process is sound: a restart would not help
    Live,
    /// Every service is being served, whatever the state of etcd
    Serving,
    /// Every service is being served, and its keys are in etcd
    Ready,
}

impl Probe {
    /// The page of the admin endpoint that responds with 200 in this condition.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Live => "/healthz",
            Self::Serving => "/readyz?etcd=optional",
            Self::Ready => "/readyz",
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// Only this service, from its component file; the configuration is not read again
    pub(crate) name: Option<String>,

    /// Show what would change, and change nothing
    #[arg(long, conflicts_with = "name")]
    pub(crate) dry_run: bool,

    /// One JSON object; with a name, one JSON array
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct UpgradeArgs {
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}
