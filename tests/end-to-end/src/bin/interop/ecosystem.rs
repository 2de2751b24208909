//! The ecosystems: each library with its layout, its client, and its known faults.

use std::path::PathBuf;

use leasehold_end_to_end::paths;
use serde_json::{Value, json};

use crate::step::Step;

/// Protocol of a library's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// `GET /` over HTTP.
    Http,
    /// `grpc.health.v1.Health/Check` over gRPC.
    Grpc,
    /// A protocol of its own, so the library finds and does not call; its server also responds to `GET /`.
    Own,
}

/// Language of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Go,
    Python,
}

/// A folder of services.
#[derive(Debug)]
pub(crate) enum Folder {
    /// The prefix of the layout is the folder.
    Prefix(&'static str),
    /// The name in the value has the folder, too: kratos ignores a value whose name is not the dialled one.
    Kratos(&'static str),
}

impl Folder {
    fn name(&self) -> &'static str {
        match self {
            Self::Prefix(name) | Self::Kratos(name) => name,
        }
    }
}

/// One library, with its expected results.
#[derive(Debug)]
pub(crate) struct Ecosystem {
    /// The name of its row, and of its program under `tests/interop`, which serves the row with `-grpc`, too.
    pub(crate) name: &'static str,
    pub(crate) language: Language,
    /// The modules whose versions are under test, as named in `go.mod` or `requirements.txt`.
    pub(crate) modules: &'static [&'static str],
    /// The layout that it reads and writes.
    pub(crate) layout: &'static str,
    /// Folder of the services that it calls, in their keys and in their names as it dials them: with a `/` in the name its gRPC
    /// client sends a percent-encoded authority.
    pub(crate) folder: Option<Folder>,
    /// The scheme of the addresses, if the layout publishes a scheme other than its default.
    pub(crate) scheme: Option<&'static str>,
    pub(crate) transport: Transport,
    /// The version of its services; empty if the library has no place for it.
    pub(crate) version: &'static str,
    pub(crate) weight: bool,
    pub(crate) metadata: bool,
    /// Longest time until its client acts on a change in etcd; the service's `settle_time`.
    pub(crate) settle_time: &'static str,
    /// Known faults of the library: the step, and the reason. A success of such a step is an error, too.
    pub(crate) known: &'static [(Step, &'static str)],
}

impl Ecosystem {
    /// Its layout, as in a configuration.
    pub(crate) fn layout(&self) -> Value {
        match self.scheme {
            Some(scheme) => json!({ "name": self.layout, "scheme": scheme }),
            None => json!(self.layout),
        }
    }

    /// Layout of the services that it calls.
    pub(crate) fn layout_of_calls(&self) -> Value {
        match &self.folder {
            None => self.layout(),
            Some(Folder::Prefix(folder)) => json!({ "name": self.layout, "prefix": folder }),
            Some(Folder::Kratos(folder)) => json!({
                "key": format!("/microservices/{folder}/{{name}}/{{id}}"),
                "value": format!(
                    r#"{{"id":"{{id}}","name":"{folder}/{{name}}","version":"{{version}}","metadata":{{"weight":"{{weight}}","...":1}},"endpoints":["{}://{{addr}}"]}}"#,
                    self.scheme.unwrap_or("grpc")
                ),
            }),
        }
    }

    /// Name of a service as it dials it.
    pub(crate) fn dialled(&self, name: &str) -> String {
        self.folder.as_ref().map_or_else(|| name.to_owned(), |folder| format!("{}/{name}", folder.name()))
    }

    /// Its program, and the arguments before those of every peer.
    pub(crate) fn program(&self) -> (PathBuf, Option<PathBuf>) {
        let (built, sources) = (paths::workspace().join("target/interop"), paths::workspace().join("tests/interop"));
        match self.language {
            Language::Go => (built.join(self.name.trim_end_matches("-grpc")), None),
            Language::Python => {
                let script = sources.join("python").join(format!("{}_peer.py", self.name));
                (built.join("python/bin/python"), Some(script))
            }
        }
    }

    /// The reason why a step is known to fail, if it is.
    pub(crate) fn known(&self, step: Step) -> Option<&'static str> {
        self.known.iter().find(|(of, _)| *of == step).map(|(_, why)| *why)
    }
}

