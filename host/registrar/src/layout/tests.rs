//! Layouts, byte for byte, and read back.

use super::Layout;
use crate::{
    layout::template::FieldValues,
    node::{Metadata, ServerNode},
};

fn layout(name: &str) -> Layout {
    name.parse().unwrap()
}

fn node(name: &str, version: &str, addr: &str, metadata: &[(&str, &str)]) -> ServerNode {
    let pairs = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>();
    let metadata = Metadata::try_from(pairs).unwrap();
    ServerNode { version: version.parse().unwrap(), metadata, ..ServerNode::new(name, addr).unwrap() }
}

fn published(layout: &Layout, node: &ServerNode, weight: u32) -> (String, String) {
    let value = layout.value(node, weight.try_into().unwrap());
    (layout.key(node), String::from_utf8(value).unwrap())
}

/// FNV-1a as published by its authors, independent of `template`.
fn id(text: &str) -> u64 {
    let mut hash: u64 = 14_695_981_039_346_656_037;
    for byte in text.bytes() {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(1_099_511_628_211);
    }
    hash % (1 << 63)
}

#[test]
fn an_id_is_fnv_1a_without_its_sign() {
    // The test vectors of the hash's authors: "" and "foobar".
    assert_eq!(id(""), 0xcbf2_9ce4_8422_2325 & (u64::MAX >> 1));
    assert_eq!(id("foobar"), 0x8594_4171_f739_67e8 & (u64::MAX >> 1));
    let id_of = |name, version, addr| {
        let values = FieldValues { name, addr, version, weight: 1, metadata: &[] };
        crate::layout::template::TextTemplate::parse("{id}").unwrap().write(&values)
    };
    assert_eq!(id_of("user", "v1", "10.0.0.5:80"), id("user/v1/10.0.0.5:80").to_string());
}

/// Keys and values of real services of each ecosystem, byte for byte.
#[test]
fn every_layout_byte_for_byte() {
    let kratos = id("helloworld/v1.0.0/10.0.0.5:9000");
    let zero = id("user.rpc//10.0.0.5:8080");
    let micro = id("user//10.0.0.5:8080");
    let cases: Vec<(&str, ServerNode, u32, String, String)> = vec![
        (
            "seed",
            node("user", "", "127.0.0.1:10002", &[]),
            73,
            "/user/127.0.0.1:10002".to_owned(),
            r#"{"name":"user","addr":"127.0.0.1:10002","version":"","weight":"73"}"#.to_owned(),
        ),
        (
            "seed",
            node("user", "v1", "127.0.0.1:8080", &[("dropped", "x")]),
            73,
            "/user/v1/127.0.0.1:8080".to_owned(),
            r#"{"name":"user","addr":"127.0.0.1:8080","version":"v1","weight":"73"}"#.to_owned(),
        ),
        (
            "grpc-todolist",
            node("user", "v1", "127.0.0.1:8080", &[]),
            73,
            "/user/v1/127.0.0.1:8080".to_owned(),
            r#"{"name":"user","addr":"127.0.0.1:8080","version":"v1","weight":73}"#.to_owned(),
        ),
        (
            "kratos",
            node("helloworld", "v1.0.0", "10.0.0.5:9000", &[]),
            10,
            format!("/microservices/helloworld/{kratos}"),
            format!(
                r#"{{"id":"{kratos}","name":"helloworld","version":"v1.0.0","metadata":{{"weight":"10"}},"endpoints":["grpc://10.0.0.5:9000"]}}"#
            ),
        ),
        (
            "kratos",
            node("helloworld", "v1.0.0", "10.0.0.5:9000", &[("zone", "b"), ("env", "a&b")]),
            10,
            format!("/microservices/helloworld/{kratos}"),
            format!(
                r#"{{"id":"{kratos}","name":"helloworld","version":"v1.0.0","metadata":{{"env":"a\u0026b","weight":"10","zone":"b"}},"endpoints":["grpc://10.0.0.5:9000"]}}"#
            ),
        ),
        (
            "go-zero",
            node("user.rpc", "", "10.0.0.5:8080", &[]),
            1,
            format!("user.rpc/{zero}"),
            "10.0.0.5:8080".to_owned(),
        ),
        (
            "kitex",
            node("user", "", "10.0.0.5:8888", &[]),
            10,
            "kitex/registry-etcd/user/10.0.0.5:8888".to_owned(),
            r#"{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":null}"#.to_owned(),
        ),
        (
            "hertz",
            node("user", "", "10.0.0.5:8888", &[("zone", "b"), ("env", "a")]),
            10,
            "hertz/registry-etcd/user/10.0.0.5:8888".to_owned(),
            r#"{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":{"env":"a","zone":"b"}}"#.to_owned(),
        ),
        (
            "go-micro",
            node("user", "", "10.0.0.5:8080", &[]),
            10,
            format!("/micro/registry/user/user-{micro}"),
            format!(
                r#"{{"name":"user","version":"latest","metadata":null,"endpoints":[],"nodes":[{{"metadata":{{}},"id":"user-{micro}","address":"10.0.0.5:8080"}}]}}"#
            ),
        ),
        (
            "rpcx",
            node("Arith", "", "127.0.0.1:8972", &[]),
            10,
            "/rpcx/Arith/tcp@127.0.0.1:8972".to_owned(),
            "weight=10".to_owned(),
        ),
        (
            "rpcx",
            node("Arith", "", "127.0.0.1:8972", &[("zone", "é b/c"), ("group", "a")]),
            10,
            "/rpcx/Arith/tcp@127.0.0.1:8972".to_owned(),
            "group=a&weight=10&zone=%C3%A9+b%2Fc".to_owned(),
        ),
        (
            "goframe",
            node("hello.svc", "", "192.168.1.2:8000", &[]),
            10,
            "/service/default/default/hello.svc/latest/192.168.1.2:8000".to_owned(),
            r#"{"insecure":true,"protocol":"http"}"#.to_owned(),
        ),
        (
            "etcd-naming",
            node("foo", "", "1.2.3.4:8080", &[]),
            10,
            "foo/1.2.3.4:8080".to_owned(),
            r#"{"Op":0,"Addr":"1.2.3.4:8080","Metadata":null}"#.to_owned(),
        ),
    ];
    for name in Layout::NAMES.iter().copied() {
        assert!(cases.iter().any(|(of, ..)| *of == name), "{name} has no case");
    }
    for (name, node, weight, key, value) in cases {
        assert_eq!(published(&layout(name), &node, weight), (key, value), "{name}");
    }
}

