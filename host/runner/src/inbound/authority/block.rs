//! Header blocks of one HTTP/2 connection, in order: finds the authority of each request, and replaces an authority that the
//! `http` crate refuses by a placeholder of the same length.
//!
//! Reads lengths and indices only, and decodes nothing but authorities. The decoder's dynamic table stays in step with the
//! encoder's: a replaced entry keeps its size and its place.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use http::uri::Authority;

use super::huffman;

/// Flag of a Huffman-encoded string, and the width of the length beside it.
const HUFFMAN: u8 = 0x80;
const LENGTH_BITS: u32 = 7;
/// Index of `:authority` in the static table.
const AUTHORITY: usize = 1;
/// Last index of the static table.
const STATIC: usize = 61;
const NAME: &[u8] = b":authority";
/// Size of the dynamic table: the default, since the server sends no `SETTINGS_HEADER_TABLE_SIZE`.
const TABLE_SIZE: usize = 4096;
/// Overhead of a table entry, beside its name and value.
const ENTRY_SIZE: usize = 32;
/// Character of placeholders, valid in any authority.
const FILLER: u8 = b'x';

/// Malformed header block, for which the h2 crate ends the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Header block with a placeholder, and the authority that was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) block: Vec<u8>,
    pub(super) sent: Bytes,
}

/// View of the decoder's dynamic table: its entries named `:authority`.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Number of entries inserted so far. An index counts from the latest.
    inserted: u64,
    authorities: VecDeque<Entry>,
    /// Total size of `authorities`, at most that of the table.
    size: usize,
}

#[derive(Debug)]
struct Entry {
    /// Number of the insertion, from 1.
    number: u64,
    size: usize,
    /// The authority that was sent, where a placeholder was inserted.
    replaced: Option<Bytes>,
}

impl Blocks {
    /// Reads the next block, and rewrites it where the `http` crate refuses the authority.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Option<Rewritten>, Malformed> {
        let mut reader = Reader { block, at: 0 };
        let mut edit: Option<Edit> = None;
        let mut sent = None;
        while let Some(first) = block.get(reader.at).copied() {
            let begin = reader.at;
            match first {
                0x80.. => match reader.integer(7)? {
                    // The static entry has no value.
                    AUTHORITY => {
                        edit.get_or_insert_default().replace(block, begin..reader.at, &[AUTHORITY as u8, 1, FILLER]);
                        sent = Some(Bytes::new());
                    }
                    index => {
                        if let Some(Entry { replaced: Some(replaced), .. }) = self.entry(index) {
                            sent = Some(replaced.clone());
                        }
                    }
                },
                0x20..0x40 => {
                    reader.integer(5)?;
                }
                _ => {
                    let is_inserted = first >= 0x40;
                    let is_authority = match reader.integer(if is_inserted { 6 } else { 4 })? {
                        0 => reader.string()?.is_name(),
                        AUTHORITY => true,
                        index => self.entry(index).is_some(),
                    };
                    let value_begins = reader.at;
                    let value = reader.string()?;
                    self.inserted += u64::from(is_inserted);
                    if !is_authority {
                        continue;
                    }
                    let value = value.decode().ok_or(Malformed)?;
                    let size = ENTRY_SIZE + NAME.len() + value.len();
                    // A table entry keeps its size, so an empty value has no placeholder.
                    let is_kept = Authority::try_from(&value[..]).is_ok() || (is_inserted && value.is_empty());
                    let replaced = (!is_kept).then_some(value);
                    if let Some(value) = &replaced {
                        let filler = literal(&vec![FILLER; value.len().max(1)]);
                        edit.get_or_insert_default().replace(block, value_begins..reader.at, &filler);
                        sent = Some(value.clone());
                    }
                    if is_inserted {
                        self.insert(size, replaced);
                    }
                }
            }
        }
        // Without an edit, an index named an entry that an earlier block replaced.
        Ok(sent.map(|sent| Rewritten { block: edit.unwrap_or_default().finish(block), sent }))
    }

    /// The authority entry under this index.
    fn entry(&self, index: usize) -> Option<&Entry> {
        let place = index.checked_sub(STATIC + 1)?;
        let number = self.inserted.checked_sub(place as u64)?;
        self.authorities.iter().find(|entry| entry.number == number)
    }

    /// Adds an entry, and drops those that no index can name any more. An index of an evicted entry ends the connection, so
    /// entries may stay longer here than in the decoder's table.
    fn insert(&mut self, size: usize, replaced: Option<Bytes>) {
        self.authorities.push_back(Entry { number: self.inserted, size, replaced });
        self.size += size;
        let oldest = self.inserted.saturating_sub((TABLE_SIZE / ENTRY_SIZE) as u64);
        while let Some(entry) = self.authorities.front()
            && (self.size > TABLE_SIZE || entry.number <= oldest)
        {
            self.size -= entry.size;
            self.authorities.pop_front();
        }
    }
}

