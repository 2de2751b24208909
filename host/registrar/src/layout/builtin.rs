//! The built-in layouts: conventions of other ecosystems, as data.

/// A built-in layout.
pub(super) struct Convention {
    pub(super) name: &'static str,
    pub(super) prefix: &'static str,
    pub(super) scheme: &'static str,
    /// Template of a key.
    pub(super) key: &'static str,
    /// Template of a value.
    pub(super) value: &'static str,
}

/// Conventions in the versions that are in use in 2026. Go writes the fields of a struct in their order, and a map in the
/// order of its keys.
pub(super) const BUILT_IN: [Convention; 10] = [
    Convention {
        name: "seed",
        prefix: "",
        scheme: "",
        key: "{prefix}/{name}/{version/}{addr}",
        value: r#"{"name":"{name}","addr":"{addr}","version":"{version}","weight":"{weight}"}"#,
    },
    Convention {
        name: "grpc-todolist",
        prefix: "",
        scheme: "",
        key: "{prefix}/{name}/{version/}{addr}",
        value: r#"{"name":"{name}","addr":"{addr}","version":"{version}","weight":"{weight:number}"}"#,
    },
    Convention {
        name: "kratos",
        prefix: "/microservices",
        scheme: "grpc",
        key: "{prefix}/{name}/{id}",
        value: r#"{"id":"{id}","name":"{name}","version":"{version}","metadata":{"weight":"{weight}","...":1},"endpoints":["{scheme}://{addr}"]}"#,
    },
    Convention { name: "go-zero", prefix: "", scheme: "", key: "{prefix/}{name}/{id}", value: "{addr}" },
    Convention {
        name: "kitex",
        prefix: "kitex/registry-etcd",
        scheme: "",
        key: "{prefix}/{name}/{addr}",
        value: r#"{"network":"tcp","address":"{addr}","weight":"{weight:number}","tags":"{metadata|null}"}"#,
    },
    Convention {
        name: "hertz",
        prefix: "hertz/registry-etcd",
        scheme: "",
        key: "{prefix}/{name}/{addr}",
        value: r#"{"network":"tcp","address":"{addr}","weight":"{weight:number}","tags":"{metadata|null}"}"#,
    },
    Convention {
        name: "go-micro",
        prefix: "/micro/registry",
        scheme: "",
        key: "{prefix}/{name}/{name}-{id}",
        value: r#"{"name":"{name}","version":"{version|latest}","metadata":null,"endpoints":[],"nodes":[{"metadata":"{metadata}","id":"{name}-{id}","address":"{addr}"}]}"#,
    },
    Convention {
        name: "rpcx",
        prefix: "/rpcx",
        scheme: "",
        key: "{prefix}/{name}/tcp@{addr}",
        value: "?weight={weight}&...",
    },
    Convention {
        name: "goframe",
        prefix: "/service/default/default",
        scheme: "http",
        key: "{prefix}/{name}/{version|latest}/{addr}",
        value: r#"{"insecure":true,"protocol":"{scheme}","...":1}"#,
    },
    Convention {
        name: "etcd-naming",
        prefix: "",
        scheme: "",
        key: "{prefix/}{name}/{label}",
        value: r#"{"Op":0,"Addr":"{addr}","Metadata":"{metadata|null}"}"#,
    },
];

/// Prefixes that belong to a registry, each with the layout that may write there. A service with such a name under another
/// layout would write its keys among theirs, and read theirs as its own.
pub(super) const FOREIGN_PREFIXES: [(&str, &str); 6] = [
    ("/microservices/", "kratos"),
    ("kitex/", "kitex"),
    ("hertz/", "hertz"),
    ("/micro/", "go-micro"),
    ("/rpcx/", "rpcx"),
    ("/service/", "goframe"),
];
