//! The clock of this machine compared with that of etcd, which has the time in its HTTP responses.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Uri, header, response::Parts};
use http_body_util::Empty;
use leasehold::{Options, Tls};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::finding::Finding;
use crate::commands::{admin_client, tls_client};

/// Difference of the clocks from which on it is a finding, in seconds. etcd reports whole ones.
const MAX_SKEW: u64 = 3;

/// Smallest possible lead of this machine's clock over etcd's in seconds, negative if it is behind; `None` if etcd reports
/// no time, as on a port for gRPC alone.
pub(super) async fn skew(endpoint: &str, options: &Options) -> Option<i64> {
    let before = SystemTime::now();
    let answer = timeout(options.dial_timeout, version(endpoint, &options.tls)).await.ok()??;
    let reported = httpdate::parse_http_date(answer.headers.get(header::DATE)?.to_str().ok()?).ok()?;
    Some(between(before, reported, SystemTime::now()))
}

async fn version(endpoint: &str, tls: &Tls) -> Option<Parts> {
    let uri: Uri = endpoint.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let request = Request::get("/version").header(header::HOST, uri.authority()?.as_str());
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    let stream = TcpStream::connect((host, uri.port_u16()?)).await.ok()?;
    let answer = match uri.scheme_str()? {
        "https" => {
            let name = ServerName::try_from(tls.server_name.as_deref().unwrap_or(host).to_owned()).ok()?;
            let connector = TlsConnector::from(Arc::new(tls_client::config(tls).ok()?));
            admin_client::exchange(connector.connect(name, stream).await.ok()?, request).await
        }
        _ => admin_client::exchange(stream, request).await,
    };
    Some(answer.ok()?.0)
}

/// Certain difference, given that etcd responded between `before` and `after`, within the second `reported`.
fn between(before: SystemTime, reported: SystemTime, after: SystemTime) -> i64 {
    let whole = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match (before.duration_since(reported + Duration::from_secs(1)), reported.duration_since(after)) {
        (Ok(ahead), _) => whole(ahead),
        (_, Ok(behind)) => -whole(behind),
        _ => 0,
    }
}

pub(super) fn finding(skew: i64, endpoint: &str) -> Option<Finding> {
    (skew.unsigned_abs() >= MAX_SKEW).then(|| Finding {
        kind: "clock",
        key: None,
        found: format!(
            "this machine's clock is {} s {} that of {endpoint}",
            skew.unsigned_abs(),
            if skew > 0 { "ahead of" } else { "behind" }
        ),
        cure: "let NTP set the clock of both; registrations hold, since leases count by etcd's own clock, but \
               certificates and tokens run out too early or late, and logs and traces do not fit together"
            .to_owned(),
        ..Finding::default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::between;

    #[test]
    fn rounding_is_no_difference() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(between(at(5_900), at(5_000), at(5_990)), 0);
        assert_eq!(between(at(5_900), at(6_000), at(6_100)), 0);
        assert_eq!(between(at(10_100), at(5_000), at(10_200)), 4);
        assert_eq!(between(at(1_000), at(5_000), at(1_900)), -3);
    }
}
