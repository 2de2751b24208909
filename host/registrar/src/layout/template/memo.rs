//! The parse memo: a value that differs from a remembered one only in its address is not parsed again.
//!
//! Most nodes of one service differ in the address alone, so a first view of very many nodes is mostly hits; `make bench-views`
//! measures one.

use std::ops::Range;

use crate::{
    layout::template::{
        ValueTemplate,
        text::{Tail, TextTemplate, is_run},
    },
    node::{Addr, Invalid, ServerNode},
};

/// Number of misses after which the remembered node is replaced.
const REPLACE_AFTER: u32 = 8;

/// Memo of one node among those that are read one after the other under a prefix.
#[derive(Debug, Default)]
pub(crate) struct ParseMemo {
    remembered: Option<Remembered>,
    misses: u32,
}

/// A parsed node with the bytes around its address.
#[derive(Debug)]
struct Remembered {
    /// Beginning of the key, and the kind of text that follows it.
    key: String,
    tail: Tail,
    /// The whole value, and the place of the address in it. Comparing with an empty slice of the whole value is much faster
    /// than with an empty `Vec`, whose pointer dangles.
    value: Vec<u8>,
    addr: Range<usize>,
    node: ServerNode,
    uses_tls: bool,
}

impl ParseMemo {
    /// The result of parsing this key and value, if they differ from the remembered ones only in the address.
    pub(crate) fn lookup(&self, key: &str, value: &[u8]) -> Option<Result<(ServerNode, bool), Invalid>> {
        let remembered = self.remembered.as_ref()?;
        let (before, after) = (&remembered.value[..remembered.addr.start], &remembered.value[remembered.addr.end..]);
        let addr = value.strip_prefix(before)?.strip_suffix(after)?;
        let addr = std::str::from_utf8(addr).ok().filter(|addr| is_plain(addr))?;
        let tail = key.strip_prefix(remembered.key.as_str())?;
        let fits = match remembered.tail {
            Tail::Addr => tail == addr,
            Tail::Any => is_run(tail),
        };
        let node = |addr| (ServerNode { addr, ..remembered.node.clone() }, remembered.uses_tls);
        fits.then(|| Addr::new(addr.into()).map(node))
    }

    /// Remembers every [`REPLACE_AFTER`]th node that was parsed, if others like it can be recognised.
    ///
    /// Its address must stand in the value once, alone in its string, in the place of a placeholder for the address alone;
    /// and its key must end in a placeholder, with a beginning that does not depend on the address.
    pub(crate) fn store(
        &mut self,
        templates: (&TextTemplate, &ValueTemplate),
        (key, value): (&str, &[u8]),
        (node, uses_tls): &(ServerNode, bool),
    ) {
        self.misses = self.misses.wrapping_add(1);
        let addr = node.addr.as_str();
        if self.misses % REPLACE_AFTER != 1 || !is_plain(addr) || value.contains(&b'\\') {
            return;
        }
        let (Some((key, tail)), Some(quoted)) = (templates.0.split_tail(key), templates.1.quote_sole_addr(addr)) else {
            return;
        };
        let mut places = (0..value.len()).filter(|at| value[*at..].starts_with(quoted.as_bytes()));
        if let (Some(at), None) = (places.next(), places.next()) {
            let at = at + (quoted.len() - addr.len()) / 2;
            self.remembered = Some(Remembered {
                key: key.to_owned(),
                tail,
                value: value.to_vec(),
                addr: at..at + addr.len(),
                node: node.clone(),
                uses_tls: *uses_tls,
            });
        }
    }
}

