//! `leasehold run`, with a configuration and a folder of its own.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use leasehold_scenarios::world::World;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    config::config,
    paths,
    program::{Ended, Program},
};

/// A running host, killed with the test.
#[derive(Debug)]
pub struct Host {
    program: Program,
    folder: TempDir,
}

impl Host {
    /// Runs these services on the world's etcd, and waits until all are ready.
    pub async fn of(world: &World, services: impl IntoIterator<Item = Value>) -> Self {
        Self::ready(&config(world, services)).await
    }

    /// Runs a configuration, and waits until all of its services are ready.
    pub async fn ready(config: &Value) -> Self {
        let mut host = Self::spawn(config, &[]);
        host.event("ready").await;
        host
    }

    /// Runs a configuration in another build of `leasehold`, which may know no admin endpoint with a token yet.
    pub fn spawn_by(binary: &Path, config: &Value) -> Self {
        Self::start(binary, config, &[], &[], Vec::new())
    }

    /// Runs a configuration with further arguments.
    pub fn spawn(config: &Value, arguments: &[&str]) -> Self {
        Self::spawn_with(config, arguments, &[])
    }

    /// Runs a configuration with further arguments and environment variables. An admin endpoint at an address gets the token
    /// that the commands of the tests have, unless the configuration says something else.
    pub fn spawn_with(config: &Value, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::start(&paths::leasehold(), &with_token(config.clone()), arguments, variables, Vec::new())
    }

    /// Runs a configuration with sockets that were opened before, as systemd passes them.
    pub fn spawn_activated(config: &Value, sockets: Vec<OwnedFd>) -> Self {
        let number = sockets.len().to_string();
        let variables = [("LISTEN_FDS", number.as_str())];
        Self::start(&paths::leasehold(), &with_token(config.clone()), &[], &variables, sockets)
    }

    fn start(
        binary: &Path,
        config: &Value,
        arguments: &[&str],
        variables: &[(&str, &str)],
        descriptors: Vec<OwnedFd>,
    ) -> Self {
        let folder = TempDir::with_prefix("leasehold-host-").expect("a temporary directory");
        let file = file(folder.path());
        fs::write(&file, config.to_string()).expect("the directory is our own");
        fs::create_dir(temporary(folder.path())).expect("the directory is our own");
        let file = file.to_str().expect("a temporary directory has a plain name");
        let run = ["--log-format", "json", "run", file].into_iter().chain(arguments.iter().copied());
        // Its socket lies outside of the folder that it has to leave empty.
        let runtime = folder.path().to_str().expect("a temporary directory has a plain name");
        let variables: Vec<_> = [("XDG_RUNTIME_DIR", runtime)].into_iter().chain(variables.iter().copied()).collect();
        let temporary = temporary(folder.path());
        let program = Program::spawn_passing(binary, run, &temporary, &variables, descriptors);
        Self { program, folder }
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        self.program.signal(name);
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        file(self.folder.path())
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.program.resident_bytes()
    }

    /// Waits for a log line whose message starts with `start`, and returns the line.
    pub async fn says(&mut self, start: &str) -> Value {
        let fits = |line: &str| message(&parse(line)).starts_with(start);
        parse(&self.program.line(&format!("{start:?}"), fits).await)
    }

    /// Waits for a log line about an event, by its name for machines, and returns the line.
    pub async fn event(&mut self, name: &str) -> Value {
        let fits = |line: &str| is_about(&parse(line), name);
        parse(&self.program.line(&format!("the event {name}"), fits).await)
    }

    /// Log lines so far.
    pub fn log(&self) -> Vec<Value> {
        self.program.stderr().iter().map(|line| parse(line)).collect()
    }

    /// URL of a served service, with a `/` at the end.
    ///
    /// # Panics
    /// When it is not served.
    pub fn url(&self, service: &str) -> String {
        let log = self.log();
        let serving = log.iter().find(|line| is_about(line, "serving") && line["service"] == service);
        serving.expect("it is served")["url"].as_str().expect("a URL is text").to_owned()
    }

    /// URL of the admin endpoint, with a `/` at the end.
    ///
    /// # Panics
    /// If the host has none.
    pub fn admin(&self) -> String {
        let log = self.log();
        let admin = log
            .iter()
            .find(|line| line["url"].is_string() && message(line).contains("admin"))
            .expect("it has an admin endpoint");
        admin["url"].as_str().expect("a URL is text").to_owned()
    }

    /// The address of a service, as it is published.
    pub fn addr(&self, service: &str) -> String {
        let url = self.url(service);
        let (_, addr) = url.split_once("://").expect("a URL has a scheme");
        addr.trim_end_matches('/').to_owned()
    }

    /// Folder for temporary files.
    pub fn temporary(&self) -> PathBuf {
        temporary(self.folder.path())
    }

    /// Sends SIGTERM, as a supervisor does, and waits for the end.
    pub async fn stop(self) -> Ended {
        self.signal("TERM");
        self.ends().await
    }

    /// Waits for the exit of the process, while its successor goes on with its files and its output.
    ///
    /// # Panics
    /// If it does not exit.
    pub async fn exits(&mut self) -> Option<i32> {
        self.program.exits().await
    }

    /// Waits for the end of the host, which must leave no temporary files.
    ///
    /// # Panics
    /// If the host does not end, or leaves files.
    pub async fn ends(self) -> Ended {
        let ended = self.program.ends().await;
        let left: Vec<_> = fs::read_dir(temporary(self.folder.path())).expect("it was made by us").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        ended
    }
}

fn with_token(mut config: Value) -> Value {
    let is_at_an_address =
        config["admin"]["listen"].as_str().is_some_and(|listen| !listen.starts_with("unix:") && listen != "off");
    if is_at_an_address && config["admin"].get("token_file").is_none() && config["admin"].get("tls").is_none() {
        config["admin"]["token_file"] = paths::admin_token().to_str().expect("a plain name").into();
    }
    config
}

/// Returns true for a line about an event. An earlier build, which benches compare, has the name as the message.
fn is_about(line: &Value, event: &str) -> bool {
    line["event"] == event || message(line) == event
}

/// The message of a log line.
fn message(line: &Value) -> &str {
    line["message"].as_str().unwrap_or_default()
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("a log line is not JSON ({error}): {line}"))
}

fn file(folder: &Path) -> PathBuf {
    folder.join("services.yaml")
}

fn temporary(folder: &Path) -> PathBuf {
    folder.join("temporary")
}
