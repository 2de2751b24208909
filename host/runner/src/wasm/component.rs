//! A component file: read, compiled, linked, and inspected.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use leasehold_wasmtime::Lifecycle;
use wasmtime::component::{Component, InstancePre, types::ComponentItem};
use wasmtime_wasi::{p2::bindings::CommandPre, p3::bindings::CommandPre as AsyncCommandPre};
use wasmtime_wasi_http::{handler::ProxyPre, p2, p3};

use crate::{
    config::{Register, Spec},
    error::{Failure, one_line},
    wasm::{
        cache::{self, digest},
        compiler::{self, NotCompiled},
        context::StoreState,
        contract::unavailable,
        engine::Engine,
        error::cause,
        reuse::Reuse,
    },
};

/// A compiled component with all of its imports.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub(crate) pre: InstancePre<StoreState>,
    pub(crate) info: ComponentInfo,
    /// SHA-256 of the file, in hexadecimal.
    pub(crate) digest: Arc<str>,
    /// Digest of its manifest, if it is from a registry.
    pub(crate) manifest: Option<Arc<str>>,
}

/// Result of a look-up of a component file in the cache.
pub(crate) enum Lookup {
    Loaded(Loaded),
    /// It has to be compiled.
    NotCompiled(Vec<u8>),
}

/// Kind of a component, by its exports.
pub(crate) enum ComponentKind {
    /// A component that the host calls with each request.
    Handler(ProxyPre<StoreState>),
    /// A component that runs by itself, and listens at the address of its service.
    Program(ProgramPre),
}

/// A component with `wasi:cli/run`, by the version of that.
pub(crate) enum ProgramPre {
    P2(CommandPre<StoreState>),
    P3(AsyncCommandPre<StoreState>),
}

/// Imports and exports of a component, and what follows from them.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct ComponentInfo {
    /// Imports, as interface names.
    pub(crate) imports: Vec<String>,
    /// Exports, as interface names.
    pub(crate) exports: Vec<String>,
    /// The version of `wasi:http` through which it can be served.
    pub(crate) http: Option<&'static str>,
    /// The version of `wasi:cli` through which it is run, to open its own listener. A component with `wasi:http` is not.
    pub(crate) program: Option<&'static str>,
    /// Exports `leasehold:registry/lifecycle`.
    pub(crate) lifecycle: bool,
    /// Imports of Leasehold's own package.
    pub(crate) leasehold: Vec<String>,
    /// Reasons for which it cannot run here.
    pub(crate) missing: Vec<String>,
}

impl Loaded {
    /// Reads and compiles a file that is to be run, in this process; with `precompiled`, it may be machine code already.
    /// The error is one sentence that names it.
    pub(crate) fn load(engine: &Engine, path: &Path, precompiled: bool) -> Result<Self, Failure> {
        let binary = Binary::read(path, precompiled)?;
        let component = compile(engine, path, &binary)?;
        Self::link(engine, path, &component, digest(binary.bytes()))
    }

    /// Loads a file that needs no compilation: machine code, or a component in the cache.
    pub(crate) fn find(engine: &Engine, path: &Path, precompiled: bool) -> Result<Lookup, Failure> {
        let binary = Binary::read(path, precompiled)?;
        let digest = digest(binary.bytes());
        let component = match binary {
            Binary::MachineCode(code) => trusted(engine, path, &code)?,
            Binary::Wasm(bytes) => {
                match engine.cache.as_ref().and_then(|cache| cache.find(&engine.wasmtime, &digest)) {
                    Some(component) => component,
                    None => return Ok(Lookup::NotCompiled(bytes)),
                }
            }
        };
        Self::link(engine, path, &component, digest).map(Lookup::Loaded)
    }

