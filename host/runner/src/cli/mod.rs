//! The command line and its help.

mod argument;
mod artifact_args;
mod etcd_args;
mod guest_args;
pub(crate) mod help;
mod host_args;
mod keep_args;
pub(crate) mod lease_state;
mod tls_args;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use leasehold::{ServiceName, Tls, Version};
use leasehold_artifacts::Reference;

use self::{argument::pairs, lease_state::LeaseState};
pub(crate) use self::{
    argument::parse,
    artifact_args::{InspectArgs, PullArgs, PushArgs, RegistryArgs},
    etcd_args::{ConnectionArgs, EtcdArgs},
    guest_args::{ComponentizeArgs, ContractVersion, HttpVersion, Language, NewArgs, WitArgs},
    host_args::{AdminArgs, Probe, ReloadArgs, ServiceArgs, StatusArgs, UpgradeArgs, WeightArgs},
    keep_args::KeepArgs,
};
use crate::{
    config::{
        ARTIFACT_POLL, Artifact, Config, Logged, Register, Spec,
        units::Span,
        values::{Advertise, Listen},
    },
    error::Failure,
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
  leasehold push greeter.wasm oci://registry.example/greeter:1   into a registry; pull gets it back
  leasehold new user --lang go          a folder with a service in Go; or in rust, c, js, ts, python
  leasehold dev user                    build and run that folder, again with each change
  leasehold wit wit                     the interfaces that a component can use, as WIT
  leasehold componentize core.wasm      a component of a core module, as Go and C build it
  leasehold status                      what a running host runs, and why something is not ready
  leasehold drain greeter               take one service of a running host out, in order
  leasehold resume greeter              bring it back, from the present component file
  leasehold weight greeter 10           fewer requests for it; auto for the weight as configured
  leasehold reload --dry-run            what the present configuration file would change
  leasehold reload                      go on with the present configuration and component files
  leasehold reload greeter              replace it by the present content of its component file
  leasehold upgrade                     replace the running host by the present binary

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
  leasehold run hello.wasm --name hello --listen 0.0.0.0:80 --advertise 10.0.0.7:80 --register host
  leasehold run cache.wasm --name cache --listen 127.0.0.1:6379 --register host -- 127.0.0.1:6379

Without a configuration file everything that has no option here is as by default: the layout, the TTL, what the component may \
call, limits, health, TLS. `leasehold init` writes a file that sets them.

A configuration file (every key: docs/configuration.md, or an editor with `leasehold schema`):
  etcd: { endpoints: [http://127.0.0.1:2379] }
  registry: { layout: seed, ttl: 10s, ownership: take-over }    # layouts: leasehold explain --help
  metrics: { listen: 127.0.0.1:9100 }    # /healthz, /readyz and /metrics
  traces: { endpoint: http://127.0.0.1:4317, sample: 0.1 }      # OpenTelemetry; see docs/traces.md
  services:
    - name: greeter
      component: greeter.wasm            # relative to this file
      listen: 127.0.0.1:10002            # HTTP/1.1 and HTTP/2 (h2c) on one port
      advertise: 127.0.0.1:10002         # the published address; by default that of listen
      version: v1
      register: component                # or host, for any other component; or off
      config: { greeting: hello }        # values for wasi:config/store
      args: []                           # its arguments, and env: {...}; see docs/programs.md
      allow: { names: [greeter], discover: [], outbound: [] }
      limits: { memory: 64MiB, request_timeout: 30s, concurrency: 200 }
      health: { path: / }                # out of etcd while the check fails; see docs/health.md

A service that does not start is tried again while the others run; --strict, or required: true, ends the host instead.

The end (SIGTERM, SIGQUIT, Ctrl-C) has an order: keys leave etcd, requests in flight are answered, components are
stopped, leases are revoked. A second Ctrl-C quits at once; the keys then go with their leases. SIGHUP reads this file
and the component files again, like `leasehold reload`.";

const EXPLAIN_HELP: &str = "\
Examples:
  leasehold explain greeter.yaml
  leasehold explain greeter.yaml --json
  leasehold explain greeter.wasm > services.yaml     the configuration that it needs, with the reason for each key
  leasehold explain services.yaml --call http://user.leasehold/     the nodes of a call by name, with their shares

How a node becomes a key and a value is its layout; in the configuration, for all services or for one:
  registry: { layout: kratos }
  registry: { layout: [seed, kratos] }                    # under both, while clients migrate
  registry: { layout: { name: kratos, prefix: /prod, scheme: http } }
  registry:
    layout:                                               # your own, as templates
      key: /svc/{name}/{addr}
      value: '{\"addr\":\"{addr}\",\"weight\":\"{weight:number}\",\"tags\":\"{metadata|null}\"}'

Built in: seed, grpc-todolist, kratos, go-zero, kitex, hertz, go-micro, rpcx, goframe, etcd-naming.
Placeholders: {name}, {addr}, {version}, {weight}, {id} (a number, the same at every start of one instance); \
{version|latest} has a word for no version, {version/} takes its slash with it. In a value, \"{weight:number}\" is a \
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
    "\ncontracts  leasehold:registry@0.1.0 and @0.2.0, wasi:http@0.2 and @0.3, wasi:cli@0.2 and @0.3"
);

/// Runs WebAssembly service components and keeps them findable in etcd.
#[derive(Parser, Debug)]
#[command(name = "leasehold", max_term_width = 120, version, long_version = LONG_VERSION, after_help = EXAMPLES)]
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
        after_help = "Examples:\n  leasehold watch\n  leasehold watch 'user-*' --every 5s\n  leasehold watch --plain >> changes.log\n  leasehold watch --json | jq -c 'select(.change == \"left\")'\n\nOn a terminal it fills the screen: changed rows come first, arrows, PgUp, PgDn, Home and End scroll, / filters, s sorts, q ends. While etcd does not respond it shows how old the rows are. Elsewhere, and with --plain, it writes a line for each change: + came, ~ changed, - went."
    )]
    Watch(WatchArgs),
    /// Report problems of the registry in etcd, with their cures
    #[command(
        after_help = "Examples:\n  leasehold doctor\n  leasehold doctor --layout kratos --json\n  leasehold doctor --config services.yaml\n  leasehold doctor --fix            delete what is left over, key by key\n  leasehold doctor --fix --yes      the same without a question\n\nIt finds keys without a lease, values that are not nodes, keys and values that disagree, addresses that several services publish, nodes that take no connection from here, an etcd that is slow, and a clock that differs from etcd's. The exit code is 1 when it finds something. Leases that are renewed and hold no key are noted, and leave the exit code alone: they may be idle locks. Where there are leases without keys it watches them for up to 10s.\n\nIt changes nothing without --fix. With --fix it deletes keys without a lease, and never a key that was written after it was examined. Keys that are not nodes, and those whose address takes connections, it deletes only after a question."
    )]
    Doctor(DoctorArgs),
    /// Print the etcdctl commands for the user and the role that a host needs, or create them
    #[command(
        after_help = "Examples:\n  leasehold etcd-user host-a --config services.yaml\n  leasehold etcd-user host-a --names greeter,user --discover order --layout kratos\n  leasehold etcd-user host-a --names greeter --apply --new-password-file pw --user root --password-file root-pw\n\nThe role has the rights that such a host needs, and no others: readwrite on the keys of the services that it registers, read on those that it looks up. A role and a user that are there keep what they have."
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
    /// Print the exact keys and values that a configuration would write to etcd, or the configuration that a component needs
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// End one service of a running host, in order; the others go on
    #[command(
        after_help = "Examples:\n  leasehold drain greeter\n  leasehold drain greeter --config services.yaml\n  leasehold drain greeter --admin unix:/run/leasehold/admin.sock --json\n\nThe service stays out, also across reloads, until `leasehold resume greeter` or the next start of the host."
    )]
    Drain(ServiceArgs),
    /// Start a drained service of a running host again; it registers again
    #[command(
        after_help = "Examples:\n  leasehold resume greeter\n  leasehold resume greeter --config services.yaml --json\n\nIt starts with the present content of its component file. A service that does not start is tried again, and the exit code is 1. To resume a service that is served is no error."
    )]
    Resume(ServiceArgs),
    /// Set the weight of a service of a running host
    #[command(
        after_help = "Examples:\n  leasehold weight greeter 10      fewer requests than nodes with a greater weight get\n  leasehold weight greeter auto    as configured: from the load, or registry.weight.fixed, or the component's own\n\nThe weight is 1 to 100. It stays across reloads, drain and resume, until the next start of the host."
    )]
    Weight(WeightArgs),
    /// Show what a running host runs, since when, and why something is not ready
    #[command(
        after_help = "Examples:\n  leasehold status\n  leasehold status greeter\n  leasehold status --config services.yaml --json | jq '.services[] | select(.readiness != \"ready\")'\n  leasehold status --probe serving     for the health check of a container: exit code 0 or 1"
    )]
    Status(StatusArgs),
    /// Reload the configuration of a running host, or one service; no request fails
    #[command(
        after_help = "Examples:\n  leasehold reload --dry-run                  what would change, as a diff\n  leasehold reload                            the configuration and the component files, like SIGHUP\n  leasehold reload greeter                    one service from its component file\n  leasehold reload --config services.yaml --json\n\nServices are added, removed in order, changed in place or moved to another address. A file with a mistake changes nothing, and the exit code is 64. A service whose new version does not start goes on with the former one, and the exit code is 1. A drained service stays drained. Keys of etcd, admin, metrics, traces and registry need a restart, except for registry.layout, suffix and prefer."
    )]
    Reload(ReloadArgs),
    /// Replace a running host by a new process of its binary; no request fails
    #[command(
        after_help = "Examples:\n  leasehold upgrade\n  leasehold upgrade --config services.yaml\n\nThe binary that stands at the path of the running one is started with the same arguments. It takes over the listeners, the keys, and what operators have drained and weighed; then the former process drains and ends. If the new process does not serve what the former one serves, the former one goes on, and the exit code is 1. SIGUSR2 does the same."
    )]
    Upgrade(UpgradeArgs),
    /// Keep any process in etcd: registered while its check succeeds, taken back in order with its command
    #[command(
        after_help = "Examples:\n  leasehold keep --name user --addr 10.0.0.7:8080 --health http://127.0.0.1:8080/healthz -- ./user-server\n  leasehold keep --name mail --addr 10.0.0.7:25 --health tcp://127.0.0.1:25        beside a process that runs already\n  leasehold keep nodes.yaml        several nodes, each with a check of its own; SIGHUP reads the file again\n  leasehold keep --name user --addr 10.0.0.7:9000 --health grpc://127.0.0.1:9000 --layout kratos --etcd etcd-1:2379 -- spin up\n\nThe node is registered once the check succeeds, withdrawn while it fails, and registered again. SIGTERM, SIGQUIT and Ctrl-C delete the key, wait for --settle-time, and are passed on to the command with everything that it has started; other signals are passed on at once. The exit code is that of the command, and 128 plus the signal where one has ended it."
    )]
    Keep(KeepArgs),
    /// Compile a component ahead of its start, for this release on this kind of machine
    #[command(
        after_help = "Examples:\n  leasehold compile greeter.wasm\n  leasehold compile greeter.wasm -o /srv/greeter.cwasm\n\nThe result is machine code, which no sandbox holds: a configuration that runs it says precompiled: true."
    )]
    Compile(CompileArgs),
    /// Compile what a host sends, in a process of its own
    #[command(name = compiler::SUBCOMMAND, hide = true)]
    CompileForParent,
    /// Show the imports, exports and missing imports of a component
    #[command(
        after_help = "Examples:\n  leasehold inspect greeter.wasm\n  leasehold inspect greeter.wasm --json\n  leasehold inspect oci://registry.example/team/user:1.4.2"
    )]
    Inspect(InspectArgs),
    /// Pull a component from an OCI registry, into the cache or a file
    #[command(
        after_help = "Examples:\n  leasehold pull oci://registry.example/team/user:1.4.2\n  leasehold pull oci://registry.example/team/user:1.4.2 --verify cosign.pub -o user.wasm\n  leasehold pull oci://127.0.0.1:5000/user:dev --plain-http\n\nA configuration pulls by itself: component: oci://registry.example/team/user:1.4.2. A pull before the start of a host fills the cache for it."
    )]
    Pull(PullArgs),
    /// Push a component into an OCI registry
    #[command(
        after_help = "Examples:\n  leasehold push user.wasm oci://registry.example/team/user:1.4.2\n  leasehold push user.wasm oci://127.0.0.1:5000/user:dev --plain-http --json\n\nThe artifact has the format of the CNCF for WebAssembly, which wkg and wash read as well. The same component has the same digest."
    )]
    Push(PushArgs),
    /// Write a folder with a service in the language of your choice
    #[command(
        after_help = "Examples:\n  leasehold new --list\n  leasehold new user --lang go && cd user && make run\n  leasehold new user --lang rust --grpc\n\nThe folder has the component, services.yaml, the WIT, pinned tools, a test, and a README of one page. The component registers itself, greets, reports its registration, and calls other services by name."
    )]
    New(NewArgs),
    /// Build and run the service in a folder, again with each change of its sources, until Ctrl-C
    #[command(
        after_help = "Examples:\n  leasehold new user --lang go && leasehold dev user\n  leasehold dev --build 'cargo build --release --target wasm32-wasip2'\n\nIt builds by `make build` where there is a Makefile, and by `npm run build` where there is a package.json. The services run on a private etcd, as with `leasehold run --dev`. After each build they are reloaded, and no request fails. After a build that fails, and after a mistake in the services file, they go on as they were.\n\nSources are all files but those of .gitignore, hidden ones, components, and the folders target and node_modules."
    )]
    Dev(DevArgs),
    /// Print or write the interfaces that components can use, as WIT, or check a component against them
    #[command(
        after_help = "Examples:\n  leasehold wit                       the contract, on standard output\n  leasehold wit wit                   wit/deps with the contract and WASI, and a first wit/world.wit\n  leasehold wit wit --http 0.3\n  leasehold wit --check user.wasm     the versions that it wants, and those that this host has\n  leasehold wit --http 0.3 --package registry.wasm     one binary package, for wkg publish or leasehold push\n\nA folder that has WIT of its own keeps it, and gets no world. Files that differ are not overwritten without --force. With --check the exit code is 64 when the host lacks something."
    )]
    Wit(WitArgs),
    /// Make a component of a core module, as Go and C build it
    #[command(
        after_help = "Examples:\n  leasehold componentize core.wasm --wit wit -o user.wasm\n  leasehold componentize core.wasm     for a module with its WIT in it, as the generators of bindings for C leave it\n\nIt holds the adapter of wasmtime that gives WASI 0.1 to the module. The module must be a library (a reactor, c-shared)."
    )]
    Componentize(ComponentizeArgs),
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

