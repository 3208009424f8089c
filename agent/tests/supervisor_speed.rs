//! How fast many processes are started and brought back.
//!
//! Run as a test it takes 40 processes and only sees that all of it works. With `TANAKO_MEASURE=1000`
//! (and `--release`, `--nocapture`) it takes as many as that and prints figures.

#[path = "supervisor_kit/mod.rs"]
mod kit;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kit::{Bench, PATIENCE, shell};
use tanako_agent::supervisor::{Desired, Supervisor, Table};

/// Children that are killed, one after the other.
const KILLS: usize = 30;

async fn all(supervisor: &Supervisor, wanted: impl Fn(&Table) -> bool) {
    let mut table = supervisor.status();
    tokio::time::timeout(PATIENCE, table.wait_for(|table| wanted(table)))
        .await
        .expect("in time")
        .expect("it lives");
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("its own");
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .expect("a name")
        .1
        .split_whitespace()
        .collect();
    let ticks: f64 =
        fields[11].parse::<f64>().expect("user") + fields[12].parse::<f64>().expect("system");
    ticks / rustix::param::clock_ticks_per_second() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes() {
    let measured: Option<usize> = std::env::var("TANAKO_MEASURE")
        .ok()
        .and_then(|count| count.parse().ok());
    let count = measured.unwrap_or(40);
    let bench = Bench::new();
    let supervisor = bench.start();
    let names: Vec<_> = (0..count)
        .map(|number| kit::name(&format!("a/{number}")))
        .collect();
    let mut heard = Heard::new(&bench.dir.path().join("heard"));
    // A line a second when it is measured.
    let script = if measured.is_some() {
        "echo up >heard; while :; do echo a line of output; sleep 1; done"
    } else {
        "echo up >heard; exec sleep 1000"
    };
    if measured.is_some() {
        let floor = floor_of_start(count, script, &heard, bench.dir.path());
        println!("bare loop started {count} in {floor:?}");
    }
    for name in &names {
        supervisor
            .define(shell(name.as_str(), script), Desired::Stopped)
            .await
            .expect("it is defined");
    }

    let begun = Instant::now();
    for name in &names {
        supervisor.start_process(name).await.expect("it starts");
    }
    let asked = begun.elapsed();
    all(&supervisor, |table| {
        table.values().all(|status| status.ready)
    })
    .await;
    let started = begun.elapsed();
    let pids: BTreeSet<_> = supervisor
        .status()
        .borrow()
        .values()
        .map(|status| status.pid.expect("it runs"))
        .collect();
    assert_eq!(pids.len(), count);
    for _ in 0..count {
        heard.next();
    }

    if measured.is_some() {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, begun) = (cpu_seconds(), Instant::now());
        tokio::time::sleep(Duration::from_secs(8)).await;
        let cpu = (cpu_seconds() - before) / begun.elapsed().as_secs_f64() * 100.0;
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("its own");
        let pss = rollup
            .lines()
            .find(|line| line.starts_with("Pss:"))
            .expect("a line");
        let lines: u64 = supervisor
            .status()
            .borrow()
            .values()
            .map(|status| status.log_lines)
            .sum();
        println!(
            "{count} started in {started:?} (asked {asked:?}); cpu {cpu:.2} %; {pss}; {lines} lines"
        );
    }

    let mut waits: Vec<Duration> = Vec::new();
    for name in names.iter().cycle().take(KILLS) {
        let old = kit::until(&supervisor, name, |status| status.ready).await;
        let pid = old.pid.expect("it runs");
        heard.clear();
        let begun = Instant::now();
        kit::kill(pid);
        heard.next();
        waits.push(begun.elapsed());
        let new = kit::until(&supervisor, name, |status| {
            status.attempt == old.attempt + 1 && status.ready
        })
        .await;
        assert_eq!(new.restarts, old.restarts + 1);
    }
    if measured.is_some() {
        waits.sort_unstable();
        let floor = floor_of_restart(script, &mut heard, bench.dir.path());
        println!(
            "kill -9 to the new process's first words: p50 {:?}, max {:?}; bare loop p50 {floor:?}",
            waits[waits.len() / 2],
            waits[waits.len() - 1]
        );
    }
    let begun = Instant::now();
    bench.end(supervisor).await;
    if measured.is_some() {
        println!("all stopped in {:?}", begun.elapsed());
    }
}

/// Hears of each process that has begun: every one writes a line into a pipe.
struct Heard {
    lines: std::sync::mpsc::Receiver<Instant>,
}

impl Heard {
    fn new(pipe: &Path) -> Self {
        let made = Command::new("mkfifo").arg(pipe).status().expect("mkfifo");
        assert!(made.success());
        // Open for writing as well, so that it never ends.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(pipe)
            .expect("it opens");
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(file).lines() {
                line.expect("a line");
                if sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Self { lines }
    }

    fn next(&self) -> Instant {
        self.lines.recv_timeout(PATIENCE).expect("in time")
    }

    fn clear(&self) {
        while self.lines.try_recv().is_ok() {}
    }
}

fn bare(script: &str, dir: &Path) -> Child {
    Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

/// The same number of the same processes, started in a bare loop.
fn floor_of_start(count: usize, script: &str, heard: &Heard, dir: &Path) -> Duration {
    let begun = Instant::now();
    let mut children: Vec<Child> = (0..count).map(|_| bare(script, dir)).collect();
    let took = begun.elapsed();
    for _ in 0..count {
        heard.next();
    }
    for child in &mut children {
        child.kill().expect("it is killed");
        child.wait().expect("it is gone");
    }
    took
}

/// The same kills, answered by a bare loop.
fn floor_of_restart(script: &str, heard: &mut Heard, dir: &Path) -> Duration {
    let mut child = bare(script, dir);
    heard.next();
    let mut waits: Vec<Duration> = (0..KILLS)
        .map(|_| {
            heard.clear();
            let begun = Instant::now();
            child.kill().expect("it is killed");
            child.wait().expect("it is gone");
            child = bare(script, dir);
            heard.next();
            begun.elapsed()
        })
        .collect();
    child.kill().expect("it is killed");
    child.wait().expect("it is gone");
    waits.sort_unstable();
    waits[waits.len() / 2]
}
