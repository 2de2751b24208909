//! Identifier of a lease.

use std::{fmt, num::NonZeroI64};

/// Identifier of a lease in etcd, shown as hexadecimal digits as etcdctl shows it. Never 0, which means no lease in etcd's
/// API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(NonZeroI64);

impl LeaseId {
    /// Reads an identifier as etcd's API has it; `None` for 0, which means no lease.
    pub const fn new(id: i64) -> Option<Self> {
        match NonZeroI64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The identifier as etcd's API has it.
    pub const fn get(self) -> i64 {
        self.0.get()
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::LeaseId;

    #[test]
    fn a_lease_is_shown_as_etcdctl_shows_it() {
        assert_eq!(LeaseId::new(0x694d_77aa_9e38_2605).unwrap().to_string(), "694d77aa9e382605");
        assert_eq!(LeaseId::new(0), None);
    }
}
