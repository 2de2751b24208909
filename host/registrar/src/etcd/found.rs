//! A key as readers see it.

use etcd_client::KeyValue;

use crate::lease_id::LeaseId;

/// A key as it stands in etcd.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) lease: Option<LeaseId>,
    /// The revision that created it: another one after it was deleted and put again.
    pub(crate) created: i64,
    /// The revision that wrote it last.
    pub(crate) modified: i64,
}

impl From<KeyValue> for Found {
    fn from(found: KeyValue) -> Self {
        let (created, modified) = (found.create_revision(), found.mod_revision());
        let lease = LeaseId::new(found.lease());
        let (key, value) = found.into_key_value();
        Self { key, value, lease, created, modified }
    }
}
