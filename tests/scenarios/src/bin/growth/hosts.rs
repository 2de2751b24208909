//! The process of the registrars: `hosts KEYS REGISTRARS ENDPOINT...` registers, deploys and stops on command.

use std::{collections::VecDeque, time::Instant};

use anyhow::{Context, Result, bail};
use leasehold::{Registrar, State};
use leasehold_scenarios::growth::{Host, Size, options};
use tokio::task::JoinSet;

use crate::children::{number, serve};

/// The registrars and the cluster that they use.
struct Hosts {
    size: Size,
    endpoints: Vec<String>,
    up: VecDeque<Host>,
}

pub(crate) async fn main(arguments: &[String]) -> Result<()> {
    let size = Size { keys: number(arguments, 0)?, hosts: number(arguments, 1)? };
    let endpoints = arguments.get(2..).context("endpoints")?.to_vec();
    let mut hosts = Hosts { size, endpoints, up: VecDeque::new() };
    serve(async |words| hosts.execute(&words).await).await
}

impl Hosts {
    async fn execute(&mut self, words: &[String]) -> Result<Vec<f64>> {
        let begun = Instant::now();
        match words[0].as_str() {
            "register" => self.register().await?,
            "deploy" => {
                for _ in 0..number(words, 1)? {
                    let host = self.up.pop_front().context("a host is up")?;
                    let index = host.index();
                    host.stop().await;
                    self.up.push_back(start(self.size, index, self.endpoints.clone()).await?);
                }
            }
            "stop" => {
                let mut stopping = JoinSet::new();
                self.up.drain(..).for_each(|host| drop(stopping.spawn(host.stop())));
                stopping.join_all().await;
            }
            "registered" => {
                let all = self.up.iter().flat_map(Host::registrations);
                let registered = all.filter(|registration| registration.status().state == State::Registered);
                return Ok(vec![registered.count() as f64]);
            }
            word => bail!("unknown command {word}"),
        }
        Ok(vec![begun.elapsed().as_secs_f64()])
    }

    async fn register(&mut self) -> Result<()> {
        let mut starting = JoinSet::new();
        for index in 0..self.size.hosts {
            starting.spawn(start(self.size, index, self.endpoints.clone()));
        }
        while let Some(host) = starting.join_next().await {
            self.up.push_back(host??);
        }
        Ok(())
    }
}

/// Starts a host. Each begins at another member, since a host uses one at a time.
async fn start(size: Size, index: usize, mut endpoints: Vec<String>) -> Result<Host> {
    let first = index % endpoints.len();
    endpoints.rotate_left(first);
    let registrar = Registrar::start(options(endpoints))?;
    Ok(Host::register(index, registrar, size.keys).await)
}
