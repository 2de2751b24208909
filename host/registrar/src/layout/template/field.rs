//! The fields of a node: as they are written, and as a template finds them in a key and a value.

use smol_str::SmolStr;

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Name,
    Addr,
    Version,
    Weight,
    /// A number made of name, version and address: the same at every start, and another for every instance.
    Id,
    /// The address when it is written, and anything when it is read.
    Label,
    /// How the address is spoken to: always written as its default, and read as any.
    Scheme,
}

/// The parts of a node that is being written.
pub(crate) struct Parts<'a> {
    pub(crate) name: &'a str,
    pub(crate) addr: &'a str,
    pub(crate) version: &'a str,
    pub(crate) weight: u32,
    pub(crate) metadata: &'a [(String, String)],
}

impl Parts<'_> {
    pub(super) fn of(&self, field: Field) -> String {
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

/// The parts of a node that was read, as far as they were there.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: Option<SmolStr>,
    pub(crate) addr: Option<SmolStr>,
    pub(crate) version: Option<SmolStr>,
    pub(crate) weight: Option<SmolStr>,
    pub(crate) scheme: Option<SmolStr>,
    pub(crate) metadata: Vec<(String, String)>,
    /// How far the scheme is from that of the layout.
    pub(super) strangeness: Strangeness,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Strangeness {
    #[default]
    Own,
    /// The same with TLS, or without.
    Secured,
    Foreign,
}

impl Strangeness {
    pub(super) fn of(scheme: &str, own: &str) -> Self {
        let plain = |scheme: &str| scheme.strip_suffix('s').unwrap_or(scheme).to_owned();
        match scheme {
            scheme if scheme == own => Self::Own,
            scheme if plain(scheme) == plain(own) => Self::Secured,
            _ => Self::Foreign,
        }
    }
}

impl Found {
    /// Takes a part over if `fits` then; false, and nothing is taken, if not, or when another is there already.
    pub(super) fn bind_if(&mut self, field: Field, text: &str, fits: impl FnOnce(&mut Self) -> bool) -> bool {
        match self.place(field) {
            None => fits(self), // Others have their own way to make one.
            Some(Some(there)) => there == text && fits(self),
            Some(place) => {
                *place = Some(text.into());
                let taken = fits(self);
                if let (false, Some(place)) = (taken, self.place(field)) {
                    *place = None;
                }
                taken
            }
        }
    }

    fn place(&mut self, field: Field) -> Option<&mut Option<SmolStr>> {
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
