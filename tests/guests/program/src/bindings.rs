//! What `generate!` makes of `wit/world.wit`: the registry.

wit_bindgen::generate!({
    path: "wit",
    world: "program",
    generate_all,
});
