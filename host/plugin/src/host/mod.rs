//! Imports of a component: each function parses its arguments, makes one call, and converts its result. The versions of the
//! contract share what is behind their traits.

#[cfg(feature = "p3")]
mod asynchronous;
mod v0_1;
mod v0_2;

use std::{borrow::Cow, sync::Arc};

use leasehold::Weight;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

#[cfg(all(feature = "discovery", feature = "p3"))]
use crate::watch::Watch;
use crate::{
    bindings::{v0_1 as bindings_0_1, v0_2 as bindings_0_2, v0_2::leasehold::registry::registry_types as types},
    context::RegistryCtx,
    convert,
    error::{CallError, CallRefusal},
    handle::Handle,
    registration::ComponentRegistration,
};

/// Access of a store's data to the registry of its component.
///
/// A platform whose store data is of a type of another crate gives a function instead, to
/// [`add_to_linker_with`](crate::add_to_linker_with).
pub trait RegistryView: Send {
    /// The registry of the store's component, made anew for every call, and the store's table.
    fn registry(&mut self) -> RegistryCtxView<'_>;
}

impl<T: RegistryView + ?Sized> RegistryView for &mut T {
    fn registry(&mut self) -> RegistryCtxView<'_> {
        T::registry(self)
    }
}

impl<T: RegistryView + ?Sized> RegistryView for Box<T> {
    fn registry(&mut self) -> RegistryCtxView<'_> {
        T::registry(self)
    }
}

/// One store's access to its component's registry, for one call.
pub struct RegistryCtxView<'a> {
    ctx: Option<Cow<'a, RegistryCtx>>,
    table: &'a mut ResourceTable,
}

impl<'a> RegistryCtxView<'a> {
    /// The component's registrations and policy, as they stand beside the store's table, which holds the component's handles.
    pub fn new(ctx: &'a RegistryCtx, table: &'a mut ResourceTable) -> Self {
        Self { ctx: Some(Cow::Borrowed(ctx)), table }
    }

    /// The same for a clone, of a context that stands behind a lock or is found by the component's name.
    pub fn owned(ctx: RegistryCtx, table: &'a mut ResourceTable) -> Self {
        Self { ctx: Some(Cow::Owned(ctx)), table }
    }

    /// A store without a registry: its component has no registrations, and gets `access-denied` for every call that needs the
    /// registry. Handles that it has still have their key, node and status.
    pub fn none(table: &'a mut ResourceTable) -> Self {
        Self { ctx: None, table }
    }

    fn ctx(&self) -> Result<&RegistryCtx, CallRefusal> {
        self.ctx.as_deref().ok_or(CallRefusal::NoRegistry)
    }
}

/// Adds every interface of both versions of `leasehold:registry` to a linker, 0.1 and 0.2: the asynchronous ones with the feature
/// `p3`, and those of discovery with the feature `discovery`.
///
/// The store must be used with async calls. With `p3` the engine must have the component model's concurrency, as it has by default.
pub fn add_to_linker<T: RegistryView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    add_to_linker_with(linker, T::registry)
}

/// Adds every interface like [`add_to_linker`], for data of a store whose type cannot implement [`RegistryView`].
pub fn add_to_linker_with<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> RegistryCtxView<'_>,
) -> wasmtime::Result<()> {
    #[cfg(feature = "discovery")]
    add_discovery_to_linker(linker, view)?;
    add_registrar_to_linker(linker, view)
}

/// Adds `registrar` of both versions and `async-registrar`, with the types that they use.
///
/// `view` is `State::registry`, where the store's data implements [`RegistryView`].
pub fn add_registrar_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> RegistryCtxView<'_>,
) -> wasmtime::Result<()> {
    add_types_to_linker(linker, view)?;
    bindings_0_1::leasehold::registry::registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
    #[cfg(feature = "p3")]
    bindings_0_2::leasehold::registry::async_registrar::add_to_linker::<T, HasRegistry>(linker, view)?;
    bindings_0_2::leasehold::registry::registrar::add_to_linker::<T, HasRegistry>(linker, view)
}

/// Adds `discovery` of both versions and `async-discovery`, with the types that they use, for components that look services up
/// and register nothing.
///
/// `view` is `State::registry`, where the store's data implements [`RegistryView`].
#[cfg(feature = "discovery")]
pub fn add_discovery_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> RegistryCtxView<'_>,
) -> wasmtime::Result<()> {
    add_types_to_linker(linker, view)?;
    bindings_0_1::leasehold::registry::discovery::add_to_linker::<T, HasRegistry>(linker, view)?;
    #[cfg(feature = "p3")]
    bindings_0_2::leasehold::registry::async_discovery::add_to_linker::<T, HasRegistry>(linker, view)?;
    bindings_0_2::leasehold::registry::discovery::add_to_linker::<T, HasRegistry>(linker, view)
}

