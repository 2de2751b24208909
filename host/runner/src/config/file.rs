//! The configuration file: every key once, with its effect, its rule and its default. The parser, the reference page and the
//! JSON Schema come from here.

use std::time::Duration;

use leasehold::{Ownership, ServiceName, Version};

use crate::config::{
    artifact::Origin,
    connection::Member,
    destination::Destination,
    rule::{
        Absent::{Required, Text as Default, Unset},
        Each, OneOrMany, Pairs, Part, Reading, Rule, Shape, Switch, Text, keys,
    },
    tree::{Content, Node},
    units::{Count, HeaderSize, Memory, Number, Percentage, Ramp, Secret, Share, Size, Span, WholeSeconds},
    values::{
        AccessFormat, AdminListen, Advertise, Balance, Collector, FilePath, FixedWeight, HealthPath, Layouts, Listen,
        Logged, Mode, Pattern, Readable, Register, Suffix, Variables,
    },
};

keys! {
    /// The whole file. Keys that begin with `x-` are ignored; they are a place for anchors.
    pub(crate) struct File {
        /// Folders or files with further `services`, such as `services.d/*.yaml`, in the order of their names. A `*` stands in the name of the file.
        include: OneOrMany<Text> = Unset("none"), example "services.d/*.yaml";
        /// Keys of all services, where a service does not have them itself. Maps are merged key by key; a list or a value replaces the default, and `~` removes it.
        defaults: Part<Defaults> = Unset("none"), example "{ limits: { memory: 32MiB } }";
        /// The connection to etcd.
        etcd: Part<Etcd> = Unset("");
        /// Registration, for all services.
        registry: Part<Registry> = Unset("");
        /// The admin endpoint; absent, a socket. `/healthz`, `/readyz`, `/metrics`, `/status` and `/services`, and commands such as `drain`; see [admin](admin.md).
        admin: Part<Option<Admin>> = Unset("a socket");
        /// A listener for `/healthz`, `/readyz` and `/metrics` alone; absent, only the admin endpoint has them.
        metrics: Part<Option<Metrics>> = Unset("no listener");
        /// Traces in OpenTelemetry's format; absent, there are none.
        traces: Part<Option<Traces>> = Unset("no traces");
        /// Registries of components, and the cache for what is pulled.
        artifacts: Part<Artifacts> = Unset("");
        /// The services, one at least.
        services: Each<Service> = Required;
    }
}

keys! {
    /// The connection to etcd.
    pub(crate) struct Etcd {
        /// Members of the cluster. If one fails, the next is tried. `host:port` alone is `https` with a certificate under `tls` or beside a member that is, else `http`.
        endpoints: Option<Vec<Member>> = Unset("`LEASEHOLD_ETCD`, then `ETCDCTL_ENDPOINTS`, then `http://127.0.0.1:2379`"), example "[http://10.0.0.1:2379, http://10.0.0.2:2379]";
        /// Time for a connection, its TLS handshake included. Shorter makes a distant etcd unreachable; longer delays the next endpoint.
        dial_timeout: Span = Default("3s"), example "1s";
        /// Time for a request, a quarter of the TTL at most. A write that etcd has lost costs a new lease.
        request_timeout: Span = Default("5s"), example "2500ms";
        /// The user, where etcd has authentication.
        user: Option<Text> = Unset("none"), example "leasehold";
        /// The user's password. `password_file` is read again for each sign-in; this is not.
        password: Option<Secret> = Unset("none");
        /// A file with the password; a line break at its end is ignored.
        password_file: Option<Readable> = Unset("none"), example "/run/secrets/etcd";
        /// TLS for `https` endpoints.
        tls: EtcdTls = Unset("");
        /// Ends a start without etcd with exit code 69. Otherwise the host waits for etcd.
        required: Switch = Default("false");
    }
}

keys! {
    /// TLS for `https` endpoints. The files are read again for each connection.
    pub(crate) struct EtcdTls {
        /// Certificates of the authorities of etcd's certificate, as PEM.
        ca: Option<Readable> = Unset("the authorities that the system trusts");
        /// The host's own certificate, as PEM. It needs `key`.
        cert: Option<Readable> = Unset("none"), example "etcd/host.pem";
        /// The private key of `cert`, as PEM.
        key: Option<Readable> = Unset("none"), example "etcd/host.key";
        /// The name that etcd's certificate must have.
        server_name: Option<Text> = Unset("the host of the endpoint"), example "etcd.local";
    }
}

