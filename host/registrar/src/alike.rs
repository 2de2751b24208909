//! Values that differ in the address alone, as most of one service do: such a one is known without being read as JSON.

use crate::template::{Found, Shape, is_run};

/// One of so many values that are not like the last one takes its place.
const EVERY: u32 = 8;

/// The last value that was read of several under one prefix.
#[derive(Debug, Default)]
pub(crate) struct Last {
    like: Option<Like>,
    unlike: u32,
}

/// What stands before and after the address of a value, and what that was found to say.
#[derive(Debug)]
struct Like {
    before: Vec<u8>,
    after: Vec<u8>,
    found: Found,
}

impl Last {
    /// What reading this value would find, where it is like the last one.
    pub(crate) fn found(&self, value: &[u8]) -> Option<Found> {
        let Like { before, after, found } = self.like.as_ref()?;
        let addr = value.strip_prefix(before.as_slice())?.strip_suffix(after.as_slice())?;
        let addr = std::str::from_utf8(addr).ok().filter(|addr| is_plain(addr))?;
        let mut found = found.clone();
        found.addr = Some(addr.into());
        Some(found)
    }

    /// Takes over a value that was read, now and then. Its address must be a string of its own there, and the only one of
    /// that text, in the place of the template that is for an address and nothing else: another one in that place is read
    /// as the same but for the address.
    pub(crate) fn keep(&mut self, shape: &Shape, value: &[u8], found: &Found) {
        self.unlike = self.unlike.wrapping_add(1);
        let Some(addr) = found.addr.as_deref().filter(|addr| is_plain(addr)) else { return };
        if self.unlike % EVERY != 1 || !shape.has_addr_alone() || value.contains(&b'\\') {
            return;
        }
        let string = format!("\"{addr}\"");
        let mut places = (0..value.len()).filter(|at| value[*at..].starts_with(string.as_bytes()));
        if let (Some(at), None) = (places.next(), places.next()) {
            let (before, after) = (value[..=at].to_vec(), value[at + string.len() - 1..].to_vec());
            self.like = Some(Like { before, after, found: found.clone() });
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
        template::{Found, Shape},
    };

    /// What is remembered of a value that was read.
    fn kept(shape: &Shape, value: &str) -> (Last, Found) {
        let (mut last, mut found) = (Last::default(), Found::default());
        shape.read(value.as_bytes(), &mut found).unwrap();
        last.keep(shape, value.as_bytes(), &found);
        (last, found)
    }

    #[test]
    fn a_value_that_differs_in_the_address_alone_is_known() {
        let shape = Shape::parse(r#"{"Addr":"{addr}","Weight":"{weight:number}","Metadata":"{metadata}"}"#).unwrap();
        let (last, mut found) = kept(&shape, r#"{"Addr":"10.0.0.1:80","Weight":7,"Metadata":{"zone":"a"}}"#);
        let like = last.found(br#"{"Addr":"[::1]:8080","Weight":7,"Metadata":{"zone":"a"}}"#).unwrap();
        found.addr = Some("[::1]:8080".into());
        assert_eq!(like, found);
        for unlike in [
            r#"{"Addr":"10.0.0.2:80","Weight":8,"Metadata":{"zone":"a"}}"#,
            r#"{"Addr":"","Weight":7,"Metadata":{"zone":"a"}}"#,
            r#"{"Addr":"a/b","Weight":7,"Metadata":{"zone":"a"}}"#,
            r#"{"Addr":"a\u0062","Weight":7,"Metadata":{"zone":"a"}}"#,
            r#"{"Addr":"a","Addr":"b","Weight":7,"Metadata":{"zone":"a"}}"#,
            r#"{"Addr":"é","Weight":7,"Metadata":{"zone":"a"}}"#,
            r#"{"Addr":"10.0.0.2:80","Weight":7"#,
        ] {
            assert_eq!(last.found(unlike.as_bytes()), None, "{unlike}");
        }
    }

    #[test]
    fn nothing_is_kept_where_the_address_may_be_something_else_too() {
        for (shape, value) in [
            // Twice in the value; as an escape; beside other things; twice in the template; not in JSON.
            (r#"{"a":"{addr}"}"#, r#"{"a":"h:1","b":"h:1"}"#),
            (r#"{"a":"{addr}"}"#, r#"{"a":"h\u003a1","b":"h:1"}"#),
            (r#"{"a":"http://{addr}"}"#, r#"{"a":"http://h:1"}"#),
            (r#"{"a":"{addr}","b":"{name}@{addr}"}"#, r#"{"a":"h:1","b":"n@h:1"}"#),
            ("{addr}", "h:1"),
            // An item that may be read twice.
            (r#"{"a":["{addr}","{version}"]}"#, r#"{"a":["h:1"]}"#),
        ] {
            let (last, _) = kept(&Shape::parse(shape).unwrap(), value);
            assert!(last.like.is_none(), "{shape} {value}");
        }
    }

    /// Some of the values of all layouts, as they are and with bytes changed, in any order: whatever was read before, each is
    /// read as if it were the only one.
    #[test]
    fn what_was_read_before_changes_nothing() {
        let mut rng = fastrand::Rng::with_seed(11);
        let (mut known, mut all) = (0, 0);
        for name in Layout::NAMES {
            let layout: Layout = name.parse().unwrap();
            let mut last = Last::default();
            for _ in 0..20_000 {
                let pairs = if rng.u8(..8) == 0 {
                    vec![("a".to_owned(), format!("10.0.0.{}:80", rng.u8(..3)))]
                } else {
                    vec![]
                };
                let node = ServerNode {
                    metadata: Metadata::try_from(pairs).unwrap(),
                    ..ServerNode::new("user", &format!("10.0.0.{}:80", rng.u8(..3))).unwrap()
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
                known += usize::from(last.found(&value).is_some());
                all += 1;
                let alone = layout.read(&key, &value);
                assert_eq!(
                    layout.read_next(&mut last, &key, &value),
                    alone,
                    "{name}: {}",
                    String::from_utf8_lossy(&value)
                );
            }
        }
        assert!(known > all / 8, "{known} of {all}");
    }
}
