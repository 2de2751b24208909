//! Load generators from the distribution's packages, and their figures.

use std::{ffi::OsStr, fs, process::Output};

use tempfile::NamedTempFile;
use tokio::process::Command;

/// Duration of one load, in seconds.
const SECONDS: &str = "4";
/// Duration of a load of one request at a time, in seconds.
const SECONDS_OF_ONE: &str = "1";
/// Connections of an unlimited load.
const CONNECTIONS: &str = "32";
/// Connections of a load with a fixed rate.
const STEADY_CONNECTIONS: u32 = 10;

async fn run<A: AsRef<OsStr>>(tool: &str, package: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = Command::new(tool).args(arguments).kill_on_drop(true).output().await;
    let Output { status, stdout, stderr } =
        output.unwrap_or_else(|error| panic!("{tool}: {error}; apt-get install {package} brings it"));
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{tool}: {said}{}", String::from_utf8_lossy(&stderr));
    said
}

/// The number after `label` in a tool's output.
fn number(said: &str, label: &str) -> f64 {
    let rest = said.split_once(label).unwrap_or_else(|| panic!("no {label:?} in {said}")).1;
    let digits: String = rest.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    digits.parse().unwrap_or_else(|_| panic!("no number after {label:?} in {said}"))
}

/// Requests per second over HTTP/1.1; all must succeed.
pub(crate) async fn rate(url: &str) -> f64 {
    requests(url, CONNECTIONS, SECONDS).await
}

/// Requests per second over HTTP/1.1, one at a time.
pub(crate) async fn rate_of_one(url: &str) -> f64 {
    requests(url, "1", SECONDS_OF_ONE).await
}

async fn requests(url: &str, connections: &str, seconds: &str) -> f64 {
    let said = run("wrk", "wrk", ["-t", "1", "-c", connections, "-d", seconds, url]).await;
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{url}: {said}");
    number(&said, "Requests/sec:")
}

/// Unary gRPC calls per second, greeting Ada.
pub(crate) async fn calls(addr: &str) -> f64 {
    let message = NamedTempFile::new().expect("a temporary file");
    fs::write(message.path(), b"\0\0\0\0\x05\x0a\x03Ada").expect("the file is our own");
    let url = format!("http://{addr}/greeter.v1.Greeter/Greet");
    let message = message.path().to_str().expect("a temporary file has a plain name").to_owned();
    let arguments = ["-c", "4", "-m", "8", "-D", SECONDS, "-H", "content-type: application/grpc", "-H", "te: trailers"];
    let said = run("h2load", "nghttp2-client", arguments.iter().copied().chain(["-d", &message, &url])).await;
    assert!(said.contains(" 0 failed, 0 errored, 0 timeout"), "{said}");
    let rate = said.lines().find(|line| line.starts_with("finished in")).unwrap_or_default();
    number(rate, "s,")
}

/// p99 latency in milliseconds at this rate per second.
pub(crate) async fn p99(url: &str, rate: f64) -> f64 {
    let log = NamedTempFile::new().expect("a temporary file");
    let each = (rate / f64::from(STEADY_CONNECTIONS)).max(1.0).round().to_string();
    let file = format!("--log-file={}", log.path().display());
    let connections = STEADY_CONNECTIONS.to_string();
    let steady = ["--h1", "-t", "1", "-c", &connections, "-D", SECONDS, "--rps", &each, &file, url];
    run("h2load", "nghttp2-client", steady).await;
    // One line per request: its start, its status, and its duration in microseconds.
    let log = fs::read_to_string(log.path()).expect("the file is our own");
    let mut times: Vec<u64> = log
        .lines()
        .map(|line| {
            let mut fields = line.split('\t').skip(1);
            assert_eq!(fields.next(), Some("200"), "{url}: {line:?}");
            fields.next().and_then(|time| time.parse().ok()).expect("a time in microseconds")
        })
        .collect();
    times.sort_unstable();
    assert!(!times.is_empty(), "{url}: no request was answered");
    times[times.len() * 99 / 100] as f64 / 1000.0
}
