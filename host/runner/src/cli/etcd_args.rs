//! Arguments that select an etcd, with the environment behind them.

use std::path::{Path, PathBuf};

use clap::Args;
use leasehold::{Credentials, Layout, Options, Source};

use super::{
    argument::{parse, readable, wrong},
    tls_args::TlsArgs,
};
use crate::{
    config::{Config, EtcdFiles, connection},
    error::Failure,
    process::dev_host::DevHost,
};

/// Arguments that select an etcd and layouts.
#[derive(Args, Debug, Clone)]
pub(crate) struct EtcdArgs {
    /// Layout of keys and values; repeat it for several [default: seed, or all of --config]
    #[arg(long)]
    layout: Vec<String>,

    /// The prefix of the keys, where it is not the usual one of the layout
    #[arg(long, conflicts_with = "config")]
    prefix: Option<String>,

    /// Take etcd's endpoints, user, TLS and the layouts from this configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    connection: ConnectionArgs,
}

/// The connection to etcd; it wins over a configuration file.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Connection to etcd")]
pub(crate) struct ConnectionArgs {
    /// An endpoint, as host:port or URL; repeat it for each member [default: $LEASEHOLD_ETCD]
    #[arg(long, value_name = "ENDPOINT", value_delimiter = ',')]
    etcd: Vec<String>,

    #[command(flatten)]
    tls: TlsArgs,

    /// The user; the password comes from a file, or from $LEASEHOLD_ETCD_PASSWORD
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// A file with the password of that user
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// Options of the registrar.
    pub(crate) fn registrar(&self) -> Result<Options, Failure> {
        self.examined().map(|(options, _)| options)
    }

    /// Replaces the connection by what the arguments say of it.
    pub(super) fn connect(&self, options: &mut Options) -> Result<(), Failure> {
        self.connection.apply(options, &mut EtcdFiles::default())
    }

    /// The configuration file, if the arguments name one.
    pub(crate) fn config(&self) -> Result<Option<Config>, Failure> {
        self.config.as_deref().map(|file| self.connection.load(file)).transpose()
    }

    /// Returns true if the arguments name no user.
    pub(crate) fn has_no_user(&self) -> bool {
        self.connection.user.is_none()
    }

    /// Options of the etcd to examine, and the files that they were read from.
    pub(crate) fn examined(&self) -> Result<(Options, EtcdFiles), Failure> {
        if let Some(file) = &self.config {
            let mut config = self.connection.load(file)?;
            self.choose_layouts(&mut config.registrar)?;
            return Ok((config.registrar, config.etcd_files));
        }
        let (mut options, files) = self.connection.options()?;
        if let Some(host) = self.connection.dev_host()? {
            look_into(&host, &mut options);
        }
        self.choose_layouts(&mut options)?;
        if let Some(prefix) = &self.prefix {
            let moved = options.layouts.iter().map(|layout| layout.with_prefix(prefix));
            options.layouts = moved.collect::<Result<_, _>>().map_err(|error| wrong("--prefix", error))?;
        }
        Layout::check_together(&options.layouts).map_err(|error| wrong("--layout", error))?;
        Ok((options, files))
    }

    /// Restricts the layouts to those of `--layout`, each as the configuration has it if it does.
    fn choose_layouts(&self, options: &mut Options) -> Result<(), Failure> {
        if self.layout.is_empty() {
            return Ok(());
        }
        let known = options.read_layouts();
        let chosen = |name: &String| {
            let configured: Vec<_> = known.iter().filter(|layout| layout.to_string() == *name).cloned().collect();
            if configured.is_empty() { Ok(vec![parse("--layout", name)?]) } else { Ok(configured) }
        };
        let chosen: Result<Vec<Vec<Layout>>, Failure> = self.layout.iter().map(chosen).collect();
        options.layouts = chosen?.concat();
        options.also_read.clear();
        Ok(())
    }
}

