//! Logs: nothing lost, nothing twice, nothing without bounds.

#[path = "supervisor_kit/mod.rs"]
mod kit;

use std::{os::unix::fs::MetadataExt, path::Path};

use futures_util::StreamExt;
use kit::{Bench, PATIENCE, shell};
use tanako_agent::{
    logs::{Follow, From, Line},
    supervisor::{Desired, State},
};

/// Bytes that a process's log really takes on disk, rotated files included.
fn on_disk(dir: &Path) -> u64 {
    std::fs::read_dir(dir.join("logs"))
        .expect("a directory")
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512))
        .sum()
}

fn rotated(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("logs"))
        .expect("a directory")
        .filter(|entry| {
            let path = entry.as_ref().expect("an entry").path();
            path.extension().is_some_and(|ext| ext == "zst")
        })
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_is_lost_or_doubled_by_rotation_and_by_new_agents() {
    const LINES: usize = 30_000;
    let bench = Bench::new();
    let mut supervisor = bench.start();
    let name = kit::name("a/0");
    let script = format!(
        "exec python3 -uc '
import time
for number in range({LINES}):
    print(f\"line {{number}} of the output of a process that has much to say\")
    if number % 500 == 0: time.sleep(0.05)
print(\"done\")
time.sleep(1000)'"
    );
    let mut spec = shell("a/0", &script);
    spec.logs.max_bytes = 100_000;
    spec.logs.keep = 1000;
    supervisor
        .define(spec.clone(), Desired::Running)
        .await
        .expect("it is defined");
    // Agents come and go while it writes.
    for wanted in [3, 6] {
        kit::eventually("it rotates", || rotated(bench.dir.path()) >= wanted).await;
        supervisor.detach().await.expect("it leaves");
        drop(supervisor);
        supervisor = bench.start();
    }
    kit::until(&supervisor, &name, |status| status.log_lines > LINES as u64).await;
    kit::eventually("the rest is rotated", || {
        std::fs::metadata(bench.dir.path().join("logs/a.0.log"))
            .expect("it is there")
            .blocks()
            * 512
            < 300_000
    })
    .await;
    assert!(rotated(bench.dir.path()) > 10);
    let lines = supervisor
        .logs()
        .read_tail(&name, LINES + 10)
        .await
        .expect("it reads");
    let expected = (0..LINES)
        .map(|number| format!("line {number} of the output of a process that has much to say"))
        .chain(["done".to_owned()]);
    let mut count = 0;
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line.text, expected);
        count += 1;
    }
    assert_eq!((count, lines.len()), (LINES + 1, LINES + 1));
    assert!(lines.is_sorted_by_key(|line| line.at_ms));
    let status = kit::until(&supervisor, &name, |_| true).await;
    assert_eq!(status.log_lines, LINES as u64 + 1, "counted across agents");

    // Once nobody writes to it, a file without a hole takes its place, with every line.
    supervisor.stop(&name).await.expect("it stops");
    kit::until(&supervisor, &name, |status| status.state == State::Stopped).await;
    kit::eventually("the file is fresh", || {
        std::fs::metadata(bench.dir.path().join("logs/a.0.log"))
            .expect("it is there")
            .len()
            <= 100_000
    })
    .await;
    let again = supervisor
        .logs()
        .read_tail(&name, LINES + 10)
        .await
        .expect("it reads");
    assert_eq!(again.len(), LINES + 1);
    assert_eq!(again[17].text, lines[17].text);
    bench.end(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_stays_within_its_bounds() {
    const MAX: u64 = 1 << 20;
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    // About 10 MB/s until it is stopped.
    let mut spec = shell(
        "a/0",
        "exec python3 -uc '
import sys, time, random
piece = (\"%x\" % random.getrandbits(396) + chr(10)) * 500
while True:
    sys.stdout.write(piece)
    time.sleep(0.005)'",
    );
    spec.logs.max_bytes = MAX;
    spec.logs.keep = 2;
    supervisor
        .define(spec, Desired::Running)
        .await
        .expect("it is defined");
    // However much it has written, it comes back there. How far it is beyond in between is a matter of how
    // busy the machine is.
    for written in [20, 40, 60] {
        kit::until(&supervisor, &name, |status| {
            status.log_bytes > written * MAX
        })
        .await;
        kit::eventually("it is within its bounds", || {
            on_disk(bench.dir.path()) < 4 * MAX && rotated(bench.dir.path()) <= 2
        })
        .await;
    }
    let lines = supervisor
        .logs()
        .read_tail(&name, 100)
        .await
        .expect("it reads");
    assert!(
        lines
            .iter()
            .all(|line| (90..=100).contains(&line.text.len())),
        "{lines:?}"
    );
    supervisor.stop(&name).await.expect("it stops");
    kit::until(&supervisor, &name, |status| status.state == State::Stopped).await;
    kit::eventually("it is cut back", || on_disk(bench.dir.path()) < 4 * MAX).await;
    bench.end(supervisor).await;
}

async fn next(lines: &mut Follow) -> Line {
    tokio::time::timeout(PATIENCE, lines.next())
        .await
        .expect("in time")
        .expect("a line")
        .expect("no error")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_see_what_comes() {
    let bench = Bench::new();
    let (supervisor, name) = (bench.start(), kit::name("a/0"));
    let fifo = bench.dir.path().join("more");
    std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .expect("a fifo");
    let spec = shell(
        "a/0",
        "echo one; echo two; echo three; while :; do cat more; done",
    );
    supervisor
        .define(spec, Desired::Running)
        .await
        .expect("it is defined");
    kit::until(&supervisor, &name, |status| status.log_lines == 3).await;
    let mut tail = supervisor.logs().follow(&name, From::Tail(2));
    let mut now = supervisor.logs().follow(&name, From::Now);
    let mut since = supervisor.logs().follow(&name, From::SinceMs(0));
    for expected in ["two", "three"] {
        let line = next(&mut tail).await;
        assert_eq!(line.text, expected);
    }
    for expected in ["one", "two", "three"] {
        let line = next(&mut since).await;
        assert_eq!(line.text, expected);
    }
    // The follower from now on has not looked yet, and still began when it was asked for.
    std::fs::write(&fifo, "four\nhalf").expect("it writes");
    let line = next(&mut tail).await;
    assert_eq!((line.text.as_str(), line.skipped_bytes), ("four", 0));
    let line = next(&mut now).await;
    assert_eq!(line.text, "four");
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis();
    assert!(i64::try_from(now_ms).expect("it fits") - line.at_ms < 60_000);
    std::fs::write(&fifo, b" a line\xff\n").expect("it writes");
    let line = next(&mut tail).await;
    assert!(line.text.starts_with("half a line"), "{line:?}");

    assert!(
        supervisor
            .logs()
            .read_tail(&kit::name("b/0"), 1)
            .await
            .is_err()
    );
    let mut unknown = supervisor.logs().follow(&kit::name("b/0"), From::Now);
    assert!(unknown.next().await.expect("an answer").is_err());
    bench.end(supervisor).await;
    assert!(
        tokio::time::timeout(PATIENCE, tail.next())
            .await
            .expect("in time")
            .is_none(),
        "followers end with the agent"
    );
}
