//! The command line and its help.

pub(crate) mod help;
pub(crate) mod lease_state;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use leasehold::{Credentials, Layout, Options, ServiceName, Source, Tls, Version, Weight};

use self::lease_state::LeaseState;
use crate::{
    config::{
        Config, EtcdFiles, Logged, Register, Spec, Variables, connection,
        units::Span,
        values::{Advertise, Listen},
    },
    error::Failure,
    process::dev_host::DevHost,
    telemetry::log::LogArgs,
    wasm::compiler,
};

const EXAMPLES: &str = "\
Examples:
  leasehold run --dev greeter.yaml      try it: a private etcd, gone with the host
  leasehold run greeter.yaml            every service of the file, until SIGTERM or Ctrl-C
  leasehold init                        write a first configuration file, with comments
  leasehold ls greeter                  who is registered under that name
  leasehold watch                       the same, live
  leasehold doctor                      problems of the registry in etcd, with their cures
  leasehold etcd-user host-a --config greeter.yaml   the user and the role that it needs in etcd
  leasehold check greeter.yaml          would it run? starts nothing
  leasehold explain greeter.yaml        the keys and values it would write
  leasehold inspect greeter.wasm        what a component imports, exports and lacks
  leasehold compile greeter.wasm        machine code, for a start without a compiler
  leasehold status                      what a running host runs, and why something is not ready
  leasehold drain greeter               take one service of a running host out, in order
  leasehold resume greeter              bring it back, with the present content of its component file
  leasehold weight greeter 10           fewer requests for it; auto for the weight as configured
  leasehold reload greeter              replace it by the present content of its component file

Exit codes:
  0   clean
  64  bad configuration, arguments or component file
  69  etcd is unavailable although it is required
  77  etcd refuses the user, the password, the certificate or a key
  1   anything else
  130 a second Ctrl-C, which does not wait

RUST_LOG filters the log in the usual way, for example RUST_LOG=leasehold=debug.";

const RUN_EXAMPLES: &str = "\
Examples:
  leasehold run --dev greeter.yaml
  leasehold run greeter.wasm --name greeter --listen 127.0.0.1:8080 --etcd http://127.0.0.1:2379
  leasehold run hello.wasm --name hello --listen 0.0.0.0:8080 --advertise 10.0.0.7:8080 --register host
  leasehold run cache.wasm --name cache --listen 127.0.0.1:6379 --register host -- 127.0.0.1:6379