keys! {
    /// Registration, for all services.
    pub(crate) struct Registry {
        /// The format of keys and values: one layout, or several at once.
        layout: Layouts = Default("seed"), example "[seed, kratos]";
        /// Time that keys outlive a host that died. etcd raises less than 2 s to 2 s.
        ttl: WholeSeconds = Default("10s"), example "1m";
        /// Rule of `register` for a key of another host: write over it, fail, or wait until the key is free.
        ownership: Ownership = Default("take-over");
        /// The domain of calls by name: `http://NAME.leasehold/`.
        suffix: Suffix = Default("leasehold");
        /// Metadata of nodes that calls by name prefer; `version` prefers a version.
        prefer: Option<Pairs> = Unset("none"), example "{ zone: a }";
        /// Rules of calls by name: retries, ejection of nodes and the like; see [calls](calls.md#failure-policy).
        calls: Vec<Calls> = Unset("one entry with every default"), example "[{ timeout: 2s }, { service: payment, retries: 0 }]";
        /// The published weight.
        weight: Weight = Unset("");
    }
}

keys! {
    /// Rules of calls by name to some services; see [calls](calls.md#failure-policy).
    pub(crate) struct Calls {
        /// The services that the entry is for. An entry without is for those that no other entry names.
        service: OneOrMany<ServiceName> = Unset("all others"), example "[user, order]";
        /// Time until a response begins, with all its tries. Shorter ends slow calls; the deadlines of the component and `limits.request_timeout` hold as well.
        timeout: Option<Span> = Unset("`limits.request_timeout`"), example "2s";
        /// Time of one try for that. A later response counts against the node.
        try_timeout: Option<Span> = Unset("`timeout`"), example "500ms";
        /// Further tries, on other nodes, of a call that failed and does no harm twice.
        retries: Number<0, 10> = Default("1"), example "2";
        /// Further tries among all calls to a service, at most.
        retry_budget: Percentage = Default("20%"), example "10%";
        /// Time without a response after which a GET or HEAD is sent to a second node as well; the first response is taken.
        hedge_after: Option<Span> = Unset("never"), example "200ms";
        /// Calls in flight to a service, from each service of this host. Beyond, a call fails at once.
        in_flight: Count = Default("1000"), example "50";
        /// Failures in a row that eject a node, for a while; `0` never does.
        eject_after: Number<0, 1000> = Default("5"), example "3";
        /// The choice of nodes: by their weights, or by their latency and calls in flight as well.
        balance: Balance = Default("weight"), example "latency";
        /// Time over which the share of a fresh node rises to the whole, from a tenth.
        slow_start: Ramp = Default("30s"), example "off";
        /// Versions that get a part of the calls which name no version. Other calls go to the other versions.
        split: Vec<Split> = Unset("no split"), example "[{ version: v2, share: 5% }]";
        /// TLS to every node of the service; absent, nodes that say they use TLS are not called.
        tls: Option<CallTls> = Unset("plain text");
    }
}

keys! {
    /// A version that gets a part of the calls to a service: a share, or those with a header.
    pub(crate) struct Split {
        /// The version.
        version: Version = Required, example "v2";
        /// Its share of the calls.
        share: Option<Percentage> = Unset("none"), example "5%";
        /// Calls with this header, whatever the share.
        header: Option<Text> = Unset("none"), example "'x-canary: 1'";
    }
}

keys! {
    /// TLS to the nodes of a service. The files are read again for each connection.
    pub(crate) struct CallTls {
        /// Certificates of the authorities of the nodes' certificates, as PEM.
        ca: Readable = Required, example "mesh/ca.pem";
        /// The host's own certificate, as PEM. It needs `key`.
        cert: Option<Readable> = Unset("none"), example "mesh/host.pem";
        /// The private key of `cert`, as PEM.
        key: Option<Readable> = Unset("none"), example "mesh/host.key";
        /// The name that a node's certificate must have, `{name}` for that of the service; or an identity of SPIFFE, `spiffe://…`.
        server_name: Option<Text> = Unset("the host of the node's address"), example "'{name}.mesh'";
    }
}

keys! {
    /// The published weight: 1 to 100, by default from the load of the machine.
    pub(crate) struct Weight {
        /// A weight that does not follow the load.
        fixed: Option<FixedWeight> = Unset("the load");
        /// Change of the weight that is not written yet.
        dead_band: Number<0, 100_000> = Default("5"), example "3";
        /// Time between two writes of the weight, at least.
        min_interval: Span = Default("10s"), example "20s";
    }
}

