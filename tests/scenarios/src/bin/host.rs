//! A host in a process of its own, to be suspended and killed: `host ENDPOINT TTL COUNT` registers that many services, prints
//! `ready`, and keeps them until its input ends. Then it stops them, and prints `gone`.

use std::{error::Error, io::Read, time::Duration};

use leasehold::{Registrar, ServerNode};
use leasehold_scenarios::fleet::options;

#[expect(clippy::print_stdout, reason = "the parent process reads it")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [endpoint, ttl, count] = std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "three words")?;
    let options = leasehold::Options { ttl: ttl.parse::<u64>()?.try_into()?, ..options([endpoint]) };
    let registrar = Registrar::start(options)?;
    let mut registrations = Vec::new();
    for index in 0..count.parse::<u32>()? {
        registrations.push(registrar.register(ServerNode::new(&format!("service-{index}"), "127.0.0.1:1")?).await?);
    }
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    registrar.shutdown(Duration::from_secs(5)).await?;
    println!("gone");
    Ok(())
}
