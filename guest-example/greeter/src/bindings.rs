//! What `generate!` makes of `wit/world.wit`: the registry, the configuration, and the lifecycle to export.

#![expect(unsafe_code, reason = "generated")]

use crate::Greeter;

wit_bindgen::generate!({
    path: "wit",
    world: "greeter",
    generate_all,
});

export!(Greeter);