    /// Reads a file that is to be run, and compiles it in a child process if necessary.
    pub(crate) async fn load_aside(engine: Engine, path: PathBuf, precompiled: bool) -> Result<Self, Failure> {
        let compiler = Arc::clone(&engine.compiler);
        let find = async || {
            let (engine, path) = (engine.clone(), path.clone());
            compiler.run(move || Self::find(&engine, &path, precompiled)).await
        };
        // A component in the cache does not wait for compilations.
        if let Lookup::Loaded(loaded) = find().await? {
            return Ok(loaded);
        }
        let _permit = compiler.permit().await;
        // Another service of the same component may have been first.
        let bytes = match find().await? {
            Lookup::Loaded(loaded) => return Ok(loaded),
            Lookup::NotCompiled(bytes) => Arc::new(bytes),
        };
        let compiled = compiler::compile(&path, Arc::clone(&bytes)).await;
        let take = move || {
            let digest = digest(&bytes);
            let component = adopt(&engine, &path, &bytes, &digest, compiled)?;
            Self::link(&engine, &path, &component, digest)
        };
        compiler.run(take).await
    }

    fn link(engine: &Engine, path: &Path, component: &Component, digest: Arc<str>) -> Result<Self, Failure> {
        let pre = engine.linker.instantiate_pre(component);
        let pre = pre.map_err(|error| {
            Failure::usage(format!("{}: {}", path.display(), missing_import(engine, component, &error)))
        })?;
        Ok(Self { info: info(engine, component, Some(&pre)), pre, digest, manifest: None })
    }

    /// Kind of the component.
    pub(crate) fn kind(&self, path: &Path) -> Result<ComponentKind, Failure> {
        kind_of(&self.pre).map_err(|message| Failure::usage(format!("{}: {message}", path.display())))
    }

    /// The component as a handler, in the place of a former handler.
    pub(crate) fn handler(&self, path: &Path) -> Result<ProxyPre<StoreState>, Failure> {
        match self.kind(path)? {
            ComponentKind::Handler(pre) => Ok(pre),
            ComponentKind::Program(_) => {
                Err(Failure::usage(format!("{}: it would open its own listener; {ANOTHER}", path.display())))
            }
        }
    }

    /// The component as a program, in the place of a former program.
    pub(crate) fn program(&self, path: &Path) -> Result<ProgramPre, Failure> {
        match self.kind(path)? {
            ComponentKind::Program(pre) => Ok(pre),
            ComponentKind::Handler(_) => {
                Err(Failure::usage(format!("{}: it does not open its own listener; {ANOTHER}", path.display())))
            }
        }
    }

    /// Checks that the component fits its configuration.
    pub(crate) fn check(&self, spec: &Spec) -> Result<(), Failure> {
        let path = &spec.component;
        let message = match self.kind(path)? {
            ComponentKind::Program(_) if spec.listen.port() == 0 => Some(NO_PORT),
            ComponentKind::Program(_) if spec.tls.is_some() => Some(NO_TLS),
            ComponentKind::Program(_) => None,
            ComponentKind::Handler(pre) => Reuse::of(&pre, &spec.limits).err(),
        };
        let message = message.or_else(|| self.info.unregistered(spec.register));
        message.map_or(Ok(()), |message| Err(Failure::usage(format!("{}: {message}", path.display()))))
    }
}

const NO_HANDLER: &str = "the component exports nothing that can be served; it needs wasi:http/incoming-handler@0.2 \
                          or wasi:http/handler@0.3, or wasi:cli/run to open its own listener";
const NO_SOCKETS: &str = "the component runs (wasi:cli/run) and cannot listen, since it does not import wasi:sockets/tcp; \
                          to be called by the host it needs wasi:http/incoming-handler@0.2 or wasi:http/handler@0.3";
const NO_PORT: &str = "the component opens its own listener, so listen must name a port other than 0";
const NO_TLS: &str = "the component opens its own listener, which the host cannot give TLS; leave tls out";
const ANOTHER: &str = "a reload cannot change that";

