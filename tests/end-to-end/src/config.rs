//! Configurations, as JSON, which is YAML.

use std::net::TcpListener;

use leasehold_scenarios::world::World;
use serde_json::{Value, json};

use crate::paths;

/// The weight that services have here, so that a key is compared byte for byte and written only for a reason.
pub const WEIGHT: u32 = 73;

/// The time to live of what asks for none, in seconds: the shortest with room for a slow machine.
pub const TTL: u64 = 3;

/// A service of that name, on a port of its own, whose component is one of `make guests`.
pub fn service(name: &str, component: &str) -> Value {
    json!({
        "name": name,
        "component": paths::component(component),
        "listen": "127.0.0.1:0",
        "config": { "name": name },
    })
}

/// The example, as its own configuration has it.
pub fn greeter() -> Value {
    with(
        service("greeter", "greeter"),
        json!({ "config": { "name": "greeter", "version": "v1", "greeting": "hello" } }),
    )
}

/// A service that knows nothing of Leasehold and is registered by the host.
pub fn plain(name: &str) -> Value {
    with(service(name, "plain"), json!({ "register": "host" }))
}

/// A service that does what it must not, once it is told to.
pub fn hostile(name: &str) -> Value {
    service(name, "hostile")
}

/// A program that opens its own listener, does what that verb says, and is registered by the host. It is given a second at
/// its end, as most do not hear of it.
///
/// # Panics
/// When there is no free port.
pub fn program(verb: &str) -> Value {
    let listen = free_address();
    let changes = json!({
        "listen": listen,
        "args": [listen, verb],
        "register": "host",
        "limits": { "drain_timeout": "1s" },
    });
    with(service("program", "program"), changes)
}

/// An address that nobody has at the moment.
///
/// # Panics
/// When there is none.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("it is bound").to_string()
}

/// `value` with these keys changed or added; objects inside of it likewise.
#[must_use]
pub fn with(mut value: Value, changes: Value) -> Value {
    match (&mut value, changes) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, change) in new {
                let before = old.remove(&key).unwrap_or(Value::Null);
                old.insert(key, with(before, change));
            }
            value
        }
        (_, changed) => changed,
    }
}

/// These services, on the world's etcd.
pub fn config(world: &World, services: impl IntoIterator<Item = Value>) -> Value {
    json!({
        "etcd": { "endpoints": [endpoint(world)] },
        "registry": { "ttl": format!("{TTL}s"), "weight": { "fixed": WEIGHT } },
        "services": services.into_iter().collect::<Vec<_>>(),
    })
}

/// Where the world's etcd listens.
///
/// # Panics
/// When it is a simulated one, which no other process reaches.
pub fn endpoint(world: &World) -> String {
    match world {
        World::Real(etcd) => etcd.endpoint(),
        World::Simulated(_) => panic!("a simulated etcd has no sockets"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::with;

    #[test]
    fn a_change_of_one_key_leaves_the_others() {
        let changed = with(json!({ "a": { "b": 1, "c": 2 } }), json!({ "a": { "b": 3 } }));
        assert_eq!(changed, json!({ "a": { "b": 3, "c": 2 } }));
    }
}
