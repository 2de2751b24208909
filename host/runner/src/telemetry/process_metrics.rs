//! Metrics of the host's process, under the names that Prometheus clients agree on.

/// Processor time, memory and file descriptors of this process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProcessSample {
    /// User and system time together.
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: f64,
    pub(crate) open_fds: f64,
    /// Soft limit of file descriptors; infinite for none.
    pub(crate) max_fds: f64,
    /// Seconds since 1970 at which the process started.
    pub(crate) start_time: f64,
}

impl ProcessSample {
    /// Reads `/proc`. `None` elsewhere than on Linux, and where `/proc` cannot be read.
    #[cfg(target_os = "linux")]
    pub(crate) fn read() -> Option<Self> {
        use procfs::{
            WithCurrentSystemInfo,
            process::{LimitValue, Process},
        };
        use rustix::time::{ClockId, clock_gettime};
        let process = Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks = procfs::ticks_per_second() as f64;
        let max_fds = match process.limits().ok()?.max_open_files.soft_limit {
            LimitValue::Unlimited => f64::INFINITY,
            LimitValue::Value(files) => files as f64,
        };
        // `/proc` counts in ticks of 10 ms.
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Some(Self {
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            resident_bytes: stat.rss_bytes().get() as f64,
            open_fds: process.fd_count().ok()? as f64,
            max_fds,
            start_time: procfs::boot_time_secs().ok()? as f64 + stat.starttime as f64 / ticks,
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn read() -> Option<Self> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        fs::File,
        time::{Duration, Instant, SystemTime},
    };

    use super::ProcessSample;

    #[test]
    fn a_sample_is_of_this_process() {
        let before = ProcessSample::read().unwrap();
        let files: Vec<File> = (0..10).map(|_| File::open("/proc/self/stat").unwrap()).collect();
        let memory = vec![1_u8; 64 << 20];
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1) {}
        let after = ProcessSample::read().unwrap();
        assert!(after.open_fds >= before.open_fds + files.len() as f64 && after.open_fds < after.max_fds);
        assert!(after.resident_bytes >= before.resident_bytes + memory.len() as f64 / 2.0);
        assert!(after.cpu_seconds > before.cpu_seconds);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(after.start_time > now - 3600.0 && after.start_time < now + 2.0, "{} at {now}", after.start_time);
    }
}
