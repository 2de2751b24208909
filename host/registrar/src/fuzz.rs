//! Foreign input from etcd, as targets of fuzzing and as properties: no input makes a reader panic, and a node that was written
//! is read back.

use std::sync::LazyLock;

use crate::{
    layout::{Layout, template::memo::ParseMemo},
    node::{Addr, Metadata, ServerNode, ServiceName, Version, Weight},
};

/// The built-in layouts, and templates whose parts are hard to tell apart.
static LAYOUTS: LazyLock<Vec<Layout>> = LazyLock::new(|| {
    let customs = [
        ("/{name}/tcp@{addr}", r#"{"a":"{addr}"}"#),
        ("/{name}/{version/}{id}", "{addr}"),
        ("/{name}/{version}{id}", "{addr}"),
        ("/{name}/{version}-{id}", r#"{"a":"{addr}"}"#),
        ("/{name}/{addr}/{label}", "{addr}"),
        ("/{name}/{addr}", r#"{"a":["{addr}","{version}"],"...":1}"#),
    ];
    let customs = customs.map(|(key, value)| Layout::custom(key, value).expect("good templates"));
    Layout::NAMES.iter().copied().map(|name| name.parse().expect("a built-in layout")).chain(customs).collect()
});

/// Keys and values under one layout: its number, then a line each in turn.
pub fn layout(data: &[u8]) {
    let Some((number, lines)) = data.split_first() else { return };
    let number = usize::from(*number) % LAYOUTS.len();
    let layout = &LAYOUTS[number];
    let (mut memo, mut lines) = (ParseMemo::default(), lines.split(|byte| *byte == b'\n'));
    while let Some(key) = lines.next() {
        let value = lines.next().unwrap_or_default();
        let alone = layout.read(key, value);
        assert_eq!(layout.read_with(&mut memo, key, value), alone, "as if it were the only one");
        match alone {
            // Of ambiguous templates another node may be read.
            Ok((node, _)) if number < Layout::NAMES.len() => is_read_back(layout, &node),
            Ok(_) => {}
            Err(invalid) => assert!(!invalid.to_string().is_empty()),
        }
    }
}

/// A layout of the user's own, and a key and a value under it: four lines.
pub fn template(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let mut text = || std::str::from_utf8(lines.next()?).ok();
    let (Some(key), Some(value)) = (text(), text()) else { return };
    let Ok(layout) = Layout::custom(key, value) else { return };
    let node = ServerNode::new("user", "10.0.0.5:80").expect("a good node");
    let node = ServerNode { version: "v1".parse().expect("a good version"), ..node };
    // Templates may be ambiguous, so that another node is read, or none.
    let _ = layout.parse(layout.key(&node).as_bytes(), &layout.value(&node, Weight::MAX));
    assert!(layout.key(&node).starts_with(&layout.prefix(&node.name, &Version::default())));
    assert!(layout.key(&node).starts_with(&layout.root()));
    if let (Some(key), Some(value)) = (text(), text()) {
        let _ = layout.parse(key.as_bytes(), value.as_bytes());
    }
}

/// The parts of a node, a line each: name, address, version, and pairs of metadata with a `=` in between.
pub fn node(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (name, addr, version) = (line(), line(), line());
    if let Ok(parsed) = name.parse::<ServiceName>() {
        assert!(parsed.as_str() == name && name.len() <= 253 && !name.contains('/'));
    }
    if let Ok(parsed) = version.parse::<Version>() {
        assert!(parsed.as_str() == version && version.len() <= 128 && !version.contains('/'));
    }
    match addr.parse::<Addr>() {
        Ok(parsed) => {
            let (host, port) = (parsed.host(), parsed.port());
            assert!(
                addr == format!("{host}:{port}")
                    || addr.starts_with(&format!("[{host}]:"))
                    || addr.ends_with(&port.to_string())
            );
            assert!(!addr.contains('/') && port > 0);
        }
        Err(invalid) => assert!(invalid.to_string().len() < 1024, "an error is for people"),
    }
    let pairs: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
    let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<Vec<_>>();
    if let Ok(metadata) = Metadata::try_from(pairs.clone()) {
        assert_eq!(metadata.pairs(), pairs);
    }
}

/// Holds that a node that stands under a layout is read again when a host writes it there.
fn is_read_back(layout: &Layout, node: &ServerNode) {
    let weight = node.weight.unwrap_or(Weight::MAX);
    let (key, value) = (layout.key(node), layout.value(node, weight));
    let again = layout.parse(key.as_bytes(), &value);
    let again =
        again.unwrap_or_else(|invalid| panic!("{invalid}: {layout:?} wrote {key} {}", String::from_utf8_lossy(&value)));
    assert_eq!((&again.name, &again.addr), (&node.name, &node.addr), "{layout:?}");
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{
        collection::btree_map,
        prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest},
        sample::select,
        string::string_regex,
    };

    use super::{LAYOUTS, layout, node, template};
    use crate::node::{Metadata, ServerNode, Weight};

    /// The kept corpus: the seeds of fuzzing, and its findings.
    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        for (name, target) in [("layout", layout as fn(&[u8])), ("template", template), ("node", node)] {
            let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{name}");
            files.iter().for_each(|file| target(&fs::read(file).unwrap()));
        }
    }

    fn visible(most: usize) -> impl Strategy<Value = String> {
        string_regex(&format!("[!-.0-~]{{1,{most}}}")).unwrap()
    }

    fn nodes() -> impl Strategy<Value = ServerNode> {
        let host = prop_oneof!["[a-z0-9_.-]{0,19}[a-z]", "[1-9][0-9]\\.1\\.2\\.3", "\\[fd00::[0-9a-f]{1,4}\\]"];
        let version = prop_oneof![select(vec![String::new()]), visible(12)];
        let metadata = btree_map("[^weip.].{0,6}", ".{0,12}", 0..4);
        (visible(24), host, 1..=u16::MAX, version, metadata).prop_map(|(name, host, port, version, metadata)| {
            ServerNode {
                version: version.parse().unwrap(),
                metadata: Metadata::try_from(metadata.into_iter().collect::<Vec<_>>()).unwrap(),
                ..ServerNode::new(&name, &format!("{host}:{port}")).unwrap()
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_a_layout_writes_it_reads_as_the_same(node in nodes(), weight in 1_u32..=100) {
            let weight = Weight::try_from(weight).unwrap();
            for (number, layout) in LAYOUTS.iter().enumerate().take(crate::Layout::NAMES.len()) {
                let read = layout.parse(layout.key(&node).as_bytes(), &layout.value(&node, weight)).unwrap();
                assert_eq!((&read.name, &read.addr), (&node.name, &node.addr), "{layout}");
                let has_version = ["seed", "grpc-todolist", "kratos", "go-micro", "goframe"].contains(&&*layout.to_string());
                let version = if has_version && node.version.as_str() != "latest" { node.version.as_str() } else { "" };
                assert_eq!(read.version.as_str(), version, "{layout}");
                assert!(read.weight.is_none_or(|read| read == weight), "{layout}");
                let metadata = if layout.carries_metadata() { node.metadata.pairs() } else { &[] };
                assert_eq!(read.metadata.pairs(), metadata, "{layout} {number}");
            }
        }

        #[test]
        fn no_bytes_under_any_layout_make_a_reader_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            layout(&data);
            template(&data);
            node(&data);
        }

        #[test]
        fn a_changed_byte_makes_no_reader_panic(written in nodes(), number in 0_u8..16, at in any::<usize>(), byte in any::<u8>()) {
            let layout = &LAYOUTS[usize::from(number)];
            let mut data = vec![number];
            data.extend(layout.key(&written).bytes());
            data.push(b'\n');
            data.extend(layout.value(&written, Weight::MIN));
            let place = 1 + at % (data.len() - 1);
            data[place] = byte;
            super::layout(&data);
        }
    }
}
