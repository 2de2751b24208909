//! A platform of plugins that is not the runner: they are loaded, replaced and unloaded while it runs, each behind its own route.
//!
//! `cargo run --release -p leasehold-wasmtime --example platform -- ETCD`, then one order a line on standard input:
//! `load NAME COMPONENT [KEY=VALUE…]`, `swap NAME COMPONENT [KEY=VALUE…]`, `unload NAME`, and `panic NAME`, which is a fault of the
//! platform itself. The end of the input unloads all of them.
//!
//! The life of a plugin is one task. Its keys appear after its route stands, and go before the route goes, however it ends.

#[path = "platform/version.rs"]
mod version;

use std::{
    collections::HashMap, convert::Infallible, env, io, mem, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};

use futures::FutureExt;
use leasehold::{Options, Registrar, ServerNode};
use leasehold_wasmtime::{Lifecycle, Policy, RegistryCtx};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use wasmtime::{
    Error, Result, Store, bail,
    component::{Component, Instance, Linker},
    error::Context,
    format_err,
};
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use version::{State, Version, linker};

/// Deadline of each step of a plugin and of a request; longer than a call of the registry takes.
const DEADLINE: Duration = Duration::from_secs(15);
/// Time for which a route stands after the keys are gone, since clients hear of that a little later.
const SETTLE: Duration = Duration::from_secs(2);
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(10);

struct Platform {
    linker: Linker<State>,
    registrar: Registrar,
    tasks: TaskTracker,
}

enum Order {
    Swap(Source),
    Unload,
    Panic,
}

/// A component's file and its configuration.
struct Source {
    path: String,
    config: Vec<(String, String)>,
}

/// A version with its long-lived instance, which it has for its `lifecycle`.
struct Plugin {
    version: Arc<Version>,
    instance: Option<(Lifecycle, Store<State>, Instance)>,
}

/// The way to the version that serves further requests.
type Route = Mutex<Option<Arc<Version>>>;

#[tokio::main]
async fn main() -> Result<()> {
    let etcd = env::args().nth(1).context("usage: platform ETCD")?;
    tracing_subscriber::fmt().with_ansi(false).init();
    let registrar = Registrar::start(Options::new([etcd]))?;
    let platform = Arc::new(Platform { linker: linker()?, registrar, tasks: TaskTracker::new() });

    let mut plugins = HashMap::new();
    let mut orders = lines();
    while let Some(line) = orders.recv().await {
        if let Err(error) = platform.obey(&line, &mut plugins) {
            warn!("{line}: {error:#}");
        }
    }
    // A plugin that can have no further orders is unloaded; all of them at the same time.
    drop(plugins);
    platform.tasks.close();
    platform.tasks.wait().await;
    Ok(platform.registrar.shutdown(DEADLINE).await?)
}

impl Platform {
    /// Hands an order to the plugin's task, and waits for none of them.
    fn obey(self: &Arc<Self>, line: &str, plugins: &mut HashMap<String, mpsc::Sender<Order>>) -> Result<()> {
        let mut words = line.split_whitespace();
        let (verb, name) = words.next().zip(words.next()).context("an order is a verb and a name")?;
        let mut source = || {
            let path = words.next().context("no component")?.to_owned();
            let pairs = [("name", name)].into_iter().chain(words.by_ref().filter_map(|pair| pair.split_once('=')));
            Ok::<_, Error>(Source { path, config: pairs.map(|(key, value)| (key.into(), value.into())).collect() })
        };
        let order = match verb {
            "load" if plugins.get(name).is_some_and(|orders| !orders.is_closed()) => bail!("it is loaded already"),
            "load" => {
                let (sender, orders) = mpsc::channel(4);
                self.tasks.spawn(Arc::clone(self).live(name.to_owned(), source()?, orders));
                plugins.insert(name.to_owned(), sender);
                return Ok(());
            }
            "swap" => Order::Swap(source()?),
            "unload" => Order::Unload,
            "panic" => Order::Panic,
            _ => bail!("no such order"),
        };
        let plugin = plugins.get(name).context("it is not loaded")?;
        plugin.try_send(order).map_err(|_| format_err!("it has ended, or has orders enough"))
    }

    /// The life of a plugin. Its end is the same whether it was unloaded, failed, or met with a fault of the platform.
    async fn live(self: Arc<Self>, name: String, source: Source, orders: mpsc::Receiver<Order>) {
        let (listener, node) = match bound(&name).await {
            Ok(bound) => bound,
            Err(error) => return warn!("{name}: {error:#}"),
        };
        let policy = Policy::serving(node.name.clone(), node.addr.clone());
        let (registry, route) = (RegistryCtx::new(self.registrar.clone(), policy), Route::default());

        let life = AssertUnwindSafe(self.run(&node, &registry, &route, source, orders)).catch_unwind();
        let ended = while_accepting(&listener, &route, life).await.unwrap_or_else(|_| Err(format_err!("a panic")));

        // The keys go first. Where etcd does not answer, the registrar goes on until they are gone.
        let unannounced = async {
            if let Err(error) = registry.stop_all().await {
                warn!("{name}: {error}");
            }
            sleep(SETTLE).await;
        };
        while_accepting(&listener, &route, unannounced).await;
        drop(listener);
        let last = route.lock().take();
        if let Some(version) = last {
            version.complete().await;
        }
        let stopped = match ended {
            Ok(plugin) => plugin.stop().await,
            Err(error) => Err(error),
        };
        match stopped {
            Ok(()) => info!("{name}: unloaded"),
            Err(error) => warn!("{name}: failed, and was unloaded: {error:#}"),
        }
    }

