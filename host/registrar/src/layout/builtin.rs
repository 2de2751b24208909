//! The conventions that ship with Leasehold, as data.

/// A row of the table below: name, prefix, scheme, key, value.
pub(super) type Row = [&'static str; 5];

/// What each ecosystem writes, as of the versions in use in 2026. Go writes structs in the order of their fields and maps
/// in the order of their keys.
#[rustfmt::skip]
pub(super) const BUILT_IN: [Row; 10] = [
    ["seed", "", "", "{prefix}/{name}/{version/}{addr}",
        r#"{"name":"{name}","addr":"{addr}","version":"{version}","weight":"{weight}"}"#],
    ["grpc-todolist", "", "", "{prefix}/{name}/{version/}{addr}",
        r#"{"name":"{name}","addr":"{addr}","version":"{version}","weight":"{weight:number}"}"#],
    ["kratos", "/microservices", "grpc", "{prefix}/{name}/{id}",
        r#"{"id":"{id}","name":"{name}","version":"{version}","metadata":{"weight":"{weight}","...":1},"endpoints":["{scheme}://{addr}"]}"#],
    ["go-zero", "", "", "{prefix/}{name}/{id}", "{addr}"],
    ["kitex", "kitex/registry-etcd", "", "{prefix}/{name}/{addr}",
        r#"{"network":"tcp","address":"{addr}","weight":"{weight:number}","tags":"{metadata|null}"}"#],
    ["hertz", "hertz/registry-etcd", "", "{prefix}/{name}/{addr}",
        r#"{"network":"tcp","address":"{addr}","weight":"{weight:number}","tags":"{metadata|null}"}"#],
    ["go-micro", "/micro/registry", "", "{prefix}/{name}/{name}-{id}",
        r#"{"name":"{name}","version":"{version|latest}","metadata":null,"endpoints":[],"nodes":[{"metadata":"{metadata}","id":"{name}-{id}","address":"{addr}"}]}"#],
    ["rpcx", "/rpcx", "", "{prefix}/{name}/tcp@{addr}", "?weight={weight}&..."],
    ["goframe", "/service/default/default", "http", "{prefix}/{name}/{version|latest}/{addr}",
        r#"{"insecure":true,"protocol":"{scheme}","...":1}"#],
    ["etcd-naming", "", "", "{prefix/}{name}/{label}", r#"{"Op":0,"Addr":"{addr}","Metadata":"{metadata|null}"}"#],
];

/// First segments of keys that belong to other registries in the same etcd. A service of that name would write its keys
/// among theirs, and read theirs as its own.
pub(super) const FOREIGN_PREFIXES: [(&str, &str); 6] = [
    ("/microservices/", "kratos"),
    ("kitex/", "kitex"),
    ("hertz/", "hertz"),
    ("/micro/", "go-micro"),
    ("/rpcx/", "rpcx"),
    ("/service/", "goframe"),
];
