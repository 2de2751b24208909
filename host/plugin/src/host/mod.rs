//! Imports of a component: each function parses its arguments, makes one call, and converts its result. The versions of the
//! contract share what is behind their traits.

mod asynchronous;
mod v0_1;
mod v0_2;

use std::sync::Arc;

use leasehold::Weight;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use crate::{
    bindings::{v0_1 as bindings_0_1, v0_2 as bindings_0_2, v0_2::leasehold::registry::registry_types as types},
    context::RegistryCtx,
    convert,
    error::{CallError, CallRefusal},
    handle::Handle,
    registration::ComponentRegistration,
    watch::Watch,
};

/// One store's access to its component's registry, made anew for every call.
pub struct RegistryView<'a> {
    /// The component's registrations and policy.
    pub ctx: &'a RegistryCtx,
    /// The store's table, which holds the component's handles.
    pub table: &'a mut ResourceTable,
}

/// Adds both versions of `leasehold:registry` to a linker, 0.1 and 0.2, the asynchronous interfaces included.
///
/// `view` borrows the [`RegistryCtx`] and the table of a store. The store must be used with async calls. The engine must have
/// the component model's concurrency, as it has by default.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> RegistryView<'_>,
) -> wasmtime::Result<()> {
    {
        use bindings_0_1::leasehold::registry::{discovery, registrar};

        // Its types are those of 0.2, so that nothing is generated for it.
        linker.instance("leasehold:registry/types@0.1.0")?;
        registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
        discovery::add_to_linker::<T, HasRegistry>(linker, view)?;
    }
    {
        use bindings_0_2::leasehold::registry::{
            async_discovery, async_registrar, discovery, registrar, registry_types,
        };

        registry_types::add_to_linker::<T, HasRegistry>(linker, view)?;
        registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
        discovery::add_to_linker::<T, HasRegistry>(linker, view)?;
        async_registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
        async_discovery::add_to_linker::<T, HasRegistry>(linker, view)
    }
}

struct HasRegistry;

impl HasData for HasRegistry {
    type Data<'a> = RegistryView<'a>;
}

impl types::Host for RegistryView<'_> {
    fn convert_error(&mut self, error: CallError) -> wasmtime::Result<types::Error> {
        Ok(error.into_refusal()?.into())
    }
}

/// The calls of all versions, by the names that they have there.
impl RegistryView<'_> {
    async fn register(&mut self, node: types::ServerNode, ttl_seconds: u32) -> Result<Resource<Handle>, CallError> {
        let registration = register(self.ctx, node, ttl_seconds).await?;
        self.handle(registration)
    }

    fn current(&mut self) -> wasmtime::Result<Vec<Resource<Handle>>> {
        let registrations = self.ctx.component_registrations().into_iter();
        registrations.map(|registration| Ok(self.table.push(Handle(registration))?)).collect()
    }

    fn key(&self, handle: &Resource<Handle>) -> wasmtime::Result<String> {
        Ok(self.known(handle)?.registration().key().to_string())
    }

    fn node(&self, handle: &Resource<Handle>) -> wasmtime::Result<types::ServerNode> {
        Ok(convert::published(self.known(handle)?))
    }

    fn status(&self, handle: &Resource<Handle>) -> wasmtime::Result<types::Status> {
        Ok(self.known(handle)?.status().into())
    }

    async fn set_weight(&mut self, handle: &Resource<Handle>, weight: u32) -> Result<(), CallError> {
        set_weight(self.ctx, &*self.registration(handle)?, weight).await
    }

    async fn stop(&mut self, handle: &Resource<Handle>) -> Result<(), CallError> {
        stop(self.ctx, &*self.registration(handle)?).await
    }

    async fn resolve(&mut self, name: &str, version: &str) -> Result<Vec<types::ServerNode>, CallError> {
        resolve(self.ctx, name, version).await
    }

    async fn pick(&mut self, name: &str, version: &str) -> Result<Option<types::ServerNode>, CallError> {
        pick(self.ctx, name, version).await
    }

    fn drop_handle(&mut self, handle: Resource<Handle>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }

    fn handle(&mut self, registration: Arc<ComponentRegistration>) -> Result<Resource<Handle>, CallError> {
        Ok(self.table.push(Handle(registration))?)
    }

    fn registration(&self, handle: &Resource<Handle>) -> Result<Arc<ComponentRegistration>, CallError> {
        Ok(Arc::clone(&self.table.get(handle)?.0))
    }

    /// The registration, for functions without an error in the WIT: an unknown handle traps.
    fn known(&self, handle: &Resource<Handle>) -> wasmtime::Result<&ComponentRegistration> {
        Ok(&self.table.get(handle)?.0)
    }
}

