//! Bindings generated from `wit/world.wit`: the registry, the configuration, and the exported lifecycle.

#![expect(unsafe_code, reason = "generated")]

use crate::Hostile;

wit_bindgen::generate!({
    path: "wit",
    world: "hostile",
    generate_all,
});

export!(Hostile);

#[cfg(feature = "contract-0-2")]
pub(crate) use leasehold::registry::registry_types as types;
/// The types of the contract, whose interface has another name in each version.
#[cfg(not(feature = "contract-0-2"))]
pub(crate) use leasehold::registry::types;
