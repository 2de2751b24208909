//! A foreign library as a program of `tests/interop`: one command per line in, one response per line out.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use leasehold_scenarios::world::SOON;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// Timeout of a response; the peers themselves give up earlier.
const PATIENCE: Duration = Duration::from_secs(60);
/// Capacity for responses. A peer sends one response per command; several waiting responses are a fault of the peer.
const ANSWERS: usize = 4;

/// An instance as a library shows it; unknown fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) addr: String,
    pub(crate) version: String,
    pub(crate) weight: u64,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl From<&Value> for Instance {
    fn from(said: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pairs = said["metadata"].as_object().into_iter().flatten();
        Self {
            addr: text(&said["addr"]),
            version: text(&said["version"]),
            weight: said["weight"].as_u64().unwrap_or_default(),
            metadata: pairs.map(|(key, value)| (key.clone(), text(value))).collect(),
        }
    }
}

type Seen = Arc<Mutex<HashMap<String, Vec<Instance>>>>;

/// A running peer, killed with its scenario.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    stdin: ChildStdin,
    answers: mpsc::Receiver<Value>,
    seen: Seen,
}

impl Peer {
    /// Starts a peer on the etcd at `HOST:PORT`; its stderr goes to a file.
    ///
    /// # Panics
    /// When it has not been built.
    pub(crate) fn spawn((program, script): (PathBuf, Option<PathBuf>), etcd: &str, log: &Path) -> Self {
        let mut child = Command::new(&program)
            .args(script)
            .args(["-etcd", etcd])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(log).expect("the folder is our own"))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}; is it built?", program.display()));
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, answers) = mpsc::channel(ANSWERS);
        let seen = Seen::default();
        tokio::spawn(read(stdout, sender, Arc::clone(&seen)));
        Self { child, stdin, answers, seen }
    }

    /// Watches a service from now on.
    pub(crate) async fn watch(&mut self, name: &str) -> Result<(), String> {
        self.ask(&json!({ "do": "watch", "name": name })).await.map(drop)
    }

    /// Calls the service with the library's own client.
    pub(crate) async fn call(&mut self, name: &str) -> Result<String, String> {
        self.ask(&json!({ "do": "call", "name": name })).await
    }

    /// Starts a server of the library, which registers itself, and returns its address.
    pub(crate) async fn register(&mut self, name: &str, instance: &Instance, grpc: bool) -> Result<String, String> {
        let node = json!({
            "name": name,
            "grpc": grpc,
            "version": instance.version,
            "weight": instance.weight,
            "metadata": instance.metadata,
        });
        self.ask(&json!({ "do": "register", "node": node })).await
    }

    /// Deregisters that server.
    pub(crate) async fn deregister(&mut self) -> Result<(), String> {
        self.ask(&json!({ "do": "deregister" })).await.map(drop)
    }

    /// Waits until the watched service fits.
    pub(crate) async fn sees(&self, name: &str, fits: impl Fn(&[Instance]) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + SOON;
        loop {
            let seen = self.seen.lock().expect("no holder panics").get(name).cloned();
            if seen.as_deref().is_some_and(&fits) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("it last saw {seen:?}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&mut self, command: &Value) -> Result<String, String> {
        let written = self.stdin.write_all(format!("{command}\n").as_bytes()).await;
        written.map_err(|error| format!("the peer does not read: {error}"))?;
        let answer = timeout(PATIENCE, self.answers.recv()).await;
        let answer = answer.map_err(|_| format!("no answer to {command}"))?;
        let answer = answer.ok_or_else(|| format!("the peer ended at {command}: {:?}", self.child.try_wait()))?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["answer"].as_str().unwrap_or_default().to_owned()),
        }
    }
}

/// Stores the instances that the peer sees, and forwards its responses.
async fn read(stdout: ChildStdout, answers: mpsc::Sender<Value>, seen: Seen) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(said) = serde_json::from_str::<Value>(&line) else {
            return; // The next command fails with a missing response.
        };
        if let Some(saw) = said["saw"].as_array() {
            let name = said["of"].as_str().unwrap_or_default().to_owned();
            let instances = saw.iter().map(Instance::from).collect();
            seen.lock().expect("no holder panics").insert(name, instances);
        } else if answers.send(said).await.is_err() {
            return;
        }
    }
}
