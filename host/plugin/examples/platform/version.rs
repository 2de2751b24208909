//! One version of a plugin: its stores, and the requests that it serves.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use leasehold_wasmtime::{RegistryCtx, RegistryCtxView, RegistryView};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::oneshot,
};
use tokio_util::task::TaskTracker;
use tracing::warn;
use wasmtime::{
    Config, Engine, Error, Result, Store, StoreLimits, StoreLimitsBuilder,
    component::{Linker, ResourceTable},
    error::Context,
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{
    WasiHttpCtx, WasiHttpCtxView, WasiHttpView,
    p2::bindings::{
        ProxyPre,
        http::types::{ErrorCode, Scheme},
    },
};

use crate::within;

/// Interval at which a plugin hands its thread back, so that deadlines hold for a plugin that loops.
const TICK: Duration = Duration::from_millis(10);
/// Most memory of an instance, and longest request and response, in bytes.
const MAX_MEMORY: usize = 64 << 20;
const MAX_REQUEST: u64 = 8 << 10;
const MAX_RESPONSE: usize = 1 << 20;
/// Requests in flight of one version, at most. A further one is closed at once.
const MAX_REQUESTS: usize = 100;

/// The imports of plugins, and an engine that interrupts them.
pub(crate) fn linker() -> Result<Linker<State>> {
    let engine = Engine::new(Config::new().epoch_interruption(true))?;
    let ticker = engine.weak();
    std::thread::spawn(move || {
        while let Some(engine) = ticker.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    });
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State| WasiConfig::from(&state.config))?;
    leasehold_wasmtime::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Data of a plugin's store: no files, no environment, no network.
pub(crate) struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    config: WasiConfigVariables,
    registry: RegistryCtx,
    limits: StoreLimits,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: Default::default() }
    }
}

impl RegistryView for State {
    fn registry(&mut self) -> RegistryCtxView<'_> {
        RegistryCtxView::new(&self.registry, &mut self.table)
    }
}

/// One version of a plugin, as requests are served by it.
pub(crate) struct Version {
    pub(crate) pre: ProxyPre<State>,
    pub(crate) config: Vec<(String, String)>,
    pub(crate) registry: RegistryCtx,
    requests: TaskTracker,
}

impl Version {
    pub(crate) fn new(pre: ProxyPre<State>, config: Vec<(String, String)>, registry: RegistryCtx) -> Self {
        Self { pre, config, registry, requests: TaskTracker::new() }
    }

    /// Begins to serve a request.
    pub(crate) fn serve(self: &Arc<Self>, stream: TcpStream) {
        if self.requests.len() < MAX_REQUESTS {
            let answer = Arc::clone(self).answer(stream);
            self.requests.spawn(async { within("a client", answer).await.ok() });
        }
    }

    pub(crate) fn store(&self) -> Store<State> {
        let state = State {
            table: ResourceTable::new(),
            wasi: WasiCtx::default(),
            http: WasiHttpCtx::new(),
            config: WasiConfigVariables::from_iter(self.config.clone()),
            registry: self.registry.clone(),
            limits: StoreLimitsBuilder::new().memory_size(MAX_MEMORY).build(),
        };
        let mut store = Store::new(self.pre.engine(), state);
        store.limiter(|state| &mut state.limits);
        store.epoch_deadline_async_yield_and_update(1);
        store
    }

    /// Waits until the requests in flight are complete.
    pub(crate) async fn complete(&self) {
        self.registry.end_watches();
        self.requests.close();
        self.requests.wait().await;
    }

    /// Serves one request on an instance of its own, which alone is lost when it traps.
    async fn call(&self, path: &str) -> Result<Vec<u8>> {
        let mut store = self.store();
        let body = Empty::new().map_err(|never: Infallible| -> ErrorCode { match never {} });
        let request = Request::get(path).header(HOST, "plugin").body(body)?;
        let (sender, response) = oneshot::channel();
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(sender)?;
        let handled = async move {
            let proxy = self.pre.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
        };
        let read = async {
            let (_, body) = response.await.context("it did not respond")??.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await.map_err(Error::from_boxed)?;
            Ok(body.to_bytes().to_vec())
        };
        Ok(tokio::try_join!(handled, read)?.1)
    }

    /// A request of HTTP/1.1 and its response. A platform has a server in this place.
    async fn answer(self: Arc<Self>, mut stream: TcpStream) -> Result<()> {
        let (read, mut write) = stream.split();
        let mut head = BufReader::new(read.take(MAX_REQUEST)).lines();
        let line = head.next_line().await?.context("no request")?;
        while head.next_line().await?.is_some_and(|line| !line.is_empty()) {}
        let path = line.split(' ').nth(1).context("no path")?;
        let (status, body) = match within("the request", self.call(path)).await {
            Ok(body) => (StatusCode::OK, body),
            Err(error) => {
                warn!("{}: {error:#}", self.registry.name());
                (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
            }
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        write.write_all(&[head.as_bytes(), &body].concat()).await?;
        Ok(write.shutdown().await?)
    }
}