/// Returns true if JSON writes a text without escapes and one placeholder reads all of it.
fn is_plain(text: &str) -> bool {
    is_run(text) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::ParseMemo;
    use crate::{
        layout::Layout,
        node::{Metadata, ServerNode},
    };

    fn custom(key: &str, value: &str) -> Layout {
        Layout::custom(key, value).unwrap()
    }

    #[test]
    fn a_node_that_differs_only_in_its_address_is_a_hit() {
        let layout =
            custom("/{name}/{addr}", r#"{"Addr":"{addr}","Weight":"{weight:number}","Metadata":"{metadata}"}"#);
        let mut memo = ParseMemo::default();
        let first = r#"{"Addr":"10.0.0.1:80","Weight":7,"Metadata":{"zone":"a"}}"#;
        let (node, _) = layout.read_with(&mut memo, b"/user/10.0.0.1:80", first.as_bytes()).unwrap();
        let (key, value) = ("/user/[::1]:8080", r#"{"Addr":"[::1]:8080","Weight":7,"Metadata":{"zone":"a"}}"#);
        let expected = ServerNode { addr: "[::1]:8080".parse().unwrap(), ..node };
        assert_eq!(memo.lookup(key, value.as_bytes()), Some(Ok((expected, false))));
        for (key, value) in [
            ("/user/[::1]:8081", value),
            ("/users/[::1]:8080", value),
            ("/user/v1/[::1]:8080", value),
            ("/user/10.0.0.2:80", r#"{"Addr":"10.0.0.2:80","Weight":8,"Metadata":{"zone":"a"}}"#),
            ("/user/", r#"{"Addr":"","Weight":7,"Metadata":{"zone":"a"}}"#),
            ("/user/a/b", r#"{"Addr":"a/b","Weight":7,"Metadata":{"zone":"a"}}"#),
            ("/user/ab", r#"{"Addr":"a\u0062","Weight":7,"Metadata":{"zone":"a"}}"#),
            ("/user/b", r#"{"Addr":"a","Addr":"b","Weight":7,"Metadata":{"zone":"a"}}"#),
            ("/user/é", r#"{"Addr":"é","Weight":7,"Metadata":{"zone":"a"}}"#),
            ("/user/10.0.0.2:80", r#"{"Addr":"10.0.0.2:80","Weight":7"#),
        ] {
            assert_eq!(memo.lookup(key, value.as_bytes()), None, "{key} {value}");
        }
    }

    #[test]
    fn nothing_is_remembered_where_the_address_may_occur_elsewhere() {
        let json = r#"{"a":"{addr}"}"#;
        for (template, shape, key, value) in [
            // The address occurs twice in the value; escaped; beside other text; twice in the template.
            ("/{name}/{addr}", json, "/n/h:1", r#"{"a":"h:1","b":"h:1"}"#),
            ("/{name}/{addr}", json, "/n/h:1", r#"{"a":"h\u003a1","b":"h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"http://{addr}"}"#, "/n/h:1", r#"{"a":"http://h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"{addr}","b":"{name}@{addr}"}"#, "/n/h:1", r#"{"a":"h:1","b":"n@h:1"}"#),
            // An item that two templates may read.
            ("/{name}/{addr}", r#"{"a":["{addr}","{version}"]}"#, "/n/h:1", r#"{"a":["h:1"]}"#),
            // The end of the key holds more than one placeholder, or another one.
            ("/{name}/{version}-{addr}", json, "/n/v1-h:1", r#"{"a":"h:1"}"#),
            ("/{name}/{version}{id}", json, "/n/v1", r#"{"a":"h:1"}"#),
            ("/{name}/{addr}/{version}", json, "/n/h:1/v1", r#"{"a":"h:1"}"#),
            // The address occurs elsewhere in the key, or only in the key and in the metadata.
            ("/{name}/{addr}/{id}", json, "/n/h:1/5", r#"{"a":"h:1"}"#),
            ("/{name}/{addr}/{addr}", json, "/n/h:1/h:1", r#"{"a":"h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"{addr}","...":1}"#, "/n/h:1", r#"{"b":"h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"{addr}","...":1}"#, "/n/h:1", r#"{"h:1":"x"}"#),
        ] {
            let (layout, mut memo) = (custom(template, shape), ParseMemo::default());
            layout.read_with(&mut memo, key.as_bytes(), value.as_bytes()).unwrap();
            assert!(memo.remembered.is_none(), "{template} {shape} {value}");
        }
    }

    /// Nodes of all layouts, intact and with changed bytes, in random order: each is read as if it were the only one.
    #[test]
    fn earlier_reads_change_no_result() {
        let mut rng = fastrand::Rng::with_seed(11);
        let (mut hits, mut all) = (0, 0);
        let customs = [
            ("/{name}/tcp@{addr}", r#"{"a":"{addr}"}"#),
            ("/{name}/{version/}{id}", "{addr}"),
            ("/{name}/{version}{id}", "{addr}"),
            ("/{name}/{version}-{id}", r#"{"a":"{addr}"}"#),
            ("/{name}/{addr}/{label}", "{addr}"),
            ("/{name}/{addr}", r#"{"a":"{addr}","b":"{version}"}"#),
            ("/{name}/{addr}", r#"{"a":"{addr}","...":1}"#),
        ];
        let customs = customs.map(|(key, value)| custom(key, value));
        for layout in Layout::NAMES.iter().copied().map(|name| name.parse().unwrap()).chain(customs) {
            let mut memo = ParseMemo::default();
            for _ in 0..20_000 {
                let pairs = if rng.u8(..8) == 0 {
                    vec![("a".to_owned(), format!("10.0.0.{}:80", rng.u8(..3)))]
                } else {
                    vec![]
                };
                let node = ServerNode {
                    metadata: Metadata::try_from(pairs).unwrap(),
                    version: rng.choice(["", "v1"]).unwrap().parse().unwrap(),
                    ..ServerNode::new(rng.choice(["user", "users"]).unwrap(), &format!("10.0.0.{}:80", rng.u8(..3)))
                        .unwrap()
                };
                let (mut key, mut value) = (layout.key(&node).into_bytes(), layout.value(&node, 7.try_into().unwrap()));
                let changed = if rng.bool() { &mut key } else { &mut value };
                if rng.u8(..4) == 0 && !changed.is_empty() {
                    let at = rng.usize(..changed.len());
                    match rng.u8(..3) {
                        0 => drop(changed.remove(at)),
                        1 => changed[at] = *rng.choice(br#"",:{}[]\/0198az "#).unwrap(),
                        _ => changed.insert(at, *rng.choice(br#"",:{}[]\/0198az "#).unwrap()),
                    }
                }
                hits += usize::from(str::from_utf8(&key).is_ok_and(|key| memo.lookup(key, &value).is_some()));
                all += 1;
                let alone = layout.read(&key, &value);
                assert_eq!(
                    layout.read_with(&mut memo, &key, &value),
                    alone,
                    "{layout}: {}",
                    String::from_utf8_lossy(&value)
                );
            }
        }
        assert!(hits > all / 8, "{hits} of {all}");
    }
}