async fn register(
    ctx: &RegistryCtx,
    node: types::ServerNode,
    ttl_seconds: u32,
) -> Result<Arc<ComponentRegistration>, CallError> {
    ctx.observed("register", async { Ok(ctx.register(node, ttl_seconds).await?) }).await
}

async fn set_weight(ctx: &RegistryCtx, registration: &ComponentRegistration, weight: u32) -> Result<(), CallError> {
    let set = async {
        let weight = Weight::try_from(weight).map_err(CallRefusal::from)?;
        Ok(ctx.bounded(registration.set_weight(weight)).await?)
    };
    ctx.observed("set-weight", set).await
}

async fn stop(ctx: &RegistryCtx, registration: &ComponentRegistration) -> Result<(), CallError> {
    ctx.observed("stop", async { Ok(ctx.bounded(ctx.stop(registration)).await?) }).await
}

async fn resolve(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Vec<types::ServerNode>, CallError> {
    let nodes = ctx.observed("resolve", async { Ok(ctx.resolve(name, version).await?) }).await?;
    Ok(ctx.subset(&nodes).map(Into::into).collect())
}

async fn pick(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Option<types::ServerNode>, CallError> {
    let pick = ctx.observed("pick", async { Ok(ctx.pick(name, version).await?) }).await?;
    Ok(pick.map(|pick| pick.node().into()))
}

async fn watch(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Watch, CallError> {
    ctx.observed("watch", async { Ok(ctx.open_watch(name, version).await?) }).await
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Result, Write},
        sync::Arc,
        time::Duration,
    };

    use leasehold::{Options, Registrar};
    use parking_lot::Mutex;

    use super::{register, types};
    use crate::{Policy, RegistryCtx};

    /// Lines of a log.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    fn node(name: &str) -> types::ServerNode {
        types::ServerNode {
            name: name.into(),
            addr: String::new(),
            version: String::new(),
            weight: None,
            metadata: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_failure_of_the_host_is_one_warning_with_the_component_and_the_cause() {
        let log = Log::default();
        let writer = log.clone();
        let logging = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        // For all threads, since what one thread does not log would be remembered for the others.
        tracing::subscriber::set_global_default(logging).unwrap();
        tracing::callsite::rebuild_interest_cache();

        let options = Options { register_timeout: Duration::from_millis(200), ..Options::new(["http://127.0.0.1:1"]) };
        let registrar = Registrar::start(options).unwrap();
        let policy = Policy::serving("user".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
        let ctx = RegistryCtx::new(registrar.clone(), policy);
        assert_eq!(ctx.name(), "user");
        let ctx = ctx.named("greeter");
        for _ in 0..3 {
            register(&ctx, node("user"), 0).await.unwrap_err();
        }
        register(&ctx.successor(), node("payments"), 0).await.unwrap_err();
        registrar.shutdown(Duration::from_secs(5)).await.unwrap();
        register(&ctx, node("user"), 0).await.unwrap_err();

        let log = String::from_utf8(log.0.lock().clone()).unwrap();
        let log: String =
            log.lines().filter(|line| line.contains("component=\"greeter\"")).map(|line| format!("{line}\n")).collect();
        let of_calls =
            |level: &str| log.lines().filter(|line| line.contains(level) && line.contains("component=")).count();
        let lines = |part: &str| log.lines().filter(|line| line.contains(part)).collect::<Vec<_>>();
        let unreachable = lines("127.0.0.1:1 cannot be reached: Connection refused");
        let warned: Vec<_> = unreachable.iter().filter(|line| line.contains(" WARN ")).collect();
        assert_eq!(warned.len(), 1, "{log}");
        assert!(warned[0].contains("component=\"greeter\"") && warned[0].contains("call=\"register\""), "{log}");
        let own = lines("name must be one that this component may publish");
        assert!(matches!(own[..], [line] if line.contains("DEBUG") && line.contains("component=\"greeter\"")), "{log}");
        assert_eq!(lines("the host's registry has ended").len(), 1, "{log}");
        assert_eq!((of_calls(" WARN "), of_calls("DEBUG") >= 3), (2, true), "{log}");
    }
}