/// All of them, in the order of the table.
pub(crate) const ALL: [Ecosystem; 12] = [
    Ecosystem {
        name: "etcd-naming",
        language: Language::Go,
        modules: &["google.golang.org/grpc", "go.etcd.io/etcd/client/v3"],
        layout: "etcd-naming",
        folder: Some(Folder::Prefix("foo/bar")),
        scheme: None,
        transport: Transport::Grpc,
        version: "",
        weight: false,
        metadata: true,
        settle_time: "500ms",
        known: &[],
    },
    Ecosystem {
        name: "kratos",
        language: Language::Go,
        modules: &["github.com/go-kratos/kratos/v2"],
        layout: "kratos",
        folder: Some(Folder::Kratos("foo")),
        scheme: Some("http"),
        transport: Transport::Http,
        version: "v1",
        weight: true,
        metadata: true,
        settle_time: "500ms",
        known: &[(Step::Forgets, "its HTTP client refuses an empty list and keeps the last one")],
    },
    Ecosystem {
        name: "kratos-grpc",
        language: Language::Go,
        modules: &["github.com/go-kratos/kratos/v2"],
        layout: "kratos",
        folder: Some(Folder::Kratos("foo")),
        scheme: None,
        transport: Transport::Grpc,
        version: "v1",
        weight: true,
        metadata: true,
        settle_time: "500ms",
        known: &[(Step::Forgets, "its gRPC client refuses an empty list and keeps the last one")],
    },
    Ecosystem {
        name: "go-zero",
        language: Language::Go,
        modules: &["github.com/zeromicro/go-zero"],
        layout: "go-zero",
        folder: None,
        scheme: None,
        transport: Transport::Grpc,
        version: "",
        weight: false,
        metadata: false,
        settle_time: "500ms",
        known: &[],
    },
    Ecosystem {
        name: "kitex",
        language: Language::Go,
        modules: &["github.com/cloudwego/kitex"],
        layout: "kitex",
        folder: None,
        scheme: None,
        transport: Transport::Grpc,
        version: "",
        weight: true,
        metadata: true,
        settle_time: "6s",
        known: &[(Step::Forgets, "none left is an error to its resolver, and its client keeps what it has")],
    },
    Ecosystem {
        name: "hertz",
        language: Language::Go,
        modules: &["github.com/cloudwego/hertz"],
        layout: "hertz",
        folder: None,
        scheme: None,
        transport: Transport::Http,
        version: "",
        weight: true,
        metadata: true,
        settle_time: "6s",
        known: &[],
    },
    Ecosystem {
        name: "go-micro",
        language: Language::Go,
        modules: &["go-micro.dev/v5"],
        layout: "go-micro",
        folder: None,
        scheme: None,
        transport: Transport::Grpc,
        version: "v1",
        weight: false,
        metadata: true,
        settle_time: "500ms",
        known: &[],
    },
    Ecosystem {
        name: "rpcx",
        language: Language::Go,
        modules: &["github.com/smallnest/rpcx"],
        layout: "rpcx",
        folder: None,
        scheme: None,
        transport: Transport::Own,
        version: "",
        weight: true,
        metadata: true,
        settle_time: "500ms",
        known: &[],
    },
    Ecosystem {
        name: "goframe",
        language: Language::Go,
        modules: &["github.com/gogf/gf/v2"],
        layout: "goframe",
        folder: None,
        scheme: None,
        transport: Transport::Http,
        version: "latest",
        weight: false,
        metadata: true,
        settle_time: "2s",
        known: &[(Step::Forgets, "its HTTP client refuses an empty list and keeps the last one")],
    },
    Ecosystem {
        name: "etcd3",
        language: Language::Python,
        modules: &["etcd3"],
        layout: "seed",
        folder: None,
        scheme: None,
        transport: Transport::Http,
        version: "v1",
        weight: true,
        metadata: false,
        settle_time: "500ms",
        known: &[],
    },
    Ecosystem {
        name: "etcd3gw",
        language: Language::Python,
        modules: &["etcd3gw"],
        layout: "seed",
        folder: None,
        scheme: None,
        transport: Transport::Http,
        version: "v1",
        weight: true,
        metadata: false,
        settle_time: "500ms",
        known: &[],
    },
    Ecosystem {
        name: "aetcd",
        language: Language::Python,
        modules: &["aetcd"],
        layout: "seed",
        folder: None,
        scheme: None,
        transport: Transport::Http,
        version: "v1",
        weight: true,
        metadata: false,
        settle_time: "500ms",
        known: &[],
    },
];
