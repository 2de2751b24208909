//! Bindings generated from `wit/world.wit`: the registry.

wit_bindgen::generate!({
    path: "wit",
    world: "program",
    generate_all,
});
