//! Bindings generated from `wit/world.wit`: the plain functions of the registry, the configuration, and the exported lifecycle.

#![expect(unsafe_code, reason = "generated")]

use crate::Lookup;

wit_bindgen::generate!({
    path: "wit",
    world: "lookup",
    generate_all,
});

export!(Lookup);