#[derive(Args, Debug, Clone)]
#[command(disable_version_flag = true, after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// A configuration file (YAML; - for standard input), or one component (.wasm, oci://…) with --name and --listen
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
#[derive(Args, Debug, Clone, Default)]
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
    #[arg(long = "config-var", value_name = "KEY=VALUE")]
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

impl RunArgs {
    /// Arguments of `run --dev FILE`.
    pub(crate) fn dev(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            dev: true,
            strict: false,
            watch: false,
            single: SingleArgs::default(),
            connection: ConnectionArgs::default(),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// The folder with the sources
    #[arg(default_value = ".")]
    pub(crate) folder: PathBuf,

    /// The configuration of the services, in that folder
    #[arg(long, value_name = "FILE", default_value = "services.yaml")]
    pub(crate) services: PathBuf,

    /// The command that builds the component, run by sh in that folder [default: make build, or npm run build]
    #[arg(long, value_name = "COMMAND")]
    pub(crate) build: Option<String>,

    /// A pattern as in .gitignore for files that are no sources; repeat it for several
    #[arg(long, value_name = "PATTERN")]
    pub(crate) ignore: Vec<String>,
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

    /// A row for every service; by default, of more than 20 only for those with a problem or a remark
    #[arg(long)]
    pub(crate) all: bool,

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
    /// Print the reference of the keys in Markdown instead
    #[arg(long)]
    pub(crate) reference: bool,

    /// Of the files of leasehold keep
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// A configuration file (YAML; - for standard input), or a component (.wasm)
    pub(crate) file: PathBuf,

    /// A call by name instead: the nodes that it may go to, as etcd has them now, and why others are left out
    #[arg(long, value_name = "URL")]
    pub(crate) call: Option<String>,

    /// The service that calls [default: the one that may, if there is one]
    #[arg(long, value_name = "SERVICE", requires = "call")]
    pub(crate) from: Option<String>,

    /// One JSON array; for a component, one JSON object
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

impl RunArgs {
    /// Absolute path of the configuration file; `None` for a component and for standard input.
    pub(crate) fn configuration_file(&self) -> Option<PathBuf> {
        let is_file = !self.is_component() && self.file != Path::new("-");
        is_file.then(|| std::path::absolute(&self.file).ok())?
    }

    /// The text of a reference to a component in a registry, if it is one.
    fn reference(&self) -> Option<&str> {
        self.file.to_str().filter(|text| Reference::is_meant(text))
    }

    fn is_component(&self) -> bool {
        self.file.extension().is_some_and(|extension| extension == "wasm" || extension == "cwasm")
            || self.reference().is_some()
    }

    /// Configuration from the file or from the arguments.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let mut config = if let Some(reference) = self.reference() {
            let reference: Reference = parse("COMPONENT", reference)?;
            let artifacts = Ok(RegistryArgs::default().artifacts(&reference)?);
            let mut config = self.single.clone().config(self.file.clone(), &self.connection)?;
            for spec in &mut config.services {
                let reference = reference.clone();
                let poll = ARTIFACT_POLL;
                spec.artifact = Some(Artifact { reference, keys: Vec::new(), poll, artifacts: artifacts.clone() });
            }
            config
        } else if self.is_component() {
            self.single.clone().config(self.file.clone(), &self.connection)?
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
            ("--config-var", !self.config.is_empty()),
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
        spec.config = pairs("--config-var", &self.config)?;
        spec.env = pairs("--env", &self.env)?;
        spec.check_advertise().map_err(|message| Failure::usage(format!("--listen: {message}")))?;
        let (registrar, etcd_files) = connection.options()?;
        Ok(Config::of(registrar, etcd_files, spec))
    }
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
            "--config-var",
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
    fn the_version_names_the_contracts_that_are_linked() {
        for contract in leasehold_wasmtime::CONTRACTS {
            let (package, version) = contract.split_once('@').unwrap();
            assert!(LONG_VERSION.contains(package) && LONG_VERSION.contains(&format!("@{version}")), "{LONG_VERSION}");
        }
    }
}
