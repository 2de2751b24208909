//! How busy this machine is, or the container's share of it, sampled in the background.

use std::{
    fs,
    time::{Duration, Instant},
};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    node::Weight,
    weight::{Load, Smoothed, weight_of},
};

/// Between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Keeps `weight` at what the load is worth, until nobody looks at it any more.
pub(crate) async fn sample(weight: watch::Sender<Weight>) {
    let mut meter = Meter::new();
    let mut smoothed = Smoothed::default();
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = weight.closed() => return,
        }
        let next = weight_of(smoothed.add(meter.read()));
        weight.send_if_modified(|weight| std::mem::replace(weight, next) != next);
    }
}

/// The load right now, as far as one look can tell: the processor counts as idle.
pub(crate) fn first_look() -> Weight {
    weight_of(Meter::new().read())
}

/// What the readings are compared with. A container's own quota counts where there is one (cgroup v2, since sysinfo does
/// not know a processor quota); the machine otherwise.
struct Meter {
    /// None on a system that does not tell; it counts as idle.
    system: Option<System>,
    /// When the cgroup was read last, and its processor time then.
    cgroup: Option<(Instant, Duration)>,
}

impl Meter {
    fn new() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self { system: System::new_with_specifics(kinds).ok(), cgroup: None }
    }

    fn read(&mut self) -> Load {
        Load { cpu_percent: self.cpu_percent(), memory_percent: self.memory_percent() }
    }

    fn cpu_percent(&mut self) -> f64 {
        let group = Cgroup::read();
        if let Some((cpus, used)) = group.cpus.zip(group.cpu_time) {
            let now = Instant::now();
            let before = self.cgroup.replace((now, used));
            return before.map_or(0.0, |(then, before)| {
                let available = (now - then).as_secs_f64() * cpus;
                100.0 * used.saturating_sub(before).as_secs_f64() / available.max(f64::MIN_POSITIVE)
            });
        }
        let Some(system) = &mut self.system else { return 0.0 };
        system.refresh_cpu_usage();
        f64::from(system.global_cpu_usage())
    }

    fn memory_percent(&mut self) -> f64 {
        let Some(system) = &mut self.system else { return 0.0 };
        system.refresh_memory();
        let total = system.total_memory();
        let (used, total) = match Cgroup::read().memory {
            Some((used, limit)) if limit < total => (used, limit),
            _ => (system.used_memory(), total),
        };
        100.0 * used as f64 / total.max(1) as f64
    }
}

/// The quota and the use of this process's cgroup, as far as there are any.
#[derive(Debug, Default, PartialEq)]
struct Cgroup {
    /// Processors that the quota amounts to.
    cpus: Option<f64>,
    cpu_time: Option<Duration>,
    /// Bytes in use without what the kernel can drop at once, and the limit.
    memory: Option<(u64, u64)>,
}

impl Cgroup {
    fn read() -> Self {
        let Some(path) = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| own_path(&text)) else {
            return Self::default();
        };
        let file = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).ok();
        Self::parse(
            file("cpu.max").as_deref().unwrap_or_default(),
            file("cpu.stat").as_deref().unwrap_or_default(),
            file("memory.max").as_deref().unwrap_or_default(),
            file("memory.current").as_deref().unwrap_or_default(),
            file("memory.stat").as_deref().unwrap_or_default(),
        )
    }

    fn parse(cpu_max: &str, cpu_stat: &str, memory_max: &str, memory_current: &str, memory_stat: &str) -> Self {
        let cpus = cpu_max.split_once(' ').and_then(|(quota, period)| {
            let (quota, period): (f64, f64) = (quota.parse().ok()?, period.trim().parse().ok()?);
            (period > 0.0).then_some(quota / period)
        });
        let memory = memory_max.trim().parse().ok().zip(memory_current.trim().parse::<u64>().ok());
        Self {
            cpus,
            cpu_time: field(cpu_stat, "usage_usec").map(Duration::from_micros),
            memory: memory.map(|(limit, used)| {
                (used.saturating_sub(field(memory_stat, "inactive_file").unwrap_or_default()), limit)
            }),
        }
    }
}

/// The path of the unified hierarchy in `/proc/self/cgroup`.
fn own_path(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.trim_end_matches('/').to_owned())
}

fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Cgroup, Meter, own_path};

    #[test]
    fn a_container_counts_its_own_quota() {
        let group = Cgroup::parse(
            "150000 100000\n",
            "usage_usec 2500000\nuser_usec 1\n",
            "1000\n",
            "700\n",
            "anon 1\ninactive_file 200\n",
        );
        let expected =
            Cgroup { cpus: Some(1.5), cpu_time: Some(Duration::from_millis(2500)), memory: Some((500, 1000)) };
        assert_eq!(group, expected);
    }

    #[test]
    fn no_quota_counts_as_none() {
        let group = Cgroup::parse("max 100000\n", "", "max\n", "700\n", "");
        assert_eq!(group, Cgroup::default());
    }

    #[test]
    fn the_unified_hierarchy_is_found() {
        assert_eq!(own_path("1:name=x:/a\n0::/kube/pod\n").as_deref(), Some("/kube/pod"));
        assert_eq!(own_path("0::/\n").as_deref(), Some(""));
        assert_eq!(own_path("1:cpu:/a\n"), None);
    }

    #[test]
    fn a_reading_is_a_share() {
        let load = Meter::new().read();
        assert!((0.0..=100.0).contains(&load.memory_percent), "{load:?}");
        assert!(load.memory_percent > 0.0, "{load:?}");
    }
}