A configuration file (every key: docs/configuration.md, or an editor with `leasehold schema`):
  etcd: { endpoints: [http://127.0.0.1:2379] }
  registry: { layout: seed, ttl: 10s, ownership: take-over }    # layouts: leasehold explain --help
  metrics: { listen: 127.0.0.1:9100 }    # /healthz, /readyz and /metrics; commands such as drain use a socket
  traces: { endpoint: http://127.0.0.1:4317, sample: 0.1 }      # OpenTelemetry; see docs/traces.md
  services:
    - name: greeter
      component: greeter.wasm            # relative to this file
      listen: 127.0.0.1:10002            # HTTP/1.1 and HTTP/2 (h2c) on one port; or the listener of a program
      advertise: 127.0.0.1:10002         # the published address; by default that of listen
      version: v1
      register: component                # or host: for a component without Leasehold's imports; or off
      config: { greeting: hello }        # values for wasi:config/store
      args: []                           # its arguments, and env: {...}; see docs/programs.md
      allow: { names: [greeter], discover: [], outbound: [] }
      limits: { memory: 64MiB, request_timeout: 30s, concurrency: 200 }
      health: { path: / }                # out of etcd while the check fails; see docs/health.md

A service that does not start is tried again while the others run; --strict, or required: true, ends the host instead.

The end (SIGTERM, SIGQUIT, Ctrl-C) has an order: keys leave etcd, requests in flight are answered, components are
stopped, leases are revoked. A second Ctrl-C quits at once; the keys then go with their leases. SIGHUP reloads every
component.";

const EXPLAIN_HELP: &str = "\
Examples:
  leasehold explain greeter.yaml
  leasehold explain greeter.yaml --json

How a node becomes a key and a value is its layout; in the configuration, for all services or for one:
  registry: { layout: kratos }
  registry: { layout: [seed, kratos] }                    # under both, while clients migrate
  registry: { layout: { name: kratos, prefix: /prod, scheme: http } }
  registry:
    layout:                                               # your own, as templates
      key: /svc/{name}/{addr}
      value: '{\"addr\":\"{addr}\",\"weight\":\"{weight:number}\",\"tags\":\"{metadata|null}\"}'

Built in: seed, grpc-todolist, kratos, go-zero, kitex, hertz, go-micro, rpcx, goframe, etcd-naming.
Placeholders: {name}, {addr}, {version}, {weight}, {id} (a number, the same at every start of one instance);
{version|latest} has a word for no version, {version/} takes its slash with it. In a value, \"{weight:number}\" is a
number, \"{metadata}\" an object, \"{metadata|null}\" null when there is none.";

/// Text of `--version`; `-V` prints its first line.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit     ",
    env!("LEASEHOLD_COMMIT"),
    "\ntarget     ",
    env!("LEASEHOLD_TARGET"),
    "\nwasmtime   ",
    env!("LEASEHOLD_WASMTIME"),
    "\ncontracts  leasehold:registry@0.1.0, wasi:http@0.2 and @0.3, wasi:cli@0.2 and @0.3"
);

/// Runs WebAssembly service components and keeps them findable in etcd.
#[derive(Parser, Debug)]
#[command(name = "leasehold", version, long_version = LONG_VERSION, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run services until SIGTERM or Ctrl-C
    Run(RunArgs),
    /// List the nodes in etcd
    #[command(
        after_help = "Examples:\n  leasehold ls\n  leasehold ls greeter --json --etcd http://127.0.0.1:2379\n  leasehold ls 'user-*' --version 'v2*' --state expiring,no-lease\n  leasehold ls --layout kratos\n  leasehold ls --layout seed --layout kratos --prefix /prod"
    )]
    Ls(LsArgs),
    /// Show the nodes in etcd and their changes, until Ctrl-C
    #[command(
        after_help = "Examples:\n  leasehold watch\n  leasehold watch 'user-*' --every 5s\n  leasehold watch --plain >> changes.log\n  leasehold watch --json | jq -c 'select(.change == \"left\")'\n\nOn a terminal it fills the screen: changed rows come first, arrows, PgUp, PgDn, Home and End scroll, / filters, s sorts,\nq ends. While etcd does not respond it shows how old the rows are. Elsewhere, and with --plain, it writes a line\nfor each change: + came, ~ changed, - went."
    )]
    Watch(WatchArgs),
    /// Report problems of the registry in etcd, with their cures
    #[command(
        after_help = "Examples:\n  leasehold doctor\n  leasehold doctor --layout kratos --json\n  leasehold doctor --config services.yaml\n  leasehold doctor --fix            delete what is left over, key by key\n  leasehold doctor --fix --yes      the same without a question\n\nIt finds keys without a lease, values that are not nodes, keys and values that disagree, addresses that several services\npublish, nodes that take no connection from here, an etcd that is slow, and a clock that differs from etcd's. The exit code is 1\nwhen it finds something. Leases that are renewed and hold no key are noted, and leave the exit code alone: they may be\nidle locks. Where there are leases without keys it watches them for up to 10s.\n\nIt changes nothing without --fix. With --fix it deletes keys without a lease, and never a key that was written after it was\nexamined. Keys that are not nodes, and those whose address takes connections, it deletes only after a question."
    )]
    Doctor(DoctorArgs),
    /// Print the etcdctl commands for the user and the role that a host needs, or create them
    #[command(
        after_help = "Examples:\n  leasehold etcd-user host-a --config services.yaml\n  leasehold etcd-user host-a --names greeter,user --discover order --layout kratos\n  leasehold etcd-user host-a --names greeter --apply --new-password-file pw --user root --password-file root-pw\n\nThe role has the rights that such a host needs, and no others: readwrite on the keys of the services that it\nregisters, read on those that it looks up. A role and a user that are there keep what they have."
    )]
    EtcdUser(EtcdUserArgs),
    /// Check a configuration; starts nothing
    #[command(
        after_help = "Examples:\n  leasehold check greeter.yaml\n  leasehold check greeter.yaml --json\n  leasehold check --offline greeter.yaml      without network, in CI for instance\n  render | leasehold check -\n\nIt reports all mistakes of the file at once. A port that is in use is a note: the host that runs already may have it."
    )]
    Check(CheckArgs),
    /// Write a first configuration file, with comments
    #[command(after_help = "Examples:\n  leasehold init\n  leasehold init /etc/leasehold/services.yaml")]
    Init(InitArgs),
    /// Print the JSON Schema of configuration files, for editors
    #[command(
        after_help = "Examples:\n  leasehold schema > leasehold.schema.json\n\nThe first line of a configuration file then says: # yaml-language-server: $schema=leasehold.schema.json"
    )]
    Schema(SchemaArgs),
    /// Print the exact keys and values that a configuration would write to etcd
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// End one service of a running host, in order; the others go on
    #[command(
        after_help = "Examples:\n  leasehold drain greeter\n  leasehold drain greeter --config services.yaml\n  leasehold drain greeter --admin unix:/run/leasehold/admin.sock --json\n\nThe service stays out, also across reloads, until `leasehold resume greeter` or the next start of the host."
    )]
    Drain(DrainArgs),
    /// Start a drained service of a running host again; it registers again
    #[command(
        after_help = "Examples:\n  leasehold resume greeter\n  leasehold resume greeter --config services.yaml --json\n\nIt starts with the present content of its component file. A service that does not start is tried again, and the exit\ncode is 1. To resume a service that is served is no error."
    )]
    Resume(ResumeArgs),
    /// Set the weight of a service of a running host
    #[command(
        after_help = "Examples:\n  leasehold weight greeter 10      fewer requests than nodes with a greater weight get\n  leasehold weight greeter auto    as configured: from the load, or registry.weight.fixed, or the component's own\n\nThe weight is 1 to 100. It stays across reloads, drain and resume, until the next start of the host."
    )]
    Weight(WeightArgs),
    /// Show what a running host runs, since when, and why something is not ready
    #[command(
        after_help = "Examples:\n  leasehold status\n  leasehold status greeter\n  leasehold status --config services.yaml --json | jq '.services[] | select(.readiness != \"ready\")'"
    )]
    Status(StatusArgs),
    /// Reload services of a running host from their component files; no request fails
    #[command(
        after_help = "Examples:\n  leasehold reload\n  leasehold reload greeter --config services.yaml --json\n\nA new version that does not start leaves the old one\nserving, and the exit code is 1. A drained service stays drained. The configuration file is not read again."
    )]
    Reload(ReloadArgs),
    /// Compile a component ahead of its start, for this release on this kind of machine
    #[command(
        after_help = "Examples:\n  leasehold compile greeter.wasm\n  leasehold compile greeter.wasm -o /srv/greeter.cwasm\n\nThe result is machine code, which no sandbox holds: a configuration that runs it says precompiled: true."
    )]
    Compile(CompileArgs),
    /// Compile what a host sends, in a process of its own
    #[command(name = compiler::SUBCOMMAND, hide = true)]
    CompileForParent,
    /// Show the imports, exports and missing imports of a component
    #[command(after_help = "Examples:\n  leasehold inspect greeter.wasm\n  leasehold inspect greeter.wasm --json")]
    Inspect(InspectArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  leasehold completions bash > /usr/share/bash-completion/completions/leasehold\n  leasehold completions zsh > \"${fpath[1]}/_leasehold\"\n  leasehold completions fish > ~/.config/fish/completions/leasehold.fish"
    )]
    Completions(CompletionsArgs),
    /// Write the man pages into a folder
    #[command(
        after_help = "Examples:\n  leasehold man /usr/local/share/man/man1\n  leasehold man . && man ./leasehold-run.1"
    )]
    Man(ManArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// The folder, which must exist
    pub(crate) folder: PathBuf,
}

