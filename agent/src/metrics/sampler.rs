//! Takes the measurements; blocking, so it runs off the async threads.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use sysinfo::{Networks, System};
use tanako_fleet::ProcessName;

use super::{HostSample, ProcessSample, Sample, proc::ProcFile};
use crate::supervisor::Table;

/// File descriptors of a process are counted once in so many samples.
const FDS_EVERY: u64 = 10;

/// Everything needed to take the next sample.
pub(super) struct Sampler {
    host: HostReader,
    agent: Tracked,
    processes: HashMap<ProcessName, Tracked>,
    units: Units,
    /// Samples so far.
    round: u64,
}

#[derive(Clone, Copy)]
struct Units {
    ticks_per_s: f64,
    page_bytes: u64,
}

/// A process and its previous reading.
struct Tracked {
    pid: u32,
    file: Option<ProcFile>,
    before: Option<(Instant, u64)>,
    fds: u32,
    /// In which of the rounds its file descriptors are counted.
    phase: u64,
}

impl Tracked {
    fn new(pid: u32, phase: u64) -> Self {
        Self {
            pid,
            file: ProcFile::open(pid).ok(),
            before: None,
            fds: 0,
            phase,
        }
    }

    /// `None` when the process has gone.
    fn sample(&mut self, units: Units, round: u64) -> Option<ProcessSample> {
        let file = self.file.as_ref()?;
        let now = Instant::now();
        let Ok(stat) = file.read() else {
            self.file = None;
            return None;
        };
        if self.before.is_none() || round % FDS_EVERY == self.phase {
            self.fds = file.fds().unwrap_or(self.fds);
        }
        let before = self.before.replace((now, stat.cpu_ticks));
        let cpu_percent = before.map_or(0.0, |(at, ticks)| {
            let elapsed = now.duration_since(at).max(Duration::from_millis(1));
            let spent = stat.cpu_ticks.saturating_sub(ticks) as f64 / units.ticks_per_s;
            100.0 * spent / elapsed.as_secs_f64()
        });
        Some(ProcessSample {
            pid: self.pid,
            cpu_percent: cpu_percent as f32,
            cpu_seconds: stat.cpu_ticks as f64 / units.ticks_per_s,
            rss_bytes: stat.rss_pages * units.page_bytes,
            threads: stat.threads,
            fds: self.fds,
        })
    }
}

impl Sampler {
    pub(super) fn new(data_dir: PathBuf) -> Self {
        Self {
            host: HostReader::new(data_dir),
            agent: Tracked::new(std::process::id(), 0),
            processes: HashMap::new(),
            units: Units {
                ticks_per_s: rustix::param::clock_ticks_per_second() as f64,
                page_bytes: rustix::param::page_size() as u64,
            },
            round: 0,
        }
    }

    /// Measures the host, the agent and every process in the table that lives.
    pub(super) fn sample(&mut self, table: &Table) -> Sample {
        self.round += 1;
        let mut processes = HashMap::with_capacity(self.processes.len());
        self.processes
            .retain(|name, _| table.get(name).is_some_and(|p| p.pid.is_some()));
        for (index, (name, status)) in table.iter().enumerate() {
            let Some(pid) = status.pid else { continue };
            let fresh = || Tracked::new(pid, index as u64 % FDS_EVERY);
            let tracked = match self.processes.get_mut(name) {
                Some(tracked) => tracked,
                None => self.processes.entry(name.clone()).or_insert_with(fresh),
            };
            if tracked.pid != pid {
                *tracked = fresh();
            }
            if let Some(sample) = tracked.sample(self.units, self.round) {
                processes.insert(name.clone(), sample);
            }
        }
        Sample {
            at: jiff::Timestamp::now().as_millisecond(),
            host: self.host.sample(),
            processes,
            agent: self
                .agent
                .sample(self.units, self.round)
                .unwrap_or_default(),
        }
    }
}

struct HostReader {
    /// Neither is there where `/proc` is not: then the figures stay 0.
    system: Option<System>,
    networks: Option<Networks>,
    networks_at: Option<Instant>,
    data_dir: PathBuf,
    os: Arc<str>,
    cpus: u32,
}

impl HostReader {
    fn new(data_dir: PathBuf) -> Self {
        let os = System::long_os_version().unwrap_or_else(|_| "unknown".to_owned());
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self {
            system: System::new().ok(),
            networks: Networks::new_with_refreshed_list().ok(),
            networks_at: None,
            data_dir,
            os: os.into(),
            cpus,
        }
    }

    fn sample(&mut self) -> HostSample {
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
        }
        if let Some(networks) = &mut self.networks {
            networks.refresh(true);
        }
        let elapsed = self
            .networks_at
            .replace(Instant::now())
            .map(|at| at.elapsed().as_secs_f64().max(0.001));
        let (received, sent) = self
            .networks
            .iter()
            .flat_map(|networks| networks.iter())
            .filter(|(name, _)| name.as_os_str() != "lo")
            .fold((0_u64, 0_u64), |(received, sent), (_, network)| {
                (received + network.received(), sent + network.transmitted())
            });
        // The first refresh counts from the beginning of time.
        let per_s = |bytes: u64| elapsed.map_or(0, |s| (bytes as f64 / s) as u64);
        let (disk_total, disk_free) = rustix::fs::statvfs(&self.data_dir).map_or((0, 0), |stat| {
            (
                stat.f_blocks.saturating_mul(stat.f_frsize),
                stat.f_bfree.saturating_mul(stat.f_frsize),
            )
        });
        HostSample {
            cpu_percent: self
                .system
                .as_ref()
                .map_or(0.0, |system| f64::from(system.global_cpu_usage())),
            cpus: self.cpus,
            load1: System::load_average().map_or(0.0, |load| load.one),
            memory_used_bytes: self.system.as_ref().map_or(0, System::used_memory),
            memory_total_bytes: self.system.as_ref().map_or(0, System::total_memory),
            disk_used_bytes: disk_total.saturating_sub(disk_free),
            disk_total_bytes: disk_total,
            net_rx_bytes_per_s: per_s(received),
            net_tx_bytes_per_s: per_s(sent),
            uptime_s: System::uptime().unwrap_or(0),
            os: Arc::clone(&self.os),
        }
    }
}
