//! Load of this machine, or of the container's share of it, sampled in the background.

use std::{
    fs, mem,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    node::Weight,
    weight::{Load, Smoothed, weight_of},
};

/// Interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Keeps `weight` at what the load is worth, until it has no reader any more. It is an estimate until the first sample.
pub(crate) async fn sample(weight: watch::Sender<Weight>, estimated: Arc<AtomicBool>) {
    let mut meter = Meter::new();
    meter.read();
    let mut smoothed = Smoothed::default();
    let mut ticks = interval_at(Instant::now() + SAMPLE_INTERVAL, SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = weight.closed() => return,
        }
        let next = weight_of(smoothed.add(meter.read()));
        estimated.store(false, Ordering::Relaxed);
        weight.send_if_modified(|weight| mem::replace(weight, next) != next);
    }
}

/// The load right now, as far as one look can tell. What the processors do shows only over a while: they count as busy as
/// they were over the last minute.
pub(crate) fn first_look() -> Weight {
    let groups = Cgroup::all();
    let memory_percent = Meter::new().memory_percent(&groups);
    let processors = available_parallelism().map_or(1, NonZero::get);
    let load_average = System::load_average().map_or(0.0, |average| average.one);
    let cpu_percent = last_minute(&groups, load_average, processors);
    weight_of(Load { cpu_percent, memory_percent })
}

/// Use of the processors in percent, by the average number of tasks that ran or waited to. A container with a quota of its own
/// counts as idle: the machine's average says nothing of it.
fn last_minute(groups: &[Cgroup], load_average: f64, processors: usize) -> f64 {
    match groups.iter().any(|group| group.cpus.is_some()) {
        true => 0.0,
        false => (100.0 * load_average / processors as f64).clamp(0.0, 100.0),
    }
}

/// Reads the load, relative to a quota. A container's own quota counts if there is one (cgroup v2, since sysinfo does not know
/// processor quotas), and so do those of the groups that it is in; otherwise the machine does.
struct Meter {
    /// `None` on a system without such data, which counts as idle.
    system: Option<System>,
    /// Set after the first reading of the processors, which covers all the time since the machine started.
    looked: bool,
    /// Time of the last reading of the cgroups, and the processor time of each then.
    before: Option<(Instant, Vec<Duration>)>,
}

impl Meter {
    fn new() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self { system: System::new_with_specifics(kinds).ok(), looked: false, before: None }
    }

    fn read(&mut self) -> Load {
        let groups = Cgroup::all();
        Load { cpu_percent: self.cpu_percent(&groups), memory_percent: self.memory_percent(&groups) }
    }

    fn cpu_percent(&mut self, groups: &[Cgroup]) -> f64 {
        let quotas = groups.iter().filter_map(|group| group.cpus.zip(group.cpu_time));
        let (cpus, used): (Vec<f64>, Vec<Duration>) = quotas.unzip();
        if cpus.is_empty() {
            let Some(system) = &mut self.system else { return 0.0 };
            system.refresh_cpu_usage();
            let usage = f64::from(system.global_cpu_usage());
            return if mem::replace(&mut self.looked, true) { usage } else { 0.0 };
        }
        let now = Instant::now();
        let Some((then, before)) = self.before.replace((now, used.clone())) else { return 0.0 };
        let shares = cpus.iter().zip(used.iter().zip(before)).map(|(cpus, (used, before))| {
            let available = (now - then).as_secs_f64() * cpus;
            100.0 * used.saturating_sub(before).as_secs_f64() / available.max(f64::MIN_POSITIVE)
        });
        shares.fold(0.0, f64::max)
    }

    fn memory_percent(&mut self, groups: &[Cgroup]) -> f64 {
        let Some(system) = &mut self.system else { return 0.0 };
        system.refresh_memory();
        let total = system.total_memory();
        let share = |(used, total): (u64, u64)| 100.0 * used as f64 / total.max(1) as f64;
        let limits = groups.iter().filter_map(|group| group.memory).filter(|(_, limit)| *limit < total);
        limits.map(share).reduce(f64::max).unwrap_or_else(|| share((system.used_memory(), total)))
    }
}

/// The quota and the use of a cgroup that this process is in, as far as there are any.
#[derive(Debug, Default, PartialEq)]
struct Cgroup {
    /// Processors that the quota amounts to.
    cpus: Option<f64>,
    cpu_time: Option<Duration>,
    /// Bytes in use without what the kernel can drop at once, and the limit.
    memory: Option<(u64, u64)>,
}