/// Copy of a header block with replacements.
#[derive(Default)]
struct Edit {
    written: Vec<u8>,
    /// Length of the original block that was copied.
    until: usize,
}

impl Edit {
    fn replace(&mut self, block: &[u8], range: Range<usize>, by: &[u8]) {
        self.written.extend_from_slice(&block[self.until..range.start]);
        self.written.extend_from_slice(by);
        self.until = range.end;
    }

    fn finish(mut self, block: &[u8]) -> Vec<u8> {
        self.written.extend_from_slice(&block[self.until..]);
        self.written
    }
}

/// Encodes a field that is not inserted into the table.
pub(super) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0], &literal(name)[..], &literal(value)].concat()
}

/// Encodes a string without Huffman coding.
fn literal(text: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(text.len() + 4);
    let most = (1 << LENGTH_BITS) - 1;
    if text.len() < most {
        written.push(text.len() as u8);
    } else {
        written.push(most as u8);
        let mut rest = text.len() - most;
        while rest >= 0x80 {
            written.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        written.push(rest as u8);
    }
    written.extend_from_slice(text);
    written
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

/// Encoded string.
struct Text<'a> {
    is_huffman: bool,
    encoded: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads an integer with a prefix of `bits` (RFC 7541, section 5.1), at most as long as the h2 crate accepts.
    fn integer(&mut self, bits: u32) -> Result<usize, Malformed> {
        const LONGEST: u32 = 4;
        let most = (1 << bits) - 1;
        let mut value = self.byte()? as usize & most;
        if value < most {
            return Ok(value);
        }
        for continuation in 0..LONGEST {
            let byte = self.byte()?;
            value += (byte as usize & 0x7f) << (7 * continuation);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn string(&mut self) -> Result<Text<'a>, Malformed> {
        let is_huffman = self.block.get(self.at).ok_or(Malformed)? & HUFFMAN != 0;
        let length = self.integer(LENGTH_BITS)?;
        let encoded = self.block[self.at..].get(..length).ok_or(Malformed)?;
        self.at += length;
        Ok(Text { is_huffman, encoded })
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.block.get(self.at).ok_or(Malformed)?;
        self.at += 1;
        Ok(*byte)
    }
}

impl Text<'_> {
    fn is_name(&self) -> bool {
        /// The only Huffman encoding of the name.
        const ENCODED: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
        self.encoded == if self.is_huffman { ENCODED } else { NAME }
    }

    /// Decodes the string. None for an invalid encoding.
    fn decode(&self) -> Option<Bytes> {
        if self.is_huffman {
            huffman::decode(self.encoded).map(Bytes::from)
        } else {
            Some(Bytes::copy_from_slice(self.encoded))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http::uri::Authority;
    use loona_hpack::Decoder;
    use proptest::{collection::vec, prelude::*};

    use super::{Blocks, ENTRY_SIZE, Malformed, Rewritten, STATIC, TABLE_SIZE, field, huffman};

    /// Field as a client encodes it.
    #[derive(Debug, Clone)]
    struct Field {
        name: &'static str,
        value: String,
        form: Form,
        /// Uses an index of the same field or the same name, if the table has one.
        refers: bool,
        is_huffman: (bool, bool),
    }

    #[derive(Debug, Clone, Copy)]
    enum Form {
        Inserted = 0x40,
        Plain = 0,
        Never = 0x10,
    }

    /// Encoder of one connection, with a dynamic table of its own.
    #[derive(Default)]
    struct Client {
        table: VecDeque<(&'static str, String)>,
    }

    fn integer(first: u8, bits: u32, value: usize) -> Vec<u8> {
        let most = (1 << bits) - 1;
        if value < most {
            return vec![first | value as u8];
        }
        let (mut written, mut rest) = (vec![first | most as u8], value - most);
        while rest >= 0x80 {
            written.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        written.push(rest as u8);
        written
    }

    fn string(text: &str, is_huffman: bool) -> Vec<u8> {
        let (flag, encoded) =
            if is_huffman { (0x80, huffman::encode(text.as_bytes())) } else { (0, text.as_bytes().to_vec()) };
        [integer(flag, 7, encoded.len()), encoded].concat()
    }

    impl Client {
        fn encode(&mut self, fields: &[Field]) -> Vec<u8> {
            fields.iter().flat_map(|field| self.field(field)).collect()
        }

        fn field(&mut self, Field { name, value, form, refers, is_huffman }: &Field) -> Vec<u8> {
            // The oldest of them, which is evicted next.
            let whole = self.table.iter().rposition(|(n, v)| n == name && v == value);
            if let Some(place) = whole.filter(|_| *refers) {
                return integer(0x80, 7, STATIC + 1 + place);
            }
            if *refers && *name == ":authority" && value.is_empty() {
                return vec![0x81];
            }
            let fixed = [(":authority", 1), (":path", 4), ("user-agent", 58)].into_iter().find(|(n, _)| n == name);
            let index = match self.table.iter().rposition(|(n, _)| n == name).filter(|_| *refers) {
                Some(place) => STATIC + 1 + place,
                None => fixed.filter(|_| *refers || is_huffman.0).map_or(0, |(_, index)| index),
            };
            let bits = if matches!(form, Form::Inserted) { 6 } else { 4 };
            let mut written = integer(*form as u8, bits, index);
            if index == 0 {
                written.extend(string(name, is_huffman.0));
            }
            written.extend(string(value, is_huffman.1));
            if matches!(form, Form::Inserted) {
                self.table.push_front((name, value.clone()));
                let size = |table: &VecDeque<(&str, String)>| -> usize {
                    table.iter().map(|(n, v)| ENTRY_SIZE + n.len() + v.len()).sum()
                };
                while size(&self.table) > TABLE_SIZE {
                    self.table.pop_back();
                }
            }
            written
        }
    }

    fn fields() -> impl Strategy<Value = Vec<Field>> {
        let name = prop_oneof![
            4 => Just(":authority"),
            1 => Just(":path"),
            1 => Just("user-agent"),
            1 => Just("x-one"),
            1 => Just("x-two"),
        ];
        let value = prop_oneof![
            6 => prop_oneof![Just("user%2Fv1"), Just("user-2Fv1"), Just("here:80"), Just("a b"), Just("xxxxxxxxx")]
                .prop_map(str::to_owned),
            3 => "[ -~]{0,12}",
            1 => (100_usize..5000).prop_map(|length| "%".repeat(length)),
        ];
        let form = prop_oneof![3 => Just(Form::Inserted), 1 => Just(Form::Plain), 1 => Just(Form::Never)];
        let field = (name, value, form, any::<bool>(), any::<(bool, bool)>());
        let field =
            field.prop_map(|(name, value, form, refers, is_huffman)| Field { name, value, form, refers, is_huffman });
        vec(field, 1..8)
    }

    fn decoded(decoder: &mut Decoder<'_>, block: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        decoder.decode(block).unwrap().into_iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// One decoder reads the blocks as sent, the other the blocks as passed on.
        #[test]
        fn nothing_but_authorities_changes_for_a_decoder(blocks in vec((fields(), any::<bool>()), 1..12)) {
            let (mut client, mut ours) = (Client::default(), Blocks::default());
            let (mut before, mut after) = (Decoder::new(), Decoder::new());
            for (fields, empties) in blocks {
                let mut block = Vec::new();
                if empties {
                    client.table.clear();
                    block.extend([integer(0x20, 5, 0), integer(0x20, 5, TABLE_SIZE)].concat());
                }
                block.extend(client.encode(&fields));
                let sent = decoded(&mut before, &block);
                prop_assert_eq!(sent.len(), fields.len());
                let rewritten = ours.read(&block).unwrap();
                let passed = decoded(&mut after, rewritten.as_ref().map_or(&block[..], |rewritten| &rewritten.block));
                prop_assert_eq!(passed.len(), sent.len());
                let mut replaced = None;
                for ((name, sent), (passed_name, passed)) in sent.into_iter().zip(passed) {
                    prop_assert_eq!(&name, &passed_name);
                    if name != ":authority" || Authority::try_from(&sent[..]).is_ok() {
                        prop_assert_eq!(sent, passed);
                        continue;
                    }
                    if passed.is_empty() {
                        prop_assert_eq!(&sent, "", "it was inserted into the table");
                        continue;
                    }
                    prop_assert!(Authority::try_from(&passed[..]).is_ok());
                    prop_assert_eq!(passed.len(), sent.len().max(1));
                    replaced = Some(sent);
                }
                let read = rewritten.map(|rewritten| String::from_utf8(rewritten.sent.to_vec()).unwrap());
                prop_assert_eq!(read, replaced);
            }
        }

        #[test]
        fn any_block_is_read_to_its_end(blocks: Vec<Vec<u8>>) {
            let mut ours = Blocks::default();
            for block in blocks {
                let _ = ours.read(&block);
                prop_assert!(ours.size <= TABLE_SIZE && ours.authorities.len() <= TABLE_SIZE / ENTRY_SIZE);
            }
        }
    }

    #[test]
    fn a_replaced_authority_is_kept_as_long_as_an_index_can_name_it() {
        let mut ours = Blocks::default();
        let literal = [&[0x41, 9], &b"user%2Fv1"[..]].concat();
        let Rewritten { block, sent } = ours.read(&literal).unwrap().unwrap();
        assert_eq!((block, &sent[..]), ([&[0x41, 9], &b"xxxxxxxxx"[..]].concat(), &b"user%2Fv1"[..]));
        let another = [0x40, 1, b'a', 1, b'b'];
        for later in 0..100 {
            let indexed = integer(0x80, 7, STATIC + 1 + later);
            let Rewritten { block, sent } = ours.read(&indexed).unwrap().unwrap();
            assert_eq!((block, &sent[..]), (indexed, &b"user%2Fv1"[..]));
            assert_eq!(ours.read(&another), Ok(None));
        }
    }

    #[test]
    fn a_malformed_block_is_an_error() {
        let bad: [&[u8]; 6] = [
            &[0x41],
            &[0x41, 3, b'a'],
            &[0x40, 1],
            &[0xff, 0x80, 0x80, 0x80, 0x80, 0],
            &[0x7f],
            &[0x41, 0x82, 0xff, 0xff],
        ];
        for block in bad {
            assert_eq!(Blocks::default().read(block), Err(Malformed), "{block:x?}");
        }
    }

    #[test]
    fn a_field_is_read_as_it_was_written() {
        let value = "v".repeat(1000);
        let read = decoded(&mut Decoder::new(), &field(b"name", value.as_bytes()));
        assert_eq!(read, [("name".to_owned(), value)]);
    }
}