fn kind_of(pre: &InstancePre<StoreState>) -> Result<ComponentKind, &'static str> {
    if let Ok(pre) = p3::bindings::ServicePre::new(pre.clone()) {
        return Ok(ComponentKind::Handler(ProxyPre::P3(pre)));
    }
    if let Ok(pre) = p2::bindings::ProxyPre::new(pre.clone()) {
        return Ok(ComponentKind::Handler(ProxyPre::P2(pre)));
    }
    let program = match AsyncCommandPre::new(pre.clone()) {
        Ok(pre) => ProgramPre::P3(pre),
        Err(_) => ProgramPre::P2(CommandPre::new(pre.clone()).map_err(|_| NO_HANDLER)?),
    };
    let kind = pre.component().component_type();
    // 0.3 has all kinds of sockets in one interface.
    let listens = |name: &str| ["wasi:sockets/tcp@", "wasi:sockets/types@"].iter().any(|tcp| name.starts_with(tcp));
    match kind.imports(pre.engine()).any(|(name, _)| listens(name)) {
        true => Ok(ComponentKind::Program(program)),
        false => Err(NO_SOCKETS),
    }
}

impl ComponentInfo {
    /// Description of the way in which it is served.
    pub(crate) fn served(&self) -> String {
        match (self.http, self.program) {
            (Some(version), _) => format!("over wasi:http {version}"),
            (None, Some(version)) => format!("by its own listener, wasi:cli/run {version}"),
            (None, None) => "not".to_owned(),
        }
    }

    /// Reason for which it cannot be registered as configured.
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

/// Inspects a file that need not be able to run.
pub(crate) fn inspect(engine: &Engine, path: &Path) -> Result<ComponentInfo, Failure> {
    let component = compile(engine, path, &Binary::read(path, false)?)?;
    Ok(match engine.linker.instantiate_pre(&component) {
        Ok(pre) => info(engine, &component, Some(&pre)),
        Err(error) => {
            let mut info = info(engine, &component, None);
            info.missing.insert(0, missing_import(engine, &component, &error));
            info
        }
    })
}

/// Machine code of a component that could run here, for this release on the same kind of machine.
pub(crate) fn machine_code(engine: &Engine, path: &Path) -> Result<Vec<u8>, Failure> {
    let component = compile(engine, path, &Binary::read(path, false)?)?;
    let linked = engine.linker.instantiate_pre(&component);
    linked.map_err(|error| {
        Failure::usage(format!("{}: {}", path.display(), missing_import(engine, &component, &error)))
    })?;
    component.serialize().map_err(|error| Failure::other(format!("{}: {}", path.display(), cause(&error))))
}

/// Content of a component file.
enum Binary {
    Wasm(Vec<u8>),
    MachineCode(Vec<u8>),
}

impl Binary {
    fn bytes(&self) -> &[u8] {
        let (Self::Wasm(bytes) | Self::MachineCode(bytes)) = self;
        bytes
    }