keys! {
    /// The admin endpoint, over which services are drained, resumed, weighed and reloaded.
    pub(crate) struct Admin {
        /// A socket, an address, or `off`. Over TCP, commands need `token_file` or `tls.client_ca`; without both the endpoint is read-only.
        listen: Option<AdminListen> = Unset("a socket in `$RUNTIME_DIRECTORY`, `$XDG_RUNTIME_DIR/leasehold` or `/run/leasehold`"), example "unix:/run/leasehold/admin.sock";
        /// Permissions of the socket, in octal. Any process that can write to the socket can drain services.
        mode: Option<Mode> = Unset("`0660` with `group`, else `0600`"), example "0660";
        /// The group of the socket, by its name or its number.
        group: Option<Text> = Unset("the group of the host"), example "operators";
        /// Permits an address that other machines can reach.
        remote: Switch = Default("false");
        /// A file with the token of commands over TCP, 16 characters or more; read again for each.
        token_file: Option<Readable> = Unset("none"), example "/run/secrets/leasehold";
        /// TLS on the address; with `client_ca`, every client needs a certificate, and may send commands.
        tls: Option<ListenTls> = Unset("plain text");
    }
}

keys! {
    /// A listener for health and metrics alone. Its clients change nothing.
    pub(crate) struct Metrics {
        /// The address of the listener.
        listen: Listen = Required, example "0.0.0.0:9100";
    }
}

keys! {
    /// Traces, to an OpenTelemetry collector.
    pub(crate) struct Traces {
        /// The collector, which takes OTLP over gRPC.
        endpoint: Collector = Required;
        /// Share of the requests that are traced, where the caller has not decided.
        sample: Share = Default("1");
        /// Certificates of the authorities of the collector's certificate, as PEM; needed for `https`.
        ca: Option<Readable> = Unset("none"), example "collector-ca.pem";
        /// A file with headers for the collector, `NAME: VALUE`, one per line; read again for each batch.
        headers_file: Option<Readable> = Unset("none"), example "otlp-headers";
    }
}

keys! {
    /// Registries of components, and the cache for what is pulled; see [artifacts](artifacts.md).
    pub(crate) struct Artifacts {
        /// Registries that need more than their host. Others are spoken to over HTTPS, with the credentials of Docker's configuration if it has some.
        registries: Vec<ArtifactRegistry> = Unset("none"), example "[{ host: 'registry.example:5000', ca: registry-ca.pem }]";
        /// Size of the cache. Beyond, components that were not used for the longest time are removed.
        cache_size: Size = Default("4GiB"), example "1GiB";
        /// Interval at which `run --watch` looks where a tag leads.
        poll: Span = Default("30s"), example "5m";
    }
}

keys! {
    /// A registry of components.
    pub(crate) struct ArtifactRegistry {
        /// Its host, with the port if it has one in references.
        host: Text = Required, example "registry.example:5000";
        /// The user. Without a user, `password` is a token.
        username: Option<Text> = Unset("that of Docker's configuration"), example "ci";
        /// The password. `password_file` is read again for each pull; this is not.
        password: Option<Secret> = Unset("that of Docker's configuration");
        /// A file with the password; a line break at its end is ignored.
        password_file: Option<Readable> = Unset("none"), example "/run/secrets/registry";
        /// Certificates of the authorities of its certificate, as PEM, besides those that the system trusts; read again for each pull.
        ca: Option<Readable> = Unset("none"), example "registry-ca.pem";
        /// Hosts that are tried before it, in this order.
        mirrors: Vec<Text> = Unset("none"), example "['mirror.example:5000']";
        /// Speaks HTTP, which protects neither secrets nor components.
        plain_http: Switch = Default("false");
    }
}