#[derive(Args, Debug)]
#[command(disable_version_flag = true, after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// A configuration file (YAML; - for standard input), or one component (.wasm) with --name and --listen
    pub(crate) file: PathBuf,

    /// Start a private etcd on loopback, with a temporary folder, gone with this process
    #[arg(long)]
    pub(crate) dev: bool,

    /// End the whole host where one service does not start; by default that one is tried again
    #[arg(long)]
    pub(crate) strict: bool,

    /// Replace a service whenever its component file changes; no request fails
    #[arg(long)]
    pub(crate) watch: bool,

    #[command(flatten)]
    pub(crate) single: SingleArgs,

    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
}

/// Configuration of the one service of `run X.wasm`.
#[derive(Args, Debug)]
#[command(next_help_heading = "For one component (.wasm)")]
pub(crate) struct SingleArgs {
    /// The service's name
    #[arg(long)]
    name: Option<String>,

    /// Address at which to accept HTTP, as ip:port; or at which a program opens its own listener
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// The version to publish; a component that registers itself reads it in wasi:config/store
    #[arg(long)]
    version: Option<String>,

    /// The address to publish, as host:port [default: where it listens]
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,

    /// A pair that wasi:config/store shows the component
    #[arg(long, value_name = "KEY=VALUE")]
    config: Vec<String>,