    fn read(path: &Path, precompiled: bool) -> Result<Self, Failure> {
        let message = |message: &str| Failure::usage(format!("{}: {message}", path.display()));
        let bytes =
            std::fs::read(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
        match bytes.get(..8) {
            // The binary format's version, then its layer: 0 for a core module, 1 for a component.
            Some(b"\0asm\x01\0\0\0") => Err(message(
                "a core module, not a component; build it for wasm32-wasip2, or make a component of it: `leasehold componentize`",
            )),
            Some([0, b'a', b's', b'm', _, _, 1, 0]) => Ok(Self::Wasm(bytes)),
            Some([0x7f, b'E', b'L', b'F', ..]) if precompiled => Ok(Self::MachineCode(bytes)),
            Some([0x7f, b'E', b'L', b'F', ..]) => {
                Err(message("machine code is not sandboxed; if you trust its origin, set precompiled: true"))
            }
            _ => Err(message("not WebAssembly")),
        }
    }
}

fn compile(engine: &Engine, path: &Path, binary: &Binary) -> Result<Component, Failure> {
    match binary {
        Binary::MachineCode(code) => trusted(engine, path, code),
        Binary::Wasm(bytes) => engine.component(bytes).map_err(|error| invalid(path, &cause(&error))),
    }
}

fn invalid(path: &Path, message: &str) -> Failure {
    Failure::usage(format!("{}: not a valid component: {message}", path.display()))
}

/// Loads the machine code that a child has written; where no child can be started, this process compiles.
fn adopt(
    engine: &Engine,
    path: &Path,
    bytes: &[u8],
    digest: &str,
    compiled: Result<File, NotCompiled>,
) -> Result<Component, Failure> {
    let mut code = match compiled {
        Ok(code) => code,
        Err(NotCompiled::Refused(message)) => return Err(invalid(path, &message)),
        Err(NotCompiled::Failed(message)) => return Err(Failure::other(format!("{}: {message}", path.display()))),
        Err(NotCompiled::NoProcess(error)) => {
            tracing::warn!("no process can be started to compile {}, so this one does: {error}", path.display());
            return engine.component(bytes).map_err(|error| invalid(path, &cause(&error)));
        }
    };
    let component = match &engine.cache {
        Some(cache) => cache.take(&engine.wasmtime, digest, &mut code),
        None => cache::written(&engine.wasmtime, &mut code),
    };
    component.map_err(|error| Failure::other(format!("{}: {}", path.display(), cause(&error))))
}

/// Loads machine code as it is. wasmtime checks its compiler and its machine, not its effects.
#[expect(unsafe_code, reason = "the operator has said that this file is trusted, and nothing else can")]
fn trusted(engine: &Engine, path: &Path, code: &[u8]) -> Result<Component, Failure> {
    // SAFETY: `precompiled: true` is the operator's word that the file comes from `leasehold compile`, unchanged.
    let component = unsafe { Component::deserialize(&engine.wasmtime, code) };
    component
        .map_err(|error| Failure::usage(format!("{}: not made by this release: {}", path.display(), cause(&error))))
}

fn info(engine: &Engine, component: &Component, pre: Option<&InstancePre<StoreState>>) -> ComponentInfo {
    let kind = component.component_type();
    let instances = |name: &str, item: &ComponentItem| match item {
        ComponentItem::ComponentInstance(_) => name.to_owned(),
        ComponentItem::ComponentFunc(_) => format!("{name} (function)"),
        _ => format!("{name} (other)"),
    };
    let imports: Vec<_> = kind.imports(&engine.wasmtime).map(|(name, item)| instances(name, &item.ty)).collect();
    let exports: Vec<_> = kind.exports(&engine.wasmtime).map(|(name, item)| instances(name, &item.ty)).collect();
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    let version = |new: &str, old: &str| if has(new) { Some("0.3") } else { has(old).then_some("0.2") };
    let http = version("wasi:http/handler@0.3", "wasi:http/incoming-handler@0.2");
    let program = version("wasi:cli/run@0.3", "wasi:cli/run@0.2").filter(|_| http.is_none());
    let missing = match pre.map(kind_of) {
        Some(Err(message)) => vec![message.to_owned()],
        None if http.or(program).is_none() => vec![NO_HANDLER.to_owned()],
        _ => Vec::new(),
    };
    ComponentInfo {
        http: http.filter(|_| missing.is_empty()),
        program: program.filter(|_| missing.is_empty()),
        lifecycle: Lifecycle::is_exported(component),
        leasehold: imports.iter().filter(|name| name.starts_with("leasehold:")).cloned().collect(),
        missing,
        imports,
        exports,
    }
}

/// Sentence about an import that is missing here.
fn missing_import(engine: &Engine, component: &Component, error: &wasmtime::Error) -> String {
    let kind = component.component_type();
    let message = kind.imports(&engine.wasmtime).find_map(|(name, _)| unavailable(name));
    // wasmtime names the import first, and the mismatch in the causes.
    let message = message.unwrap_or_else(|| one_line(&format!("{error:#}")));
    format!("missing import: {message}")
}
