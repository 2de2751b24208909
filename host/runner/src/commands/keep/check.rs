//! Rounds of a health check over the network.

use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};

use crate::{config::Check, service::health::probe::probe_at};

/// Waits until it has succeeded often enough. Reports why it has not.
pub(super) async fn is_well(check: &Check, service: &str) {
    let (mut good, mut known) = (0, String::new());
    loop {
        match once(check).await {
            Ok(()) => good += 1,
            Err(why) => {
                good = 0;
                if why != known {
                    tracing::info!(event = "not_well", service, "not registered yet: {why}");
                    known = why;
                }
            }
        }
        if good >= check.rise {
            return;
        }
        sleep(check.interval).await;
    }
}

/// Waits until it has failed often enough. Returns why it did.
pub(super) async fn has_failed(check: &Check) -> String {
    let mut bad = 0;
    loop {
        sleep(check.interval).await;
        match once(check).await {
            Ok(()) => bad = 0,
            Err(why) => {
                bad += 1;
                if bad >= check.fall {
                    return why;
                }
            }
        }
    }
}

async fn once(check: &Check) -> Result<(), String> {
    let authority = check.url.authority.as_str();
    let health = check.health();
    let probed = async {
        let addrs = lookup_host(authority).await.map_err(|error| error.to_string())?;
        let mut outcome = Err("the name has no address".to_owned());
        for addr in addrs {
            outcome = probe_at(addr, Some(authority), health.as_ref()).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    };
    let probed = timeout(check.timeout, probed).await;
    let probed = probed.unwrap_or_else(|_| Err(format!("no answer within {:?}", check.timeout)));
    probed.map_err(|why| format!("{authority}: {why}"))
}