    /// An environment variable of the component
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,

    /// Registering party: component, host or off [default: component]
    #[arg(long, value_name = "WHO")]
    register: Option<String>,

    /// Requests with a line in the log: off, errors or all [default: errors]
    #[arg(long, value_name = "REQUESTS")]
    access_log: Option<String>,

    /// Arguments of the component
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Args, Debug)]
#[command(disable_version_flag = true)]
pub(crate) struct LsArgs {
    /// Only this service, or those that match a pattern such as 'user-*'
    pub(crate) name: Option<String>,

    /// Only nodes of this version, or pattern
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: Option<String>,

    /// Only nodes whose lease is in this state; several with commas
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) state: Vec<LeaseState>,

    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// Only this service, or those that match a pattern such as 'user-*'
    pub(crate) name: Option<String>,

    /// A line for each change, also on a terminal
    #[arg(long)]
    pub(crate) plain: bool,

    /// One JSON object a line for each change, with its time and etcd's revision
    #[arg(long)]
    pub(crate) json: bool,

    /// Interval at which a terminal's TTL is brought up to date, 100ms or more
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(crate) every: Every,

    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Do not try to connect to the nodes
    #[arg(long)]
    pub(crate) no_dial: bool,

    /// Delete keys that are left over, each after a question, if they are still as they were examined
    #[arg(long)]
    pub(crate) fix: bool,

    /// Ask nothing: delete keys without a lease whose address takes no connection, and leave the others
    #[arg(long, requires = "fix")]
    pub(crate) yes: bool,

    /// One JSON object; with --fix it needs --yes
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

#[derive(Args, Debug)]
pub(crate) struct EtcdUserArgs {
    /// The user to create
    #[arg(value_name = "NAME")]
    pub(crate) new_user: String,

    /// Services that the host registers; * for every name [default: those of --config]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) names: Vec<String>,

