//! Configurations as JSON, which is a subset of YAML.

use std::net::TcpListener;

use leasehold_scenarios::world::World;
use serde_json::{Value, json};

use crate::paths;

/// A fixed weight for all services, so that values compare byte for byte and are written only for a reason.
pub const WEIGHT: u32 = 73;

/// Default time to live, in seconds: the shortest with room for a slow machine.
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

/// The example, with its own configuration.
pub fn greeter() -> Value {
    with(
        service("greeter", "greeter"),
        json!({ "config": { "name": "greeter", "version": "v1", "greeting": "hello" } }),
    )
}

/// A service that does not use Leasehold's interfaces and is registered by the host.
pub fn plain(name: &str) -> Value {
    with(service(name, "plain"), json!({ "register": "host" }))
}

/// A service that misbehaves on command.
pub fn hostile(name: &str) -> Value {
    service(name, "hostile")
}

/// A program that opens its own listener, follows the verb, and is registered by the host. Its drain timeout is a second, as most
/// verbs do not read standard input.
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

/// A free local address.
///
/// # Panics
/// When there is no free port.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("it is bound").to_string()
}

/// `value` with these keys changed or added, recursively.
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

/// A configuration with these services on the world's etcd.
pub fn config(world: &World, services: impl IntoIterator<Item = Value>) -> Value {
    json!({
        "etcd": { "endpoints": [endpoint(world)] },
        "registry": { "ttl": format!("{TTL}s"), "weight": { "fixed": WEIGHT } },
        "services": services.into_iter().collect::<Vec<_>>(),
    })
}

/// Endpoint of the world's etcd.
///
/// # Panics
/// If the etcd is simulated, since other processes cannot reach it.
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
