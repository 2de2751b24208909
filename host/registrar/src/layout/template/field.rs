//! The fields of a node: written into a template, and captured from a key and a value.

use smol_str::SmolStr;

/// A field that a placeholder names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Name,
    Addr,
    Version,
    Weight,
    /// A number derived from name, version and address: the same at every start, different for every instance.
    Id,
    /// The address when written, any text when read.
    Label,
    /// Scheme of the address: always written as the default, read as any.
    Scheme,
}

/// Placeholders by name.
pub(super) const FIELDS: [(&str, Field); 7] = [
    ("name", Field::Name),
    ("addr", Field::Addr),
    ("version", Field::Version),
    ("weight", Field::Weight),
    ("id", Field::Id),
    ("label", Field::Label),
    ("scheme", Field::Scheme),
];

/// Values of the fields of a node that is being written.
pub(crate) struct FieldValues<'a> {
    pub(crate) name: &'a str,
    pub(crate) addr: &'a str,
    pub(crate) version: &'a str,
    pub(crate) weight: u32,
    pub(crate) metadata: &'a [(String, String)],
}

impl FieldValues<'_> {
    pub(super) fn text(&self, field: Field) -> String {
        match field {
            Field::Name => self.name.to_owned(),
            Field::Addr | Field::Label => self.addr.to_owned(),
            Field::Version => self.version.to_owned(),
            Field::Weight => self.weight.to_string(),
            Field::Id => self.id().to_string(),
            Field::Scheme => String::new(),
        }
    }

    /// FNV-1a of 64 bits (Fowler, Noll, Vo; RFC 9923), without the sign bit, so that Go's `int64` holds it.
    fn id(&self) -> u64 {
        let bytes = [self.name, "/", self.version, "/", self.addr].into_iter().flat_map(str::bytes);
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
            & (u64::MAX >> 1)
    }
}

/// Fields captured from a key and a value, as far as present.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Captures {
    pub(crate) name: Option<SmolStr>,
    pub(crate) addr: Option<SmolStr>,
    pub(crate) version: Option<SmolStr>,
    pub(crate) weight: Option<SmolStr>,
    pub(crate) scheme: Option<SmolStr>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(super) scheme_match: SchemeMatch,
}

impl Captures {
    /// Captures a field if `fits` then holds. Returns false and captures nothing if it does not, or if the field already
    /// has another text.
    pub(super) fn capture_if(&mut self, field: Field, text: &str, fits: impl FnOnce(&mut Self) -> bool) -> bool {
        match self.slot(field) {
            None => fits(self), // Other implementations derive it in their own way.
            Some(Some(captured)) => captured == text && fits(self),
            Some(slot) => {
                *slot = Some(text.into());
                let captured = fits(self);
                if let (false, Some(slot)) = (captured, self.slot(field)) {
                    *slot = None;
                }
                captured
            }
        }
    }

    fn slot(&mut self, field: Field) -> Option<&mut Option<SmolStr>> {
        match field {
            Field::Name => Some(&mut self.name),
            Field::Addr => Some(&mut self.addr),
            Field::Version => Some(&mut self.version),
            Field::Weight => Some(&mut self.weight),
            Field::Scheme => Some(&mut self.scheme),
            Field::Id | Field::Label => None,
        }
    }
}

/// Closeness of a captured scheme to the layout's own, closest first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SchemeMatch {
    #[default]
    Own,
    /// The same protocol, one of the two over TLS.
    TlsVariant,
    Foreign,
}

impl SchemeMatch {
    pub(super) fn new(scheme: &str, own: &str) -> Self {
        let plain = |scheme: &str| scheme.strip_suffix('s').unwrap_or(scheme).to_owned();
        match scheme {
            scheme if scheme == own => Self::Own,
            scheme if plain(scheme) == plain(own) => Self::TlsVariant,
            _ => Self::Foreign,
        }
    }
}
