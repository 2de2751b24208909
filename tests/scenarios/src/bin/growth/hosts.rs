//! The process of the registrars: `hosts KEYS REGISTRARS TTL ENDPOINT...` registers, deploys and stops on command.

use std::{collections::VecDeque, time::Instant};

use anyhow::{Context, Result, bail};
use leasehold::{Options, Registrar, State};
use leasehold_scenarios::growth::{Host, Size, options};
use tokio::task::JoinSet;

use crate::children::{number, serve};

/// The registrars and their options.
struct Hosts {
    size: Size,
    options: Options,
    up: VecDeque<Host>,
}

pub(crate) async fn main(arguments: &[String]) -> Result<()> {
    let size = Size { keys: number(arguments, 0)?, hosts: number(arguments, 1)? };
    let endpoints = arguments.get(3..).context("endpoints")?.to_vec();
    let options = Options { ttl: u64::try_from(number(arguments, 2)?)?.try_into()?, ..options(endpoints) };
    let mut hosts = Hosts { size, options, up: VecDeque::new() };
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
                    self.up.push_back(start(self.size, index, self.options.clone()).await?);
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
            starting.spawn(start(self.size, index, self.options.clone()));
        }
        while let Some(host) = starting.join_next().await {
            self.up.push_back(host??);
        }
        Ok(())
    }
}

/// Starts a host. Each begins at another member, since a host uses one at a time.
async fn start(size: Size, index: usize, mut options: Options) -> Result<Host> {
    let first = index % options.endpoints.len();
    options.endpoints.rotate_left(first);
    let registrar = Registrar::start(options)?;
    Ok(Host::register(index, registrar, size.keys).await)
}
