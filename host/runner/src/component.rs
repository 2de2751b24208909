//! A component file: reading it, compiling it, and what it turns out to be.

use std::path::Path;

use leasehold_wasmtime::Lifecycle;
use wasmtime::component::{Component, InstancePre, types::ComponentItem};
use wasmtime_wasi_http::{handler::ProxyPre, p2, p3};

use crate::{
    config::Register,
    engine::Engine,
    failure::{Failure, one_line},
    guest::Host,
};

/// A compiled component whose imports are all there.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) pre: InstancePre<Host>,
    pub(crate) facts: Facts,
}

/// What a component says of itself.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Facts {
    /// What it imports, as interface names.
    pub(crate) imports: Vec<String>,
    /// What it exports, as interface names.
    pub(crate) exports: Vec<String>,
    /// The version of `wasi:http` through which it can be served.
    pub(crate) http: Option<&'static str>,
    /// Whether it exports `leasehold:registry/lifecycle`.
    pub(crate) lifecycle: bool,
    /// What it imports of Leasehold's own.
    pub(crate) leasehold: Vec<String>,
    /// Why it cannot run here, if it cannot.
    pub(crate) missing: Vec<String>,
}

impl Loaded {
    /// Reads and compiles a file that is to be run; with `precompiled`, it may be machine code already. The error is one
    /// sentence that names it.
    pub(crate) fn load(engine: &Engine, path: &Path, precompiled: bool) -> Result<Self, Failure> {
        let component = compile(engine, path, precompiled)?;
        let pre = engine.linker.instantiate_pre(&component);
        let pre = pre.map_err(|error| Failure::usage(format!("{}: {}", path.display(), unlinked(&error))))?;
        Ok(Self { facts: facts(engine, &component, Some(&pre)), pre })
    }

    /// How requests are dispatched to it.
    pub(crate) fn proxy(&self, path: &Path) -> Result<ProxyPre<Host>, Failure> {
        if let Ok(pre) = p3::bindings::ServicePre::new(self.pre.clone()) {
            return Ok(ProxyPre::P3(pre));
        }
        match p2::bindings::ProxyPre::new(self.pre.clone()) {
            Ok(pre) => Ok(ProxyPre::P2(pre)),
            Err(_) => Err(Failure::usage(format!("{}: {NO_HANDLER}", path.display()))),
        }
    }

    /// Whether the component can do its part of the registration.
    pub(crate) fn check_register(&self, path: &Path, register: Register) -> Result<(), Failure> {
        match self.facts.unregistered(register) {
            None => Ok(()),
            Some(said) => Err(Failure::usage(format!("{}: {said}", path.display()))),
        }
    }
}

const NO_HANDLER: &str = "the component exports nothing that can be served; it needs wasi:http/incoming-handler@0.2 \
                          or wasi:http/handler@0.3";

impl Facts {
    /// What stands in the way of a registration by whom it is configured to be.
    pub(crate) fn unregistered(&self, register: Register) -> Option<&'static str> {
        let calls = self.leasehold.iter().any(|name| name.contains("/registrar@"));
        match register {
            Register::Component if !calls => Some(
                "the component does not import leasehold:registry/registrar and so cannot register itself; \
                 say register: host and the host does it",
            ),
            _ => None,
        }
    }
}

/// Looks at a file that need not be able to run.
pub(crate) fn inspect(engine: &Engine, path: &Path) -> Result<Facts, Failure> {
    let component = compile(engine, path, false)?;
    Ok(match engine.linker.instantiate_pre(&component) {
        Ok(pre) => facts(engine, &component, Some(&pre)),
        Err(error) => {
            let mut facts = facts(engine, &component, None);
            facts.missing.insert(0, unlinked(&error));
            facts
        }
    })
}

/// The machine code of a component that could run here, for another start of this very release on such a machine.
pub(crate) fn machine_code(engine: &Engine, path: &Path) -> Result<Vec<u8>, Failure> {
    let component = compile(engine, path, false)?;
    let linked = engine.linker.instantiate_pre(&component);
    linked.map_err(|error| Failure::usage(format!("{}: {}", path.display(), unlinked(&error))))?;
    component.serialize().map_err(|error| Failure::other(format!("{}: {}", path.display(), cause(&error))))
}

fn compile(engine: &Engine, path: &Path, precompiled: bool) -> Result<Component, Failure> {
    let said = |said: &str| Failure::usage(format!("{}: {said}", path.display()));
    let bytes =
        std::fs::read(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    match bytes.get(..8) {
        // The binary format's version, then its layer: 0 for a core module, 1 for a component.
        Some(b"\0asm\x01\0\0\0") => {
            return Err(said(
                "a core module, not a component; build it for wasm32-wasip2, or wrap it with `wasm-tools component new`",
            ));
        }
        Some([0, b'a', b's', b'm', _, _, 1, 0]) => {}
        Some([0x7f, b'E', b'L', b'F', ..]) if precompiled => {
            return trusted(engine, &bytes)
                .map_err(|error| said(&format!("not made by this release: {}", cause(&error))));
        }
        Some([0x7f, b'E', b'L', b'F', ..]) => {
            return Err(said(
                "machine code, which no sandbox holds; where you trust whoever compiled it, say precompiled: true",
            ));
        }
        _ => return Err(said("not WebAssembly")),
    }
    Component::new(&engine.wasmtime, bytes).map_err(|error| said(&format!("not a valid component: {}", cause(&error))))
}

/// Takes machine code as it is. wasmtime looks at who made it and for which machine, not at what it does.
#[expect(unsafe_code, reason = "the operator has said that this file is trusted, and nothing else can")]
fn trusted(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: `precompiled: true` is the operator's word that the file comes from `leasehold compile`, unchanged.
    unsafe { Component::deserialize(&engine.wasmtime, bytes) }
}

fn facts(engine: &Engine, component: &Component, pre: Option<&InstancePre<Host>>) -> Facts {
    let kind = component.component_type();
    let instances = |name: &str, item: &ComponentItem| match item {
        ComponentItem::ComponentInstance(_) => name.to_owned(),
        ComponentItem::ComponentFunc(_) => format!("{name} (function)"),
        _ => format!("{name} (other)"),
    };
    let imports: Vec<_> = kind.imports(&engine.wasmtime).map(|(name, item)| instances(name, &item.ty)).collect();
    let exports: Vec<_> = kind.exports(&engine.wasmtime).map(|(name, item)| instances(name, &item.ty)).collect();
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    let http = if has("wasi:http/handler@0.3") {
        Some("0.3")
    } else if has("wasi:http/incoming-handler@0.2") {
        Some("0.2")
    } else {
        None
    };
    let served = pre.is_none_or(|pre| {
        p3::bindings::ServicePre::new(pre.clone()).is_ok() || p2::bindings::ProxyPre::new(pre.clone()).is_ok()
    });
    let mut missing = Vec::new();
    if http.is_none() || !served {
        missing.push(NO_HANDLER.to_owned());
    }
    Facts {
        http: http.filter(|_| served),
        lifecycle: Lifecycle::is_exported(component),
        leasehold: imports.iter().filter(|name| name.starts_with("leasehold:")).cloned().collect(),
        missing,
        imports,
        exports,
    }
}

fn unlinked(error: &wasmtime::Error) -> String {
    // wasmtime names the import first and then, in the causes, what about it does not fit.
    format!("this host has not everything it needs: {}", one_line(&format!("{error:#}")))
}

/// What went wrong at the bottom of an error, without wasmtime's backtrace.
pub(crate) fn cause(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(trap) => trap.to_string(),
        None => one_line(&error.root_cause().to_string()),
    }
}
