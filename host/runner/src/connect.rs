//! Starting the registrar and waiting for etcd: for ever, or as long as the configuration says.

use std::time::Duration;

use leasehold::{Error, Options, Registrar};
use tokio::time::{Instant, sleep, timeout};

use crate::error::Failure;

/// The first pause between two attempts; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Until then nothing is said: a mistake in the configuration shall come first.
const FIRST_WORD: Duration = Duration::from_millis(400);
/// How often an operator is told that etcd is still not there.
const REMIND: Duration = Duration::from_secs(10);
/// How long a private etcd may take to come up.
const DEV_DEADLINE: Duration = Duration::from_secs(20);

/// Starts the registrar. What it refuses is what it was told.
pub(crate) fn start(options: &Options) -> Result<Registrar, Failure> {
    Registrar::start(options.clone()).map_err(|error| match error {
        Error::Quota { .. } => Failure::other(error),
        error => Failure::usage(format!("the configuration of etcd: {error}")),
    })
}

/// Waits until etcd answers.
///
/// Fails when it is required and does not answer within the dial timeout, and the sentence names an endpoint; at once
/// when it is required and refuses the user. Otherwise it tries for ever and tells the operator.
pub(crate) async fn etcd(registrar: &Registrar, options: &Options, required: bool, dev: bool) -> Result<(), Failure> {
    let begun = Instant::now();
    let deadline = if dev { DEV_DEADLINE } else { options.dial_timeout };
    let mut pause = FIRST_PAUSE;
    let mut next_word = begun + FIRST_WORD;
    loop {
        let error = match attempt(registrar, options).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if required && (begun.elapsed() >= deadline || is_final(&error)) {
            return Err(Failure::unavailable(said(&error, options)));
        }
        if !required && Instant::now() >= next_word {
            let said = said(&error, options);
            tracing::warn!("waiting for etcd: {}", said.trim_start_matches("etcd: "));
            next_word = Instant::now() + REMIND;
        }
        sleep(pause).await;
        pause = (pause * 2).min(if dev { FIRST_PAUSE } else { LONGEST_PAUSE });
    }
}

/// One attempt, with a deadline.
pub(crate) async fn attempt(registrar: &Registrar, options: &Options) -> Result<(), Error> {
    let deadline = options.dial_timeout + options.request_timeout;
    match timeout(deadline, registrar.reach()).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(Error::Timeout { what: "etcd's answer", after: deadline }),
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error, Error::Unavailable(why) if why.is_denied() || why.is_not_etcd())
}

/// What etcd said, with the endpoints unless it names one.
pub(crate) fn said(error: &Error, options: &Options) -> String {
    let said = error.to_string();
    match options.endpoints.iter().any(|endpoint| said.contains(endpoint.as_str())) {
        true => said,
        false => format!("{said} ({})", options.endpoints.join(", ")),
    }
}
