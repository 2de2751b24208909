//! The metrics of a member of etcd.

use std::{
    io::{Read, Write},
    net::TcpStream,
    ops::Sub,
    time::Duration,
};

use anyhow::{Context, Result};

/// Metrics of one member at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metrics {
    /// Resident memory, in bytes.
    pub(crate) memory: f64,
    /// Processor time, in seconds.
    pub(crate) cpu: f64,
    /// Bytes sent to clients.
    pub(crate) sent: f64,
    /// Size of the database's file, and of the part that is in use.
    pub(crate) database: [f64; 2],
    /// Entries of the log that are committed.
    pub(crate) committed: f64,
    /// Leases renewed, by the member while it was the leader.
    pub(crate) renewed: f64,
}

impl Metrics {
    /// Reads the metrics of the member at this endpoint.
    pub(crate) fn read(endpoint: &str) -> Result<Self> {
        let address = endpoint.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = |name: &str| -> Result<f64> {
            let of_name =
                text.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with([' ', '{']));
            let values: Vec<f64> = of_name.filter_map(|rest| rest.rsplit(' ').next()?.parse().ok()).collect();
            (!values.is_empty()).then(|| values.iter().sum()).with_context(|| format!("{endpoint} has no {name}"))
        };
        Ok(Self {
            memory: value("process_resident_memory_bytes")?,
            cpu: value("process_cpu_seconds_total")?,
            sent: value("etcd_network_client_grpc_sent_bytes_total")?,
            database: [value("etcd_mvcc_db_total_size_in_bytes")?, value("etcd_mvcc_db_total_size_in_use_in_bytes")?],
            committed: value("etcd_server_proposals_committed_total")?,
            renewed: value("etcd_debugging_lease_renewed_total")?,
        })
    }
}

impl Sub for Metrics {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            memory: self.memory - before.memory,
            cpu: self.cpu - before.cpu,
            sent: self.sent - before.sent,
            database: [self.database[0] - before.database[0], self.database[1] - before.database[1]],
            committed: self.committed - before.committed,
            renewed: self.renewed - before.renewed,
        }
    }
}