keys! {
    /// A service: a component, its address and its policy.
    pub(crate) struct Service {
        /// The name of the service, in etcd and in the log. A component with `register: component` reads it in `wasi:config/store` as `name`.
        name: ServiceName = Required;
        /// The file of the component, or a reference to it in a registry, by tag or by digest.
        component: Origin = Required;
        /// The address of the listener: HTTP/1.1 and HTTP/2 on one port; of a program, the address that it listens on itself.
        listen: Listen = Required;
        /// The address that clients get, where it differs; port `0` is the port of the listener. A wildcard listener needs one.
        advertise: Option<Advertise> = Unset("`listen`");
        /// The version of the service. A component with `register: component` reads it in `wasi:config/store` as `version`.
        version: Option<Version> = Unset("none");
        /// Source of the registration: the component itself, the host, or neither.
        register: Register = Default("component");
        /// TLS on the listener; absent, plain text.
        tls: Option<ListenTls> = Unset("plain text");
        /// The layouts of this service, where they differ from those of `registry`.
        layout: Option<Layouts> = Unset("`registry.layout`");
        /// Metadata of the node, with `register: host`.
        metadata: Option<Pairs> = Unset("none"), example "{ zone: b }";
        /// Values that the component reads through `wasi:config/store`; they may be secrets.
        config: Variables = Unset("none"), example "{ greeting: hello }";
        /// Arguments of the component, after its name.
        args: Vec<Text> = Unset("none"), example "[--verbose]";
        /// Environment variables of the component; they may be secrets.
        env: Variables = Unset("none"), example "{ LEVEL: info }";
        /// Rights of the component beyond responding to requests.
        allow: Allow = Unset("");
        /// Limits of the component.
        limits: Limits = Unset("");
        /// The access log: one line for each request, for those with an error, or for none; see [log](log.md#access-log).
        access_log: AccessLogRule = Default("errors");
        /// Health checks, and when a failing service is withdrawn; see [health](health.md).
        health: Option<Health> = Unset("no check");
        /// Ends the whole host if this service does not start. Otherwise the start is tried again.
        required: Switch = Default("false");
        /// Files of public keys, as `cosign` writes them. One of the keys has to have signed the component, which is from a registry.
        verify: Vec<FilePath> = Unset("no signature is needed"), example "[cosign.pub]";
        /// Permits a component that is compiled already, as `leasehold compile` makes it. It is machine code that no sandbox holds.
        precompiled: Switch = Default("false");
    }
}

keys! {
    /// TLS on the listener. The files are read again when they change.
    pub(crate) struct ListenTls {
        /// The certificate, then those that lead to its authority, as PEM.
        cert: FilePath = Required, example "tls/cert.pem";
        /// The private key of `cert`, as PEM.
        key: FilePath = Required, example "tls/key.pem";
        /// Certificates of authorities, as PEM; clients need a certificate of one of them.
        client_ca: Option<FilePath> = Unset("no client certificates"), example "tls/clients.pem";
    }
}

keys! {
    /// Rights of the component beyond responding to requests.
    pub(crate) struct Allow {
        /// Names that it may register.
        names: Option<Vec<Pattern>> = Unset("the name of the service"), example "[greeter]";
        /// Names that it may look up and call.
        discover: Vec<Pattern> = Unset("none"), example "[user, order]";
        /// Hosts that it may send requests to, and a program connect to; see [limits](limits.md#outgoing-requests).
        outbound: Vec<Destination> = Unset("none"), example "[api.example:443]";
        /// Permits local addresses without an entry of their own.
        local: Switch = Default("false");
        /// Clients that may send requests, by a name in their certificate; others get 403. It needs `tls.client_ca`.
        callers: Option<Vec<Text>> = Unset("every client"), example "[shop, 'spiffe://mesh/shop']";
    }
}

keys! {
    /// Limits of the component; see [limits](limits.md).
    pub(crate) struct Limits {
        /// Linear memory of one instance. Beyond, its allocation fails.
        memory: Memory = Default("64MiB"), example "16MiB";
        /// Time until a response begins; every wait of an outgoing request. Beyond, 504.
        request_timeout: Span = Default("30s"), example "3s";
        /// Time for a response that has begun. Beyond, it is broken off.
        stream_timeout: Option<Span> = Unset("`request_timeout`"), example "10m";
        /// Concurrent requests; the same number waits in the queue. Beyond, 503.
        concurrency: Count = Default("200"), example "50";
        /// Open connections of the listener. Beyond, connections wait in the kernel's queue.
        connections: Count = Default("4096"), example "1000";
        /// Concurrent requests of the component. Beyond, they wait.
        outgoing: Count = Default("256"), example "32";
        /// Nodes of a service in one result of `resolve`. Beyond, the result is a subset.
        nodes: Count = Default("1000"), example "100";
        /// The headers of a request. Beyond, 431.
        header_size: HeaderSize = Default("64KiB");
        /// The body of a request. Beyond, 413.
        body_size: Size = Default("64MiB"), example "1MiB";
        /// Lines per second that the component prints to the log. Beyond, lines are left out.
        output_lines: Count = Default("100"), example "1000";
        /// Time for a silent client, half-sent headers, a response that is not read, and an idle connection.
        client_timeout: Span = Default("30s"), example "10s";
        /// Requests that one instance serves until it is replaced.
        instance_requests: Option<Count> = Unset("`1` for `wasi:http` 0.2, `1000` for 0.3"), example "1000";
        /// Concurrent requests in one instance.
        instance_concurrency: Option<Count> = Unset("`1` for `wasi:http` 0.2, `16` for 0.3"), example "16";
        /// Time for `lifecycle.start`, or for a program to listen, including the registration.
        start_timeout: Span = Default("20s");
        /// Time for `lifecycle.stop`.
        stop_timeout: Span = Default("5s"), example "10s";
        /// Time to accept requests after the keys are deleted, for clients that have yet to hear of it; see [draining](draining.md).
        settle_time: Span = Default("500ms"), example "2s";
        /// Time for requests in flight when the service ends. Beyond, they are cut off.
        drain_timeout: Span = Default("30s"), example "1m";
    }
}

