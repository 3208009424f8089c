//! What a run is like, drawn from its seed.

use tanako_fleet::spec::Generation;

/// How many of what, how slow, how faulty.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything follows from it.
    pub seed: u64,
    /// Shards of the bot in all.
    pub shards: u32,
    /// Shards of one process.
    pub shards_per_process: u32,
    /// Discord's buckets.
    pub max_concurrency: u32,
    /// Whether the spec names `max_concurrency` (always Discord's own), or leaves it out.
    pub hinted: bool,
    /// IDENTIFYs a day.
    pub total: u32,
    /// Of those, never spent automatically.
    pub reserve: u32,
    /// Between two reports of a worker, milliseconds.
    pub report_ms: u64,
    /// One way to Discord, milliseconds; jitter comes on top.
    pub network_ms: u64,
    /// How long Discord keeps a session without a connection, milliseconds.
    pub window_ms: u64,
    /// Whether sessions outlive an outage of any length.
    pub outage_keeps: bool,
    /// Between two events of the whole bot, milliseconds, on average.
    pub event_ms: u64,
    /// How long faults and commands go on, milliseconds.
    pub busy_ms: u64,
    /// Kinds of faults that happen, and between two of them, milliseconds; 0 = none.
    pub fault_ms: u64,
    /// Between two commands of the operator, milliseconds; 0 = none.
    pub command_ms: u64,
    /// Store failures and slow disks, in a thousand.
    pub disk_faults: u64,
    /// Which random faults may happen; see [`super::faults::Fault`].
    pub faults: Vec<super::faults::Fault>,
    /// The watchdog of the spec, seconds.
    pub watchdog_s: u64,
    /// Whether those who decide are elsewhere.
    pub remote: bool,
    /// Rollouts and reshards, in a thousand of the commands.
    pub changes: u64,
    /// How long the end may take after the last fault, milliseconds.
    pub heal_ms: u64,
}

impl Config {
    /// A quiet fleet of a given shape.
    pub fn calm(seed: u64, shards: u32, shards_per_process: u32, max_concurrency: u32) -> Self {
        Self {
            seed,
            shards,
            shards_per_process,
            max_concurrency,
            hinted: true,
            total: 1000,
            reserve: 100,
            report_ms: 1000,
            network_ms: 40,
            window_ms: 120_000,
            outage_keeps: false,
            event_ms: 400,
            busy_ms: 120_000,
            fault_ms: 0,
            command_ms: 0,
            disk_faults: 0,
            faults: Vec::new(),
            watchdog_s: 30,
            remote: false,
            changes: 0,
            heal_ms: 2 * 3_600_000,
        }
    }

    /// A random fleet in random weather.
    pub fn random(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let processes = if rng.u8(0..4) == 0 {
            rng.u32(1..=12)
        } else {
            rng.u32(1..=5)
        };
        let per = match rng.u8(0..6) {
            0 => rng.u32(1..=6).min(64 / processes),
            _ => rng.u32(1..=3),
        };
        // The last process may hold fewer.
        let shards = (processes * per).saturating_sub(rng.u32(0..per)).max(1);
        let per = per.min(shards);
        let faults: Vec<_> = super::faults::Fault::ALL
            .into_iter()
            .filter(|_| rng.u8(0..3) > 0)
            .collect();
        let total = if rng.u8(0..8) == 0 {
            shards * rng.u32(2..6)
        } else {
            1000
        };
        Self {
            seed,
            shards,
            shards_per_process: per,
            max_concurrency: [1, 1, 2, 4, 16][rng.usize(0..5)],
            hinted: rng.bool(),
            total,
            reserve: [0, total / 10, total / 4][rng.usize(0..3)],
            report_ms: [1000, 1000, 2000][rng.usize(0..3)],
            network_ms: rng.u64(5..120),
            window_ms: rng.u64(60_000..200_000),
            outage_keeps: rng.bool(),
            event_ms: rng.u64(150..2_000),
            busy_ms: rng.u64(20_000..180_000),
            fault_ms: if faults.is_empty() {
                0
            } else {
                rng.u64(500..20_000)
            },
            command_ms: if rng.u8(0..10) == 0 {
                0
            } else {
                rng.u64(2_000..40_000)
            },
            disk_faults: [0, 0, 10, 100][rng.usize(0..4)],
            faults,
            watchdog_s: rng.u64(10..40),
            remote: rng.u8(0..3) == 0,
            changes: [300, 600, 900][rng.usize(0..3)],
            heal_ms: 3 * 3_600_000,
        }
    }

    /// The spec of the fleet, as the operator writes it: for this set of processes, in this variant.
    pub fn toml(&self, set: Option<Generation>, variant: u32) -> String {
        let shards = set.map_or(self.shards, |set| set.shards);
        let per_process = set.map_or(self.shards_per_process, |set| set.shards_per_process);
        let hint = if self.hinted {
            format!("max_concurrency = {}\n", self.max_concurrency)
        } else {
            String::new()
        };
        format!(
            "[fleet]\nname = \"sim\"\n[bots.b]\ncommand = [\"tanako-bot\"]\ntoken_file = \"/t\"\n\
             shards = {shards}\nshards_per_process = {per_process}\nidentify_reserve = {}\n\
             watchdog = \"{}s\"\nenv = {{ V = \"{variant}\" }}\n{hint}",
            self.reserve, self.watchdog_s
        )
    }
}