    /// Services that the host looks up and calls by name; * for every name
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) discover: Vec<String>,

    /// The role to create [default: the name of the user]
    #[arg(long, value_name = "NAME")]
    pub(crate) role: Option<String>,

    /// The user signs in by a client certificate of its name, without a password
    #[arg(long, conflicts_with = "new_password_file")]
    pub(crate) no_password: bool,

    /// Create them in etcd instead of printing commands; as --user root, for instance
    #[arg(long)]
    pub(crate) apply: bool,

    /// A file with the password of the new user
    #[arg(long, value_name = "FILE", requires = "apply")]
    pub(crate) new_password_file: Option<PathBuf>,

    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

/// Arguments that select an etcd and layouts.
#[derive(Args, Debug)]
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
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Connection to etcd")]
pub(crate) struct ConnectionArgs {
    /// An endpoint, as host:port or URL; repeat it for each member [default: $LEASEHOLD_ETCD]
    #[arg(long, value_name = "ENDPOINT", value_delimiter = ',')]
    etcd: Vec<String>,

    /// Certificates of etcd's authorities, as PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// The certificate to show to etcd, as PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of that certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// The user; the password comes from a file, or from $LEASEHOLD_ETCD_PASSWORD
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// A file with the password of that user
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

/// The interval of `watch`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Every(pub(crate) Duration);

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Span(span) = text.parse()?;
        if span < Duration::from_millis(100) {
            return Err(format!("must be 100ms or more, not {text:?}"));
        }
        Ok(Self(span))
    }
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// A configuration file (YAML; - for standard input)
    pub(crate) file: PathBuf,

    /// Neither connect to etcd nor try the ports
    #[arg(long)]
    pub(crate) offline: bool,

    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
}

#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// The file, which must not exist yet
    #[arg(default_value = "services.yaml")]
    pub(crate) file: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct SchemaArgs {
    /// Print the reference page in Markdown instead
    #[arg(long)]
    pub(crate) reference: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// A configuration file (YAML; - for standard input)
    pub(crate) file: PathBuf,

    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// A component (.wasm)
    pub(crate) file: PathBuf,

    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CompileArgs {
    /// A component (.wasm)
    pub(crate) file: PathBuf,

    /// File for the machine code [default: beside it, as .cwasm]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

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

    /// Certificates of the authorities of its certificate, as PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// The certificate to show to it, as PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// The private key of that certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
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
        if let Some(ca) = &self.cacert {
            tls.ca_pem = Some(readable("--cacert", ca)?);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls.identity_pem = Some((readable("--cert", cert)?, readable("--key", key)?));
        }
        Ok(tls)
    }
}

#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    /// The service
    pub(crate) name: String,

    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
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

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// Only this service
    pub(crate) name: Option<String>,

    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) host: AdminArgs,
}

impl RunArgs {
    /// Absolute path of the configuration file; `None` for a component and for standard input.
    pub(crate) fn configuration_file(&self) -> Option<PathBuf> {
        let is_file = !self.is_component() && self.file != Path::new("-");
        is_file.then(|| std::path::absolute(&self.file).ok())?
    }

    fn is_component(&self) -> bool {
        self.file.extension().is_some_and(|extension| extension == "wasm" || extension == "cwasm")
    }

    /// Configuration from the file or from the arguments.
    pub(crate) fn config(self) -> Result<Config, Failure> {
        let mut config = if self.is_component() {
            self.single.config(self.file, &self.connection)?
        } else {
            if let Some(flag) = self.single.first_given() {
                return Err(Failure::usage(format!(
                    "{flag} goes with a component (.wasm); a configuration file says it itself"
                )));
            }
            self.connection.load(&self.file)?
        };
        for spec in &mut config.services {
            spec.follow = self.watch;
            spec.required |= self.strict;
        }
        config.strict = self.strict;
        config.dev = self.dev;
        if config.dev {
            // The private etcd has neither users nor certificates.
            config.registrar.credentials = None;
            config.registrar.tls = Tls::default();
            config.etcd_required = true;
        }
        Ok(config)
    }
}