impl Copy for Limits {}

impl std::default::Default for Limits {
    fn default() -> Self {
        Self::absent().expect("no limit is required, and a test reads every default")
    }
}

impl Limits {
    /// Time for a response that has begun.
    pub(crate) fn stream_timeout(&self) -> Duration {
        self.stream_timeout.unwrap_or(self.request_timeout)
    }

    /// Time until a response begins, at most.
    pub(crate) fn longest_wait(&self) -> Duration {
        self.request_timeout.max(self.stream_timeout())
    }
}

keys! {
    /// The access log. `access_log: all` is short for `access_log: { log: all }`.
    pub(crate) struct AccessLog {
        /// Requests with a line: none; those whose response is an error of the server, breaks off or does not begin before the client leaves; or all.
        log: Logged = Default("errors");
        /// Lines of the log on standard error, as `--log-format` has it; or on standard output as JSON, or in the Combined Log Format of web servers.
        format: AccessFormat = Default("log");
        /// Share of the requests without an error that have a line, with `log: all`.
        sample: Share = Default("1"), example "0.01";
        /// Logs the query as well, which may hold a secret.
        query: Switch = Default("false");
        /// Lines per second. Beyond, lines are left out, and their number is logged.
        lines: Count = Default("1000"), example "10000";
    }
}

impl Copy for AccessLog {}

impl std::default::Default for AccessLog {
    fn default() -> Self {
        Self::absent().expect("no key of the access log is required, and a test reads every default")
    }
}

/// The access log as one word, or as a map.
pub(crate) enum AccessLogRule {}

impl Rule for AccessLogRule {
    type Value = AccessLog;

    fn shape() -> Shape {
        match Logged::shape() {
            Shape::Scalar(word) => Shape::WordOrTable(word, AccessLog::table()),
            shape => shape,
        }
    }

    fn read(node: &Node, reading: &mut Reading) -> Option<AccessLog> {
        match node.content {
            Content::Map(_) => AccessLog::read(node, reading),
            _ => Some(AccessLog { log: Logged::read(node, reading)?, ..AccessLog::default() }),
        }
    }
}

keys! {
    /// Health checks, and when a failing service is withdrawn.
    pub(crate) struct Health {
        /// Sends `GET` to this path; a status from 200 to 299 is healthy.
        path: Option<HealthPath> = Unset("no check over HTTP");
        /// Checks with `grpc.health.v1` for the whole server; `SERVING` is healthy.
        grpc: Switch = Default("false");
        /// Time between two checks.
        interval: Span = Default("2s"), example "5s";
        /// Time for a response of a check. Beyond, the check has failed.
        timeout: Span = Default("1s"), example "500ms";
        /// Successful checks in a row until the service is announced.
        rise: Count = Default("2"), example "1";
        /// Failed checks in a row until the service is withdrawn.
        fall: Count = Default("3"), example "5";
        /// Share of the nodes of its names that has to remain when a failing service is withdrawn; with or without a check.
        panic_threshold: Percentage = Default("50%"), example "34%";
        /// Withdraws a service whose instances trap however many nodes remain.
        withdraw_on_trap: Switch = Default("false");
    }
}

/// Keys of all services: those of [`Service`] but for the name, none of them required.
#[derive(Debug, Clone)]
pub(crate) struct Defaults;

impl Rule for Defaults {
    type Value = Self;

    fn shape() -> Shape {
        let mut table = Service::table();
        table.about = "Keys of all services.".to_owned();
        table.keys.retain(|key| key.name != "name");
        table.require_nothing();
        Shape::Table(table)
    }

    /// Only looks for mistakes: each service has been merged with its defaults before it is read.
    fn read(node: &Node, reading: &mut Reading) -> Option<Self> {
        if let Some(name) = node.get("name") {
            reading.wrong(name.place, "each service has a name of its own");
        }
        let before = reading.mistakes.len();
        reading.is_partial = true;
        let _ = Service::read(node, reading); // Only its mistakes count.
        reading.is_partial = false;
        (reading.mistakes.len() == before).then_some(Self)
    }

    fn absent() -> Option<Self> {
        Some(Self)
    }
}