#[test]
fn published_nodes_read_back_under_every_layout() {
    for name in Layout::NAMES.iter().copied() {
        let layout = layout(name);
        for original in [
            node("user", "", "127.0.0.1:1", &[]),
            node("a<b>&\"", "v1", "[::1]:2", &[("zone", "a=b&c d")]),
            node("user.rpc", "v1.0-rc", "example.org:3", &[("empty", "")]),
        ] {
            let (key, value) = published(&layout, &original, 7);
            let read = layout.parse(key.as_bytes(), value.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((&read.name, &read.addr), (&original.name, &original.addr), "{name}");
            assert!(key.starts_with(&layout.prefix(&original.name, &original.version)), "{name}: {key}");
            assert!(key.starts_with(&layout.root()), "{name}: {key}");
            // Published again it is the same, so nothing that the layout carries was lost; but go-zero carries no
            // version, of which our id is made.
            let again = published(&layout, &read, 7);
            assert_eq!(again.1, value, "{name}");
            assert!(again.0 == key || name == "go-zero", "{name}: {key} {}", again.0);
            if value_has_weight(name) {
                assert_eq!(read.weight, Some(7.try_into().unwrap()), "{name}");
            }
        }
    }
}

fn value_has_weight(name: &str) -> bool {
    !["go-zero", "go-micro", "goframe", "etcd-naming"].contains(&name)
}

/// Keys and values of the libraries themselves, which differ from ours in details.
#[test]
fn values_of_other_libraries_are_read() {
    let read = |name: &str, key: &str, value: &str| layout(name).parse(key.as_bytes(), value.as_bytes());
    let kratos = r#"{"id":"8a1f","name":"user","version":"v2","metadata":null,"endpoints":["http://10.0.0.1:80","grpc://10.0.0.1:90"]}"#;
    let found = read("kratos", "/microservices/user/8a1f", kratos).unwrap();
    assert_eq!((found.addr.as_str(), found.version.as_str(), found.weight), ("10.0.0.1:90", "v2", None));
    let found = read("go-zero", "user.rpc/7587848943239875124", "10.0.0.5:8080").unwrap();
    assert_eq!((found.name.as_str(), found.addr.as_str()), ("user.rpc", "10.0.0.5:8080"));
    let micro = r#"{"name":"user","version":"latest","metadata":{"a":"b"},"endpoints":[{"name":"X"}],"nodes":[{"metadata":{"protocol":"grpc"},"id":"user-aa-bb","address":"h:1"}]}"#;
    let found = read("go-micro", "/micro/registry/user/user-aa-bb", micro).unwrap();
    assert_eq!((found.addr.as_str(), found.metadata.pairs()[0].0.as_str()), ("h:1", "protocol"));
    let micro = r#"{"name":"user","version":"v1","metadata":null,"endpoints":null,"nodes":[{"metadata":null,"id":"user-1","address":"h:1"}]}"#;
    let found = read("go-micro", "/micro/registry/user/user-1", micro).unwrap();
    assert_eq!((found.addr.as_str(), found.version.as_str()), ("h:1", "v1"));
    let found = read("rpcx", "/rpcx/Arith/tcp@h:1", "").unwrap();
    assert_eq!((found.addr.as_str(), found.weight), ("h:1", None));
    let kitex = r#"{"network":"tcp","address":"h:1","weight":250,"tags":{"zone":"b"}}"#;
    let found = read("kitex", "kitex/registry-etcd/user/h:1", kitex).unwrap();
    assert_eq!(found.weight, Some(100.try_into().unwrap()));
    let found = read("goframe", "/service/default/default/hello/v1/h:1", "{}").unwrap();
    assert_eq!((found.version.as_str(), found.addr.as_str()), ("v1", "h:1"));
    let found = read("etcd-naming", "svc/h:1", r#"{"Op":0,"Addr":"h:1","Metadata":{"Weight":3}}"#).unwrap();
    assert_eq!(found.metadata.pairs(), [("Weight".to_owned(), "3".to_owned())]);
}

/// The last segment of a key of etcd's endpoints manager is chosen by the caller of its API.
#[test]
fn the_last_segment_of_etcds_own_naming_says_nothing() {
    let naming = layout("etcd-naming").with_prefix("foo/bar").unwrap();
    let value = r#"{"Op":0,"Addr":"1.2.3.4:8080","Metadata":null}"#;
    let found = naming.parse(b"foo/bar/my-service/e1", value.as_bytes()).unwrap();
    assert_eq!((found.name.as_str(), found.addr.as_str()), ("my-service", "1.2.3.4:8080"));
    assert_eq!(published(&naming, &found, 1), ("foo/bar/my-service/1.2.3.4:8080".to_owned(), value.to_owned()));
    assert!(naming.parse(b"foo/bar/my-service/e1/e2", value.as_bytes()).is_err());
    assert!(naming.parse(b"foo/bar/my-service/", value.as_bytes()).is_err());
}

#[test]
fn any_scheme_is_read_and_its_own_preferred() {
    let kratos = |scheme: &str, endpoints: &str| {
        let value = format!(r#"{{"id":"1","name":"user","version":"","metadata":{{}},"endpoints":[{endpoints}]}}"#);
        let layout = layout("kratos").with_scheme(scheme).unwrap();
        layout.read(b"/microservices/user/1", value.as_bytes()).map(|(node, tls)| (node.addr.to_string(), tls))
    };
    let found = |addr: &str, tls: bool| Ok((addr.to_owned(), tls));
    for own in ["http", "https", "grpc", "grpcs"] {
        for (scheme, tls) in [("http", false), ("https", true), ("grpc", false), ("grpcs", true), ("ws", false)] {
            assert_eq!(kratos(own, &format!(r#""{scheme}://h:1""#)), found("h:1", tls), "{own} {scheme}");
        }
    }
    let all = r#""http://h:1","https://h:2","grpcs://h:3","grpc://h:4","ws://h:5""#;
    for (own, addr, tls) in
        [("http", "h:1", false), ("https", "h:2", true), ("grpcs", "h:3", true), ("grpc", "h:4", false)]
    {
        assert_eq!(kratos(own, all), found(addr, tls));
    }
    // The same with TLS is nearer than another.
    assert_eq!(kratos("grpc", r#""http://h:1","grpcs://h:3""#), found("h:3", true));
    assert!(kratos("grpc", r#""h:1""#).is_err());
    let goframe = |layout: &Layout, value: &str| {
        layout
            .read(b"/service/default/default/user/v1/h:1", value.as_bytes())
            .map(|(node, tls)| (node.addr.to_string(), tls))
    };
    let own = layout("goframe");
    for layout in [&own, &own.with_tls()] {
        assert_eq!(goframe(layout, r#"{"insecure":true,"protocol":"http"}"#), found("h:1", false));
        assert_eq!(goframe(layout, r#"{"insecure":false,"protocol":"https"}"#), found("h:1", true));
        assert_eq!(goframe(layout, r#"{"insecure":true,"protocol":"grpc"}"#), found("h:1", false));
    }
}

#[test]
fn metadata_is_never_taken_for_the_weight() {
    for name in Layout::NAMES.iter().copied() {
        let layout = layout(name);
        let user = node("user", "v1", "h:1", &[("weight", "99"), ("protocol", "ftp")]);
        let (key, value) = published(&layout, &user, 7);
        let read = layout.parse(key.as_bytes(), value.as_bytes()).unwrap();
        assert!(read.weight.is_none_or(|weight| weight.value() == 7), "{name}: {value}");
    }
    let user = node("user", "v1", "h:1", &[("weight", "99")]);
    assert_eq!(published(&layout("rpcx"), &user, 7).1, "weight=7");
    assert!(published(&layout("kratos"), &user, 7).1.contains(r#""metadata":{"weight":"7"}"#));
}

#[test]
fn invalid_keys_and_values_are_refused_with_a_reason() {
    let parse = |key: &str, value: &str| Layout::default().parse(key.as_bytes(), value.as_bytes()).unwrap_err();
    assert_eq!(parse("/u/h:1", "").field, "value");
    assert_eq!(parse("/u/h:1", r#"{"name":"u","addr":"h:1","version":"","wei"#).field, "value");
    let number = parse("/u/h:1", r#"{"name":"u","addr":"h:1","version":"","weight":73}"#);
    assert_eq!(number.to_string(), "weight must be a string in JSON");
    assert_eq!(parse("/u/h:1", r#"{"name":"u","addr":"h:1","version":"","weight":"x"}"#).field, "weight");
    assert_eq!(parse("/u/h:1", "[1]").field, "value");
    assert_eq!(parse("/u/h:1", r#"{"name":"u","version":"","weight":"1"}"#).to_string(), "value must have addr");
    let differs = parse("/u/h:2", r#"{"name":"u","addr":"h:1","version":"","weight":"1"}"#);
    assert_eq!(differs.to_string(), "key must agree with its value");
    let deep = "[".repeat(100_000);
    assert_eq!(parse("/u/h:1", &deep).field, "value");
    for name in Layout::NAMES.iter().copied() {
        for (key, value) in [(&b"\xff"[..], &b"\xff"[..]), (b"", b""), (b"/", b"{}"), (b"a/b/c/d/e/f", b"null")] {
            assert!(layout(name).parse(key, value).is_err(), "{name} {key:?}");
        }
    }
}

#[test]
fn layouts_that_carry_metadata_are_known() {
    let none: Vec<_> = Layout::NAMES.iter().copied().filter(|name| !layout(name).carries_metadata()).collect();
    assert_eq!(none, ["seed", "grpc-todolist", "go-zero"]);
}

#[test]
fn a_name_under_a_foreign_prefix_is_refused() {
    let seed = Layout::default();
    assert!(seed.accept(&node("microservices", "helloworld", "h:1", &[])).is_err());
    assert!(seed.accept(&node("user", "", "h:1", &[])).is_ok());
    assert!(layout("kratos").accept(&node("user", "", "h:1", &[])).is_ok());
}

#[test]
fn tls_shows_in_layouts_that_publish_a_scheme() {
    let user = node("user", "v1", "10.0.0.5:80", &[]);
    let secured = |name: &str| published(&layout(name).with_tls(), &user, 73).1;
    assert!(secured("kratos").ends_with(r#""endpoints":["grpcs://10.0.0.5:80"]}"#));
    assert_eq!(secured("goframe"), r#"{"insecure":false,"protocol":"https"}"#);
    for name in Layout::NAMES.iter().copied().filter(|name| !["kratos", "goframe"].contains(name)) {
        assert_eq!(layout(name).with_tls(), layout(name));
    }
    let chosen = layout("kratos").with_scheme("grpcs").unwrap();
    assert_eq!(chosen.with_tls(), chosen);
}

#[test]
fn prefix_and_scheme_can_be_replaced() {
    let user = node("user", "v1", "h:1", &[]);
    assert_eq!(layout("seed").with_prefix("/prod/").unwrap().key(&user), "/prod/user/v1/h:1");
    assert_eq!(layout("etcd-naming").with_prefix("foo/bar").unwrap().key(&user), "foo/bar/user/h:1");
    assert_eq!(layout("etcd-naming").with_prefix("").unwrap().key(&user), "user/h:1");
    let kratos = layout("kratos").with_prefix("/x").unwrap().with_scheme("http").unwrap();
    assert!(published(&kratos, &user, 1).1.contains(r#""endpoints":["http://h:1"]"#));
    assert!(kratos.key(&user).starts_with("/x/user/"));
    let wrong = layout("seed").with_scheme("http").unwrap_err();
    assert_eq!(wrong.to_string(), "scheme has no place in the layout seed");
    assert!(layout("kratos").with_scheme("ht tp").is_err());
    assert!(layout("seed").with_prefix("/a b").is_err());
    assert!(layout("seed").with_prefix("{name}").is_err());
}

#[test]
fn a_layout_of_ones_own() {
    let user = node("user", "v1", "h:1", &[("zone", "b")]);
    let own = Layout::custom("/svc/{name}/{addr}", r#"{"at": "{addr}", "w": "{weight:number}", "m": "{metadata}"}"#);
    let own = own.unwrap();
    let (key, value) = published(&own, &user, 7);
    assert_eq!((key.as_str(), value.as_str()), ("/svc/user/h:1", r#"{"at":"h:1","w":7,"m":{"zone":"b"}}"#));
    let read = own.parse(key.as_bytes(), value.as_bytes()).unwrap();
    assert_eq!((&read.name, &read.addr, read.weight.unwrap().value()), (&user.name, &user.addr, 7));
    assert_eq!(own.to_string(), "custom");
    let block = Layout::custom("/svc/{name}/{addr}", "\n  {\"at\": \"{addr}\"}\n").unwrap();
    assert_eq!(published(&block, &user, 7).1, r#"{"at":"h:1"}"#);
}

#[test]
fn errors_in_a_template_are_explained() {
    let cases = [
        ("/{name}/{addr", "{}", "key has a placeholder that is not closed: {addr"),
        (
            "/{name}/{port}",
            "{}",
            "key has the unknown placeholder {port}; known are name, addr, version, weight, id, label, prefix and scheme, and \
             in JSON, as a whole value, weight:number, metadata and metadata|null",
        ),
        ("/{addr}", "{}", "key must have {name}/, which distinguishes services"),
        ("/{name}/x", "{addr}", "key must have {addr}, {id} or {label}, which distinguish instances"),
        ("/{name}/{addr}/{weight}", "{}", "key must not have {weight}: a key does not change"),
        ("/{name}/{id}", "{}", "value must have {addr}, since the key has none"),
        ("/{name}/{addr}", r#"{"a":"{addr}","a":1}"#, "value has the key \"a\" twice"),
        ("/{name}/{addr}", r#"{"a":"{addr"}"#, "value has a placeholder that is not closed: {addr"),
        ("/{name}/{addr}", r#"{"a": }"#, "value must be JSON: expected value at line 1 column 7"),
        ("/{name}/{addr}", "?weight", "value has the part \"weight\", which is not key=value"),
    ];
    for (key, value, said) in cases {
        assert_eq!(Layout::custom(key, value).unwrap_err().to_string(), said);
    }
}

#[test]
fn layouts_stand_beside_each_other_unless_their_keys_are_the_same() {
    Layout::check_together(&[layout("seed"), layout("kratos"), layout("kitex"), layout("hertz")]).unwrap();
    let same = Layout::check_together(&[layout("seed"), layout("kratos"), layout("grpc-todolist")]).unwrap_err();
    assert_eq!(same.to_string(), "layouts must not write the same keys, as seed and grpc-todolist do");
    assert!(Layout::check_together(&[]).is_err());
    let moved = layout("grpc-todolist").with_prefix("/other").unwrap();
    Layout::check_together(&[layout("seed"), moved]).unwrap();
}

#[test]
fn a_layout_is_read_once_whatever_its_scheme() {
    let kratos = layout("kratos");
    assert!(kratos.reads_as(&kratos.with_tls()) && kratos.reads_as(&kratos.with_scheme("http").unwrap()));
    assert!(!kratos.reads_as(&kratos.with_prefix("/x").unwrap()));
    assert!(!layout("seed").reads_as(&layout("grpc-todolist")));
}

#[test]
fn the_error_about_an_unknown_name_lists_the_known_ones() {
    let said = "consul".parse::<Layout>().unwrap_err().to_string();
    assert!(said.starts_with("layout must be one of: seed, grpc-todolist, kratos,"), "{said}");
}