impl Cgroup {
    /// The cgroup of this process, then its parent, and so on.
    fn all() -> Vec<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| own_path(&text));
        own.map_or_else(Vec::new, |own| own.ancestors().map(Self::read).collect())
    }

    fn read(path: &Path) -> Self {
        let folder = Path::new("/sys/fs/cgroup").join(path.strip_prefix("/").unwrap_or(path));
        let file = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let Self { cpus, cpu_time, memory } = Self::parse(
            &file("cpu.max"),
            &file("cpu.stat"),
            &file("memory.max"),
            &file("memory.current"),
            &file("memory.stat"),
        );
        let processors = available_parallelism().map_or(usize::MAX, NonZero::get);
        Self { cpus: cpus.map(|cpus| usable(cpus, processors)), cpu_time, memory }
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

/// Part of a quota that so many processors can use. The standard library counts them in whole ones of the quota.
fn usable(cpus: f64, processors: usize) -> f64 {
    if cpus.floor() <= processors as f64 { cpus } else { processors as f64 }
}

/// The path of the unified hierarchy in `/proc/self/cgroup`.
fn own_path(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{num::NonZero, path::Path, thread::available_parallelism, time::Duration};

    use sysinfo::System;

    use super::{Cgroup, Meter, first_look, last_minute, own_path, usable};

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
        assert_eq!(own_path("1:name=x:/a\n0::/kube/pod\n").as_deref(), Some(Path::new("/kube/pod")));
        assert_eq!(own_path("0::/\n").as_deref(), Some(Path::new("/")));
        assert_eq!(own_path("1:cpu:/a\n"), None);
    }

    #[test]
    fn a_quota_beyond_the_processors_is_not_there_to_be_used() {
        assert_eq!(usable(8.0, 2), 2.0);
        assert_eq!(usable(1.5, 1), 1.5);
        assert_eq!(usable(0.5, 4), 0.5);
    }

    #[test]
    fn the_group_that_has_least_left_counts() {
        let group = |cpus, cpu_seconds, memory| Cgroup {
            cpus: Some(cpus),
            cpu_time: Some(Duration::from_secs(cpu_seconds)),
            memory: Some(memory),
        };
        let mut meter = Meter::new();
        assert_eq!(meter.cpu_percent(&[group(1.0, 0, (10, 100)), group(4.0, 0, (90, 100))]), 0.0);
        meter.before = meter.before.map(|(then, used)| (then - Duration::from_secs(10), used));
        let later = [group(1.0, 2, (10, 100)), group(4.0, 36, (90, 100))];
        let busy = meter.cpu_percent(&later);
        assert!((80.0..=90.0).contains(&busy), "{busy}");
        assert_eq!(meter.memory_percent(&later), 90.0);
        let machine = meter.memory_percent(&[group(1.0, 2, (1, u64::MAX))]);
        assert!(machine > 0.0, "{machine}");
    }

    #[test]
    fn the_first_look_counts_the_processors_as_busy_as_they_were() {
        assert_eq!(last_minute(&[], 1.0, 2), 50.0);
        assert_eq!(last_minute(&[Cgroup::default()], 17.0, 2), 100.0);
        assert_eq!(last_minute(&[], 0.0, 2), 0.0);
        // The quota is this container's, and the average is not.
        assert_eq!(last_minute(&[Cgroup { cpus: Some(1.0), ..Cgroup::default() }], 17.0, 2), 0.0);
        // The average may move between the two looks.
        let before = System::load_average().unwrap().one;
        let weight = first_look().value();
        let busy = Cgroup::all().iter().all(|group| group.cpus.is_none()) && before > 0.0;
        let processors = available_parallelism().map_or(1, NonZero::get);
        let most = 100.0 - 0.5 * (100.0 * before / processors as f64).min(100.0);
        assert!(!busy || f64::from(weight) <= most + 5.0, "weight {weight} at load {before}");
    }

    #[test]
    fn a_reading_is_a_share() {
        let load = Meter::new().read();
        assert!((0.0..=100.0).contains(&load.memory_percent), "{load:?}");
        assert!(load.memory_percent > 0.0, "{load:?}");
    }
}