fn add_types_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> RegistryCtxView<'_>,
) -> wasmtime::Result<()> {
    // The types of 0.1 are those of 0.2, so that nothing is generated for them.
    linker.instance("leasehold:registry/types@0.1.0")?;
    types::add_to_linker::<T, HasRegistry>(linker, view)
}

/// Key of the data that the interfaces take from a store, for the functions `add_to_linker` of a single interface in
/// [`bindings`](crate::bindings): `discovery::add_to_linker::<State, HasRegistry>(&mut linker, State::registry)`.
pub struct HasRegistry;

impl HasData for HasRegistry {
    type Data<'a> = RegistryCtxView<'a>;
}

impl types::Host for RegistryCtxView<'_> {
    fn convert_error(&mut self, error: CallError) -> wasmtime::Result<types::Error> {
        error.downcast()
    }
}

/// The calls of all versions, by the names that they have there.
impl RegistryCtxView<'_> {
    async fn register(&mut self, node: types::ServerNode, ttl_seconds: u32) -> Result<Resource<Handle>, CallError> {
        let registration = register(self.ctx()?, node, ttl_seconds).await?;
        self.handle(registration)
    }

    fn current(&mut self) -> wasmtime::Result<Vec<Resource<Handle>>> {
        let registrations = self.registrations().into_iter();
        registrations.map(|registration| Ok(self.table.push(Handle(registration))?)).collect()
    }

    fn registrations(&self) -> Vec<Arc<ComponentRegistration>> {
        self.ctx().map(RegistryCtx::component_registrations).unwrap_or_default()
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
        set_weight(self.ctx()?, &*self.registration(handle)?, weight).await
    }

    async fn stop(&mut self, handle: &Resource<Handle>) -> Result<(), CallError> {
        stop(self.ctx()?, &*self.registration(handle)?).await
    }

    #[cfg(feature = "discovery")]
    async fn resolve(&mut self, name: &str, version: &str) -> Result<Vec<types::ServerNode>, CallError> {
        resolve(self.ctx()?, name, version).await
    }

    #[cfg(feature = "discovery")]
    async fn pick(&mut self, name: &str, version: &str) -> Result<Option<types::ServerNode>, CallError> {
        pick(self.ctx()?, name, version).await
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

#[cfg(feature = "discovery")]
async fn resolve(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Vec<types::ServerNode>, CallError> {
    let nodes = ctx.observed("resolve", async { Ok(ctx.resolve(name, version).await?) }).await?;
    Ok(ctx.subset(&nodes).map(Into::into).collect())
}

#[cfg(feature = "discovery")]
async fn pick(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Option<types::ServerNode>, CallError> {
    let pick = ctx.observed("pick", async { Ok(ctx.pick(name, version).await?) }).await?;
    Ok(pick.map(|pick| pick.node().into()))
}

#[cfg(all(feature = "discovery", feature = "p3"))]
async fn watch(ctx: &RegistryCtx, name: &str, version: &str) -> Result<Watch, CallError> {
    ctx.observed("watch", async { Ok(ctx.open_watch(name, version).await?) }).await
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::Arc,
        time::Duration,
    };

    use leasehold::{Options, Registrar};
    use parking_lot::Mutex;
    use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

    use super::{
        CallRefusal, HasRegistry, RegistryCtxView, RegistryView, add_discovery_to_linker, add_registrar_to_linker,
        add_to_linker, register, types,
    };
    use crate::{
        CallError, Handle, Policy, RegistryCtx,
        bindings::v0_2::leasehold::registry::{discovery, registrar},
    };

    /// Lines of a log.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
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

    /// A store whose registry stands behind a lock, where it may be missing.
    struct State {
        table: ResourceTable,
        registries: Arc<Mutex<Option<RegistryCtx>>>,
    }

    impl RegistryView for State {
        fn registry(&mut self) -> RegistryCtxView<'_> {
            match &*self.registries.lock() {
                Some(ctx) => RegistryCtxView::owned(ctx.clone(), &mut self.table),
                None => RegistryCtxView::none(&mut self.table),
            }
        }
    }

    #[tokio::test]
    async fn a_registry_stands_behind_a_lock_and_may_be_missing() {
        let registrar = Registrar::start(Options::new(["http://127.0.0.1:1"])).unwrap();
        let policy = Policy::serving("user".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
        let ctx = RegistryCtx::new(registrar.clone(), policy);
        let mut state = State { table: ResourceTable::new(), registries: Arc::new(Mutex::new(Some(ctx.clone()))) };
        ctx.stop_all().await.unwrap();
        let mut refused = async || {
            let refusal = state.registry().register(node("user"), 0).await.unwrap_err().into_refusal().unwrap();
            assert!(state.registry().current().unwrap().is_empty());
            state.registries.lock().take();
            types::Error::from(refusal)
        };
        assert!(matches!(refused().await, types::Error::Unavailable(_)));
        match refused().await {
            types::Error::AccessDenied(text) => assert_eq!(text, "this component has no access to the registry"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            state.registry().resolve("user", "").await.unwrap_err().refusal(),
            Some(CallRefusal::NoRegistry)
        ));
        registrar.shutdown(Duration::from_secs(5)).await.unwrap();
    }

    /// A platform's own implementation: it refuses metadata, and leaves the rest to the registry.
    struct Audited<'a>(RegistryCtxView<'a>);

    struct HasAudited;

    impl HasData for HasAudited {
        type Data<'a> = Audited<'a>;
    }

    impl types::Host for Audited<'_> {
        fn convert_error(&mut self, error: CallError) -> wasmtime::Result<types::Error> {
            error.downcast()
        }
    }

    impl registrar::Host for Audited<'_> {
        async fn register(&mut self, node: types::ServerNode, ttl_seconds: u32) -> Result<Resource<Handle>, CallError> {
            if !node.metadata.is_empty() {
                return Err(types::Error::AccessDenied("no metadata here".into()).into());
            }
            registrar::Host::register(&mut self.0, node, ttl_seconds).await
        }

        fn current(&mut self) -> wasmtime::Result<Vec<Resource<Handle>>> {
            registrar::Host::current(&mut self.0)
        }

        fn describe(&mut self) -> wasmtime::Result<Vec<registrar::RegistrationInfo>> {
            registrar::Host::describe(&mut self.0)
        }
    }

    impl registrar::HostRegistration for Audited<'_> {
        fn key(&mut self, handle: Resource<Handle>) -> wasmtime::Result<String> {
            registrar::HostRegistration::key(&mut self.0, handle)
        }

        fn node(&mut self, handle: Resource<Handle>) -> wasmtime::Result<types::ServerNode> {
            registrar::HostRegistration::node(&mut self.0, handle)
        }

        fn status(&mut self, handle: Resource<Handle>) -> wasmtime::Result<types::Status> {
            registrar::HostRegistration::status(&mut self.0, handle)
        }

        async fn set_weight(&mut self, handle: Resource<Handle>, weight: u32) -> Result<(), CallError> {
            registrar::HostRegistration::set_weight(&mut self.0, handle, weight).await
        }

        async fn stop(&mut self, handle: Resource<Handle>) -> Result<(), CallError> {
            registrar::HostRegistration::stop(&mut self.0, handle).await
        }

        fn drop(&mut self, handle: Resource<Handle>) -> wasmtime::Result<()> {
            registrar::HostRegistration::drop(&mut self.0, handle)
        }
    }

    #[tokio::test]
    async fn a_platform_implements_an_interface_itself() {
        let registrar = Registrar::start(Options::new(["http://127.0.0.1:1"])).unwrap();
        let policy = Policy::serving("user".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
        let ctx = RegistryCtx::new(registrar.clone(), policy);
        ctx.stop_all().await.unwrap();
        let mut table = ResourceTable::new();
        let mut audited = Audited(RegistryCtxView::new(&ctx, &mut table));
        let tagged = types::ServerNode { metadata: vec![("zone".into(), "a".into())], ..node("user") };
        let refused = registrar::Host::register(&mut audited, tagged, 0).await.unwrap_err();
        match types::Host::convert_error(&mut audited, refused).unwrap() {
            types::Error::AccessDenied(text) => assert_eq!(text, "no metadata here"),
            other => panic!("{other:?}"),
        }
        // The registry's own refusal goes the same way.
        let refused = registrar::Host::register(&mut audited, node("user"), 0).await.unwrap_err();
        let refused = types::Host::convert_error(&mut audited, refused).unwrap();
        assert!(matches!(refused, types::Error::Unavailable(_)), "{refused:?}");

        let mut linker = Linker::<State>::new(&wasmtime::Engine::default());
        let view: fn(&mut State) -> Audited<'_> = |state| Audited(state.registry());
        types::add_to_linker::<State, HasAudited>(&mut linker, view).unwrap();
        registrar::add_to_linker::<State, HasAudited>(&mut linker, view).unwrap();
        registrar.shutdown(Duration::from_secs(5)).await.unwrap();
    }

    #[test]
    fn interfaces_are_linked_together_or_one_by_one() {
        let engine = wasmtime::Engine::default();
        let mut all = Linker::<State>::new(&engine);
        add_to_linker(&mut all).unwrap();
        let mut either = Linker::<State>::new(&engine);
        add_discovery_to_linker(&mut either, State::registry).unwrap();
        add_registrar_to_linker(&mut either, State::registry).unwrap();
        let mut one = Linker::<State>::new(&engine);
        discovery::add_to_linker::<State, HasRegistry>(&mut one, State::registry).unwrap();
        add_discovery_to_linker(&mut one, State::registry).expect_err("it is there already");
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
        let own = lines("name is not in this component's allow.names");
        assert!(matches!(own[..], [line] if line.contains("DEBUG") && line.contains("component=\"greeter\"")), "{log}");
        assert_eq!(lines("the host's registry has ended").len(), 1, "{log}");
        assert_eq!((of_calls(" WARN "), of_calls("DEBUG") >= 3), (2, true), "{log}");
    }
}