/// Replaces the endpoint and the layouts by those of a running `run --dev`.
fn look_into(host: &DevHost, options: &mut Options) {
    tracing::info!("using the private etcd of leasehold run --dev, process {}, at {}", host.pid, host.endpoint);
    options.endpoints = vec![host.endpoint.clone()];
    match host.file.as_deref().map(Config::load) {
        None => {}
        Some(Ok(config)) => {
            options.layouts = config.registrar.layouts;
            options.also_read = config.registrar.also_read;
        }
        Some(Err(failure)) => tracing::warn!("the layouts of that host are unknown: {}", failure.sentence()),
    }
}

/// Environment variables with the password of `--user`; the first that is set counts.
const PASSWORDS: [&str; 2] = ["LEASEHOLD_ETCD_PASSWORD", "ETCDCTL_PASSWORD"];

impl ConnectionArgs {
    /// A configuration file whose connection is replaced by what the arguments say.
    pub(crate) fn load(&self, file: &Path) -> Result<Config, Failure> {
        self.applied(Config::load(file)?)
    }

    /// The same, and components that cannot be read are mistakes.
    pub(crate) fn load_with_components(&self, file: &Path) -> Result<Config, Failure> {
        self.applied(Config::load_with_components(file)?)
    }

    fn applied(&self, mut config: Config) -> Result<Config, Failure> {
        self.apply(&mut config.registrar, &mut config.etcd_files)?;
        Ok(config)
    }

    /// The connection that the arguments and the environment say.
    pub(super) fn options(&self) -> Result<(Options, EtcdFiles), Failure> {
        let endpoints = match self.etcd.is_empty() {
            true => {
                connection::endpoints(|name| std::env::var(name).ok(), self.tls.is_given()).map_err(Failure::usage)?
            }
            false => Vec::new(),
        };
        let (mut options, mut files) = (Options::new(endpoints), EtcdFiles::default());
        self.apply(&mut options, &mut files)?;
        Ok((options, files))
    }

    /// The latest running `run --dev` of this user, unless the arguments or the environment say where etcd is.
    fn dev_host(&self) -> Result<Option<DevHost>, Failure> {
        let named = connection::named(|name| std::env::var(name).ok(), self.tls.is_given()).map_err(Failure::usage)?;
        let is_elsewhere = !self.etcd.is_empty() || named.is_some() || self.tls.is_given() || self.user.is_some();
        let mut running = if is_elsewhere { Vec::new() } else { DevHost::running() }.into_iter();
        let latest = running.next();
        if let Some(other) = running.next() {
            tracing::warn!("several run --dev are running; --etcd {} selects another one", other.endpoint);
        }
        Ok(latest)
    }

    fn apply(&self, options: &mut Options, files: &mut EtcdFiles) -> Result<(), Failure> {
        self.tls.apply(&mut options.tls, files)?;
        if !self.etcd.is_empty() {
            let has_tls = options.tls.ca_pem.is_some() || options.tls.identity_pem.is_some();
            let endpoints = self.etcd.iter().map(|text| connection::endpoint(text, has_tls));
            options.endpoints = endpoints.collect::<Result<_, _>>().map_err(|message| wrong("--etcd", message))?;
        }
        if let Some(plain) = options.endpoints.iter().find(|url| self.tls.is_given() && url.starts_with("http://")) {
            return Err(Failure::usage(format!(
                "{plain} is plain text, and the certificates are for https://; say so in --etcd"
            )));
        }
        if let Some(user) = &self.user {
            options.credentials = Some(Credentials { user: user.clone(), password: self.password(user)? });
        }
        Ok(())
    }

    fn password(&self, user: &str) -> Result<Source, Failure> {
        if user.contains(':') {
            // Not repeated: it may hold a password.
            return Err(Failure::usage(
                "--user: must be a name alone, as other users of this machine can read arguments; the password goes to \
                 --password-file or LEASEHOLD_ETCD_PASSWORD",
            ));
        }
        if let Some(file) = &self.password_file {
            return readable("--password-file", file);
        }
        let password = PASSWORDS.iter().find_map(|name| std::env::var(name).ok());
        password.map(Source::from).ok_or_else(|| {
            Failure::usage("--user: needs --password-file, or LEASEHOLD_ETCD_PASSWORD in the environment")
        })
    }
}