    async fn run(
        &self,
        node: &ServerNode,
        registry: &RegistryCtx,
        route: &Route,
        source: Source,
        mut orders: mpsc::Receiver<Order>,
    ) -> Result<Plugin> {
        let mut plugin = self.prepare(registry, source).await?;
        *route.lock() = Some(Arc::clone(&plugin.version));
        plugin.announce(node).await?;
        info!("{}: serves at {}", node.name, node.addr);
        while let Some(order) = orders.recv().await {
            match order {
                Order::Swap(source) => match self.swap(&mut plugin, node, route, source).await {
                    Ok(()) => info!("{}: swapped", node.name),
                    Err(error) => warn!("{}: not swapped: {error:#}", node.name),
                },
                Order::Unload => break,
                Order::Panic => panic!("a fault of the platform"),
            }
        }
        Ok(plugin)
    }

    /// Compiles and instantiates a version, which registers nothing yet.
    async fn prepare(&self, registry: &RegistryCtx, Source { path, config }: Source) -> Result<Plugin> {
        let engine = self.linker.engine().clone();
        let component = self.tasks.spawn_blocking(move || Component::from_file(&engine, path)).await??;
        let pre = self.linker.instantiate_pre(&component)?;
        let lifecycle = Lifecycle::of(&pre)?;
        let version = Arc::new(Version::new(ProxyPre::new(pre)?, config, registry.clone()));
        let mut plugin = Plugin { version, instance: None };
        if let Some(lifecycle) = lifecycle {
            let mut store = plugin.version.store();
            let instance = plugin.version.pre.instance_pre().instantiate_async(&mut store);
            let instance = within("the instantiation", instance).await?;
            plugin.instance = Some((lifecycle, store, instance));
        }
        Ok(plugin)
    }

    /// Replaces the version behind the route. Keys that both versions register stay; after an error the former version serves on.
    async fn swap(&self, plugin: &mut Plugin, node: &ServerNode, route: &Route, source: Source) -> Result<()> {
        let registry = plugin.version.registry.successor();
        let next = async {
            let mut next = self.prepare(&registry, source).await?;
            next.announce(node).await?;
            Ok(next)
        };
        let next = match next.await {
            Ok(next) => next,
            Err(error) => {
                registry.give_back(&plugin.version.registry).await?;
                return Err(error);
            }
        };
        *route.lock() = Some(Arc::clone(&next.version));
        let former = mem::replace(plugin, next);
        // Keys of the former version alone go now, since requests do not reach it any more.
        let taken = registry.take_over().await;
        former.version.complete().await;
        former.stop().await?;
        Ok(taken?)
    }
}

impl Plugin {
    /// Lets the component register itself; the platform registers a component that has no `lifecycle`.
    async fn announce(&mut self, node: &ServerNode) -> Result<()> {
        match &mut self.instance {
            Some((lifecycle, store, instance)) => {
                let started = within("lifecycle.start", lifecycle.start(store, instance)).await?;
                started.map_err(|why| format_err!("lifecycle.start: {why}"))
            }
            None => Ok(self.version.registry.register_node(node.clone()).await.map(drop)?),
        }
    }

    async fn stop(self) -> Result<()> {
        match self.instance {
            Some((lifecycle, store, instance)) => within("lifecycle.stop", lifecycle.stop(store, &instance)).await,
            None => Ok(()),
        }
    }
}

/// Address of a plugin, at which nothing is served yet, and its node.
async fn bound(name: &str) -> Result<(TcpListener, ServerNode)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let node = ServerNode::new(name, &listener.local_addr()?.to_string())?;
    Ok((listener, node))
}

/// Serves further requests until `work` is done.
async fn while_accepting<T>(listener: &TcpListener, route: &Route, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = accept(listener, route) => match never {},
    }
}

async fn accept(listener: &TcpListener, route: &Route) -> Infallible {
    loop {
        let accepted = listener.accept().await;
        let version = route.lock().clone();
        match (accepted, version) {
            (Ok((stream, _)), Some(version)) => version.serve(stream),
            _ => sleep(PAUSE).await,
        }
    }
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(DEADLINE, work).await.with_context(|| format!("{what} takes longer than {DEADLINE:?}"))?
}

/// Lines of standard input, until its end.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        io::stdin().lines().map_while(Result::ok).try_for_each(|line| sender.blocking_send(line))
    });
    lines
}
