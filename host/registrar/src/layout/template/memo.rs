//! Nodes that differ in the address alone, as most of one service do: such a one is known without being read.

use std::ops::Range;

use crate::{
    layout::template::{
        Shape,
        text::{Tail, Text, is_run},
    },
    node::{Addr, Invalid, ServerNode},
};

/// One of so many that are not like the last one takes its place.
const EVERY: u32 = 8;

/// The last node that was read of several under one prefix.
#[derive(Debug, Default)]
pub(crate) struct Last {
    like: Option<Like>,
    unlike: u32,
}

/// A node, and what stands around its address.
#[derive(Debug)]
struct Like {
    /// What its key begins with, and what follows that.
    key: String,
    tail: Tail,
    /// Its value, and where the address stands in it. Whole, as comparing with an empty part of it is much faster than with
    /// an empty `Vec`, whose pointer leads nowhere.
    value: Vec<u8>,
    addr: Range<usize>,
    node: ServerNode,
    is_secured: bool,
}

impl Last {
    /// What reading these would give, where they are like the last ones.
    pub(crate) fn read(&self, key: &str, value: &[u8]) -> Option<Result<(ServerNode, bool), Invalid>> {
        let like = self.like.as_ref()?;
        let (before, after) = (&like.value[..like.addr.start], &like.value[like.addr.end..]);
        let addr = value.strip_prefix(before)?.strip_suffix(after)?;
        let addr = std::str::from_utf8(addr).ok().filter(|addr| is_plain(addr))?;
        let tail = key.strip_prefix(like.key.as_str())?;
        let fits = match like.tail {
            Tail::Addr => tail == addr,
            Tail::Any => is_run(tail),
        };
        let node = |addr| (ServerNode { addr, ..like.node.clone() }, like.is_secured);
        fits.then(|| Addr::new(addr.into()).map(node))
    }

    /// Takes over what was read, now and then. Its address must be a text of its own in the value, and the only one like it,
    /// in the place of the template that is for an address and nothing else; and its key must end in one that nothing but
    /// the address has a say in. Others there are read as the same but for the address.
    pub(crate) fn keep(
        &mut self,
        templates: (&Text, &Shape),
        (key, value): (&str, &[u8]),
        (node, is_secured): &(ServerNode, bool),
    ) {
        self.unlike = self.unlike.wrapping_add(1);
        let addr = node.addr.as_str();
        if self.unlike % EVERY != 1 || !is_plain(addr) || value.contains(&b'\\') {
            return;
        }
        let (Some((key, tail)), Some(quoted)) = (templates.0.tail(key), templates.1.quoted(addr)) else { return };
        let mut places = (0..value.len()).filter(|at| value[*at..].starts_with(quoted.as_bytes()));
        if let (Some(at), None) = (places.next(), places.next()) {
            let at = at + (quoted.len() - addr.len()) / 2;
            self.like = Some(Like {
                key: key.to_owned(),
                tail,
                value: value.to_vec(),
                addr: at..at + addr.len(),
                node: node.clone(),
                is_secured: *is_secured,
            });
        }
    }
}

/// Whether a text stands in JSON as it is, and fits a placeholder as a whole.
fn is_plain(text: &str) -> bool {
    is_run(text) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::Last;
    use crate::{
        layout::Layout,
        node::{Metadata, ServerNode},
    };

    fn custom(key: &str, value: &str) -> Layout {
        Layout::custom(key, value).unwrap()
    }

    #[test]
    fn a_node_that_differs_in_the_address_alone_is_known() {
        let layout =
            custom("/{name}/{addr}", r#"{"Addr":"{addr}","Weight":"{weight:number}","Metadata":"{metadata}"}"#);
        let mut last = Last::default();
        let first = r#"{"Addr":"10.0.0.1:80","Weight":7,"Metadata":{"zone":"a"}}"#;
        let (node, _) = layout.read_next(&mut last, b"/user/10.0.0.1:80", first.as_bytes()).unwrap();
        let (key, value) = ("/user/[::1]:8080", r#"{"Addr":"[::1]:8080","Weight":7,"Metadata":{"zone":"a"}}"#);
        let like = ServerNode { addr: "[::1]:8080".parse().unwrap(), ..node };
        assert_eq!(last.read(key, value.as_bytes()), Some(Ok((like, false))));
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
            assert_eq!(last.read(key, value.as_bytes()), None, "{key} {value}");
        }
    }

    #[test]
    fn nothing_is_kept_where_the_address_may_be_something_else_too() {
        let json = r#"{"a":"{addr}"}"#;
        for (template, shape, key, value) in [
            // Twice in the value; as an escape; beside other things; twice in the template.
            ("/{name}/{addr}", json, "/n/h:1", r#"{"a":"h:1","b":"h:1"}"#),
            ("/{name}/{addr}", json, "/n/h:1", r#"{"a":"h\u003a1","b":"h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"http://{addr}"}"#, "/n/h:1", r#"{"a":"http://h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"{addr}","b":"{name}@{addr}"}"#, "/n/h:1", r#"{"a":"h:1","b":"n@h:1"}"#),
            // An item that may be read twice.
            ("/{name}/{addr}", r#"{"a":["{addr}","{version}"]}"#, "/n/h:1", r#"{"a":["h:1"]}"#),
            // The end of the key is not the placeholder's alone, or is another one.
            ("/{name}/{version}-{addr}", json, "/n/v1-h:1", r#"{"a":"h:1"}"#),
            ("/{name}/{version}{id}", json, "/n/v1", r#"{"a":"h:1"}"#),
            ("/{name}/{addr}/{version}", json, "/n/h:1/v1", r#"{"a":"h:1"}"#),
            // The address stands elsewhere in the key, too; or in the key alone, and in the metadata.
            ("/{name}/{addr}/{id}", json, "/n/h:1/5", r#"{"a":"h:1"}"#),
            ("/{name}/{addr}/{addr}", json, "/n/h:1/h:1", r#"{"a":"h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"{addr}","...":1}"#, "/n/h:1", r#"{"b":"h:1"}"#),
            ("/{name}/{addr}", r#"{"a":"{addr}","...":1}"#, "/n/h:1", r#"{"h:1":"x"}"#),
        ] {
            let (layout, mut last) = (custom(template, shape), Last::default());
            layout.read_next(&mut last, key.as_bytes(), value.as_bytes()).unwrap();
            assert!(last.like.is_none(), "{template} {shape} {value}");
        }
    }

    /// Some nodes of all layouts, as they are and with bytes changed, in any order: whatever was read before, each is read as
    /// if it were the only one.
    #[test]
    fn what_was_read_before_changes_nothing() {
        let mut rng = fastrand::Rng::with_seed(11);
        let (mut known, mut all) = (0, 0);
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
        for layout in Layout::NAMES.into_iter().map(|name| name.parse().unwrap()).chain(customs) {
            let mut last = Last::default();
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
                known += usize::from(str::from_utf8(&key).is_ok_and(|key| last.read(key, &value).is_some()));
                all += 1;
                let alone = layout.read(&key, &value);
                assert_eq!(
                    layout.read_next(&mut last, &key, &value),
                    alone,
                    "{layout}: {}",
                    String::from_utf8_lossy(&value)
                );
            }
        }
        assert!(known > all / 8, "{known} of {all}");
    }
}