impl SingleArgs {
    fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--name", self.name.is_some()),
            ("--listen", self.listen.is_some()),
            ("--version", self.version.is_some()),
            ("--advertise", self.advertise.is_some()),
            ("--config", !self.config.is_empty()),
            ("--env", !self.env.is_empty()),
            ("--register", self.register.is_some()),
            ("--access-log", self.access_log.is_some()),
            ("--", !self.args.is_empty()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    fn config(self, component: PathBuf, connection: &ConnectionArgs) -> Result<Config, Failure> {
        let missing =
            |flag: &str| Failure::usage(format!("{} needs {flag}; try leasehold run --help", component.display()));
        let name: ServiceName = parse("--name", &self.name.ok_or_else(|| missing("--name"))?)?;
        let Listen(listen) = parse::<Listen>("--listen", &self.listen.ok_or_else(|| missing("--listen"))?)?;
        let mut spec = Spec::new(name, component, listen);
        spec.advertise = self.advertise.map(|text| parse::<Advertise>("--advertise", &text)).transpose()?;
        if let Some(text) = self.version {
            spec.version = parse::<Version>("--version", &text)?;
        }
        if let Some(text) = self.register {
            spec.register = parse::<Register>("--register", &text)?;
        }
        if let Some(text) = self.access_log {
            spec.access_log.log = parse::<Logged>("--access-log", &text)?;
        }
        spec.args = self.args;
        spec.config = pairs("--config", &self.config)?;
        spec.env = pairs("--env", &self.env)?;
        spec.check_advertise().map_err(|message| Failure::usage(format!("--listen: {message}")))?;
        let (registrar, etcd_files) = connection.options()?;
        Ok(Config::of(registrar, etcd_files, spec))
    }
}

impl EtcdArgs {
    /// Options of the registrar.
    pub(crate) fn registrar(&self) -> Result<Options, Failure> {
        self.examined().map(|(options, _)| options)
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
}

impl EtcdArgs {
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
        let mut config = Config::load(file)?;
        self.apply(&mut config.registrar, &mut config.etcd_files)?;
        Ok(config)
    }

    /// The connection that the arguments and the environment say.
    fn options(&self) -> Result<(Options, EtcdFiles), Failure> {
        let endpoints = match self.etcd.is_empty() {
            true => connection::endpoints(|name| std::env::var(name).ok(), self.has_tls()).map_err(Failure::usage)?,
            false => Vec::new(),
        };
        let (mut options, mut files) = (Options::new(endpoints), EtcdFiles::default());
        self.apply(&mut options, &mut files)?;
        Ok((options, files))
    }

    fn has_tls(&self) -> bool {
        self.cacert.is_some() || self.cert.is_some()
    }

    /// The latest running `run --dev` of this user, unless the arguments or the environment say where etcd is.
    fn dev_host(&self) -> Result<Option<DevHost>, Failure> {
        let named = connection::named(|name| std::env::var(name).ok(), self.has_tls()).map_err(Failure::usage)?;
        let is_elsewhere = !self.etcd.is_empty() || named.is_some() || self.has_tls() || self.user.is_some();
        let mut running = if is_elsewhere { Vec::new() } else { DevHost::running() }.into_iter();
        let latest = running.next();
        if let Some(other) = running.next() {
            tracing::warn!("several run --dev are running; --etcd {} selects another one", other.endpoint);
        }
        Ok(latest)
    }

