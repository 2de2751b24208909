//! Bindings generated from `wit/world.wit`: the registry, the configuration, the clock, and the exported lifecycle and handler.

#![expect(unsafe_code, reason = "generated")]

use crate::Hostile;

wit_bindgen::generate!({
    path: "wit",
    world: "hostile",
    generate_all,
});

export!(Hostile);