    fn apply(&self, options: &mut Options, files: &mut EtcdFiles) -> Result<(), Failure> {
        if !self.etcd.is_empty() {
            let endpoints = self.etcd.iter().map(|text| connection::endpoint(text, self.has_tls()));
            options.endpoints = endpoints.collect::<Result<_, _>>().map_err(|message| wrong("--etcd", message))?;
        }
        if let Some(ca) = &self.cacert {
            options.tls.ca_pem = Some(readable("--cacert", ca)?);
            files.ca = Some(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            options.tls.identity_pem = Some((readable("--cert", cert)?, readable("--key", key)?));
            (files.cert, files.key) = (Some(cert.clone()), Some(key.clone()));
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

/// A file that can be read now, and is read again for each use.
fn readable(flag: &str, path: &Path) -> Result<Source, Failure> {
    let source = Source::from(path.to_owned());
    source.read().map_err(|error| wrong(flag, error))?;
    Ok(source)
}

/// Parses an argument; the error names its flag.
pub(crate) fn parse<T>(flag: &str, text: &str) -> Result<T, Failure>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| wrong(flag, error))
}

fn wrong(flag: &str, error: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{flag}: {error}"))
}

fn pairs(flag: &str, given: &[String]) -> Result<Variables, Failure> {
    let mut variables = Variables::default();
    for pair in given {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                variables.0.insert(key.to_owned(), value.to_owned());
            }
            // The text is not repeated: it may be half of a secret.
            _ => return Err(Failure::usage(format!("{flag}: must be KEY=VALUE"))),
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command, LONG_VERSION};
    use crate::{
        config::{Config, Logged},
        error::Failure,
    };

    fn run(arguments: &[&str]) -> Result<Config, Failure> {
        let cli = Cli::try_parse_from(["leasehold", "run"].iter().chain(arguments)).unwrap();
        let Command::Run(args) = cli.command else { panic!("run") };
        args.config()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_component_runs_from_arguments_alone() {
        let config = run(&[
            "g.wasm",
            "--name",
            "g",
            "--listen",
            "127.0.0.1:8080",
            "--etcd",
            "http://a:1",
            "--etcd",
            "http://b:2",
            "--config",
            "greeting=a=b",
            "--version",
            "v1",
            "--register",
            "host",
            "--access-log",
            "all",
        ])
        .unwrap();
        assert_eq!(config.registrar.endpoints, ["http://a:1", "http://b:2"]);
        assert_eq!(config.services[0].config.0["greeting"], "a=b");
        assert_eq!(config.services[0].version.as_str(), "v1");
        assert_eq!(config.services[0].access_log.log, Logged::All);
    }

    #[test]
    fn wrong_arguments_are_one_sentence_and_64() {
        let cases: [(&[&str], &str); 10] = [
            (&["g.wasm"], "g.wasm needs --name"),
            (&["g.wasm", "--name", "a/b", "--listen", "127.0.0.1:1"], "--name: name must be visible"),
            (&["g.wasm", "--name", "g", "--listen", "8080"], "--listen: must be an IP address and a port"),
            (&["g.wasm", "--name", "g", "--listen", "0.0.0.0:80"], "--listen: no client can dial"),
            (&["g.wasm", "--name", "g", "--listen", "127.0.0.1:1", "--env", "x"], "--env: must be KEY=VALUE"),
            (&["g.wasm", "--name", "g", "--listen", "127.0.0.1:1", "--etcd", "a"], "--etcd: must be host:port"),
            (
                &["g.wasm", "--name", "g", "--listen", "127.0.0.1:1", "--access-log", "full"],
                "--access-log: must be one of",
            ),
            (&["g.yaml", "--name", "g"], "--name goes with a component"),
            (&["g.yaml", "--access-log", "all"], "--access-log goes with a component"),
            (&["/does/not/exist.yaml"], "cannot read /does/not/exist.yaml"),
        ];
        for (arguments, start) in cases {
            let failure = run(arguments).unwrap_err();
            assert_eq!(failure.code(), 64);
            assert!(failure.sentence().starts_with(start), "{}", failure.sentence());
        }
    }

    #[test]
    fn the_version_names_the_contract_that_is_linked() {
        assert!(LONG_VERSION.contains(leasehold_wasmtime::CONTRACT), "{LONG_VERSION}");
    }
}
