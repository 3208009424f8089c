//! Sampling, history and the HTTP pages, end to end on this very process.

mod spec_kit;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tanako_agent::{
    health,
    history::{self, Feeds, History, Severity},
    http::{self, Sources},
    hub::Figures,
    metrics::{Latency, Metrics},
    supervisor::{Desired, ProcessStatus, State, Table},
    vault::VaultStatus,
    worker::{ShardState, States, WorkerState},
};
use tanako_fleet::{
    ProcessKind, ProcessName,
    health::{Verdict, Word},
};
use tanako_proto::{
    fleet::v1::{IdentifyBot, IdentifyStatus},
    worker::v1 as wire,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SOON: Duration = Duration::from_secs(90);

fn name(text: &str) -> ProcessName {
    text.parse().expect("a good name")
}

fn status(process: &str, pid: Option<u32>, ready: bool) -> Arc<ProcessStatus> {
    let spec = spec_kit::worker(process, vec![0], 1, SOON);
    Arc::new(ProcessStatus {
        name: name(process),
        kind: ProcessKind::Shard,
        state: if ready { State::Ready } else { State::Starting },
        ready,
        desired: Desired::Running,
        pid,
        attempt: 4,
        restarts: 3,
        started_at_ms: None,
        ready_at_ms: None,
        next_start_at_ms: None,
        detail: "no READY yet \"quoted\"".to_owned(),
        last_exit: String::new(),
        shard_ids: vec![0],
        shard_count: 1,
        adopted: false,
        needs_restart: false,
        log_lines: 11,
        log_bytes: 1234,
        limits: String::new(),
        spec: Arc::new(spec),
    })
}

fn table(rows: &[Arc<ProcessStatus>]) -> Arc<Table> {
    Arc::new(
        rows.iter()
            .map(|p| (p.name.clone(), Arc::clone(p)))
            .collect(),
    )
}

fn worker() -> WorkerState {
    let report = wire::ShardReport {
        shard_id: 0,
        shard_count: 1,
        stage: wire::ShardStage::Ready.into(),
        guilds: 25,
        latency_ms: 40.0,
        events: 1000,
        identifies: 2,
        events_by_type: [("MESSAGE_CREATE".to_owned(), 900)].into(),
        ..wire::ShardReport::default()
    };
    WorkerState {
        attempt: 4,
        kind: wire::WorkerKind::Shard,
        version: "9.9".to_owned(),
        attached: true,
        last_seen: 1,
        stage: wire::ProcessStage::Ready,
        detail: String::new(),
        shards: [(
            0,
            ShardState {
                report,
                events_per_s: 12.5,
            },
        )]
        .into(),
        db: None,
        metrics: [("cache_bytes".to_owned(), 5.0)].into(),
    }
}

struct Tasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    fn new() -> Self {
        Self {
            cancel: CancellationToken::new(),
            tracker: TaskTracker::new(),
        }
    }

    fn history(&self, dir: &Path) -> History {
        let config = history::Config {
            directory: dir.join("history"),
            host: "here".to_owned(),
        };
        History::start(config, self.cancel.clone(), &self.tracker)
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        timeout(SOON, self.tracker.wait())
            .await
            .expect("all tasks end");
    }
}

#[tokio::test]
async fn processes_and_host_are_measured_and_remembered() {
    let dir = tempfile::tempdir().expect("a directory");
    let tasks = Tasks::new();
    let me = status("tanako/0", Some(std::process::id()), true);
    // The highest process id that Linux can give is far below this.
    let gone = status("tanako/1", Some(u32::MAX / 2), true);
    let (_table_tx, table) = watch::channel(table(&[me, gone]));
    let metrics = Metrics::start(
        dir.path().to_owned(),
        table.clone(),
        tasks.cancel.clone(),
        &tasks.tracker,
    );
    let history = tasks.history(dir.path());
    let states: States = [(name("tanako/0"), Arc::new(worker()))].into();
    let (_states_tx, workers) = watch::channel(Arc::new(states));
    history.follow(
        Feeds {
            sample: metrics.latest(),
            workers,
            table,
        },
        tasks.cancel.clone(),
        &tasks.tracker,
    );

    let mut latest = metrics.latest();
    let sample = timeout(SOON, latest.wait_for(|sample| sample.at != 0))
        .await
        .expect("in time")
        .expect("sampled")
        .clone();
    let own = sample.processes[&name("tanako/0")];
    assert!(
        own.rss_bytes > 1 << 20 && own.threads > 0 && own.fds > 2,
        "{own:?}"
    );
    assert!(!sample.processes.contains_key(&name("tanako/1")));
    assert!(sample.agent.rss_bytes > 1 << 20);
    let host = &sample.host;
    assert!(host.cpus > 0 && host.uptime_s > 0, "{host:?}");
    assert!(host.memory_total_bytes > host.memory_used_bytes && host.memory_used_bytes > 0);
    assert!(host.disk_total_bytes >= host.disk_used_bytes && host.disk_total_bytes > 0);

    let pss = metrics.pss(&name("tanako/0")).await.expect("it runs");
    assert!(pss > 1 << 20, "{pss}");
    metrics.pss(&name("tanako/1")).await.expect_err("gone");
    metrics.pss(&name("tanako/9")).await.expect_err("unknown");

    let wanted = ["rss_bytes", "events_per_s", "restarts", "no_such"].map(str::to_owned);
    let filled = timeout(SOON, async {
        loop {
            let series = history.series("tanako/0", &wanted, 60, 60).await;
            assert_eq!(series.len(), 3, "an unknown metric is left out");
            if series.iter().all(|s| s.values.iter().any(|v| !v.is_nan())) {
                break series;
            }
            latest.changed().await.expect("sampled");
        }
    })
    .await
    .expect("in time");
    for (series, at_least) in filled.iter().zip([1e6, 12.5, 3.0]) {
        assert_eq!((series.step_ms, series.values.len()), (1000, 60));
        let newest = series.values.iter().rev().find(|v| !v.is_nan());
        assert!(newest.is_some_and(|v| *v >= at_least), "{series:?}");
    }
    let host = history
        .series("host:here", &["load1".to_owned()], 60, 10)
        .await;
    assert_eq!((host[0].step_ms, host[0].values.len()), (6000, 10));
    let nobody = history.series("tanako/7", &wanted[..1], 60, 10).await;
    assert!(nobody[0].values.iter().all(|v| v.is_nan()));
    tasks.stop().await;
}

#[tokio::test]
async fn events_survive_and_a_broken_database_is_put_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let tasks = Tasks::new();
    let history = tasks.history(dir.path());
    let mut live = history.subscribe();
    for n in 0..600 {
        history.event(Severity::Info, "test", "tanako/0", format!("number {n}"));
    }
    history.event(Severity::Error, "test", "db/node1", "x".repeat(1 << 20));
    let first = timeout(SOON, live.recv())
        .await
        .expect("in time")
        .expect("an event");
    assert_eq!(
        (first.message.as_str(), first.host.as_str()),
        ("number 0", "here")
    );
    let of_node = history.events(10, 0, &["db".to_owned()]).await;
    assert!(of_node.len() == 1 && of_node[0].message.len() < 4096);
    tasks.stop().await;

    // The next life finds all of them, those beyond its memory too, in order.
    let tasks = Tasks::new();
    let history = tasks.history(dir.path());
    history.event(Severity::Info, "test", "tanako/0", "after the restart");
    // Whoever asks is answered without them where the disk takes its time.
    let end = Instant::now() + SOON;
    let all = loop {
        let all = history.events(1000, 0, &[]).await;
        if all.len() >= 602 || Instant::now() > end {
            break all;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(all.len(), 602, "{:?}", all.first());
    assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert_eq!(all[601].message, "after the restart");
    tasks.stop().await;

    // Bytes that no sled ever wrote.
    let database = dir.path().join("history");
    std::fs::remove_dir_all(&database).expect("removes");
    std::fs::create_dir(&database).expect("makes");
    for file in ["db", "conf"] {
        std::fs::write(database.join(file), [0xa5; 4096]).expect("writes");
    }
    let tasks = Tasks::new();
    let history = tasks.history(dir.path());
    let mut live = history.subscribe();
    history.event(Severity::Info, "test", "tanako/0", "goes on");
    let reset = timeout(SOON, async {
        loop {
            let event = live.recv().await.expect("an event");
            if event.object == "history" {
                break event;
            }
        }
    })
    .await
    .expect("in time");
    assert_eq!(reset.kind, "history-reset", "{reset:?}");
    assert!(dir.path().join("history.broken").is_dir());
    tasks.stop().await;
}

struct Pages {
    address: SocketAddr,
    healthy: Arc<AtomicBool>,
    table: watch::Sender<Arc<Table>>,
    tasks: Tasks,
    _rest: Box<dyn Send>,
}

/// A tenure as a host among others has one.
fn of_several_hosts() -> tanako_agent::tenure::Tenure {
    tanako_agent::tenure::Tenure::open(tanako_agent::tenure::Settings {
        host: "a".to_owned(),
        data_dir: "/nonexistent".into(),
        ttl: Duration::from_secs(5),
        share: tanako_fleet::failover::SHARE,
        fence: None,
    })
}

async fn pages() -> Pages {
    let tasks = Tasks::new();
    let healthy = Arc::new(AtomicBool::new(true));
    let (table_tx, table) = watch::channel(table(&[status("tanako/0", None, true)]));
    let (sample_tx, sample) = watch::channel(Arc::default());
    let states: States = [(name("tanako/0"), Arc::new(worker()))].into();
    let (workers_tx, workers) = watch::channel(Arc::new(states));
    let (identify_tx, identify) = watch::channel(Arc::new(IdentifyStatus {
        bots: vec![IdentifyBot {
            bot: "tanako".to_owned(),
            total: 1000,
            used: 7,
            remaining: 993,
            mode: "normal".to_owned(),
            ..IdentifyBot::default()
        }],
        ..IdentifyStatus::default()
    }));
    let health = Arc::clone(&healthy);
    let sources = Sources {
        sample,
        workers,
        table,
        identify,
        identify_wait: Arc::new(Latency::new()),
        worker_message: Arc::new(Latency::new()),
        operations: Some(Arc::new(|| vec![("running".to_owned(), 2)])),
        health: Arc::new(move || {
            if health.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("the supervisor's task has ended".to_owned())
            }
        }),
        shards: watch::channel(Arc::new(judged())).1,
        vault: Arc::new(|| VaultStatus {
            sessions: 3,
            unwritable: true,
            ..VaultStatus::default()
        }),
        registry: tanako_agent::registry::Registry::alone(tanako_agent::registry::Own::default()),
        tenure: of_several_hosts(),
        hub: watch::channel(Figures {
            live: 2,
            silent: 1,
            updates: 7,
            lag: Duration::from_millis(250),
            ..Figures::default()
        })
        .1,
        version: "0.0.1",
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let address = http::start(any, sources, tasks.cancel.clone(), &tasks.tracker)
        .await
        .expect("binds");
    Pages {
        address,
        healthy,
        table: table_tx,
        tasks,
        _rest: Box::new((sample_tx, workers_tx, identify_tx)),
    }
}

/// A shard that is silent, in a storm, without a store.
fn judged() -> health::View {
    let verdict = Verdict {
        word: Word::Silent,
        detail: "no MESSAGE_CREATE".to_owned(),
        since: 0,
        unhealthy: true,
        silent: vec!["MESSAGE_CREATE".to_owned()],
        resume_ratio: Some(0.75),
    };
    health::View {
        shards: [(name("tanako/0"), [(0, verdict)].into())].into(),
        storms: vec![health::Storm {
            bot: "tanako".to_owned(),
            troubled: 2,
            total: 2,
        }],
        actions: [("resume", 2)].into(),
        store_answers: Some(false),
    }
}

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    // The other side may have hung up already, which its answer shows.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    ask(address, request.as_bytes()).await
}

#[tokio::test]
async fn the_pages_tell_what_is() {
    let pages = pages().await;
    let text = get(pages.address, "/metrics").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    for line in [
        "# TYPE tanako_process_restarts_total counter",
        "tanako_process_restarts_total{process=\"tanako/0\"} 3",
        "tanako_process_state{process=\"tanako/0\",kind=\"shard\",state=\"ready\"} 1",
        "tanako_process_log_bytes_total{process=\"tanako/0\"} 1234",
        "tanako_shard_guilds{bot=\"tanako\",shard=\"0\",process=\"tanako/0\"} 25",
        "tanako_shard_latency_seconds{bot=\"tanako\",shard=\"0\",process=\"tanako/0\"} 0.04",
        "tanako_shard_stage{bot=\"tanako\",shard=\"0\",process=\"tanako/0\",stage=\"ready\"} 1",
        "tanako_shard_events_total{bot=\"tanako\",shard=\"0\",process=\"tanako/0\",type=\"MESSAGE_CREATE\"} 900",
        "tanako_identify_used{bot=\"tanako\"} 7",
        "tanako_operations{state=\"running\"} 2",
        "tanako_worker_metric{process=\"tanako/0\",name=\"cache_bytes\"} 5",
        "tanako_agent_info{version=\"0.0.1\"} 1",
        "tanako_identify_wait_seconds_count 0",
        "tanako_identify_mode{bot=\"tanako\",mode=\"normal\"} 1",
        "tanako_shard_health{bot=\"tanako\",shard=\"0\",process=\"tanako/0\",health=\"silent\"} 1",
        "tanako_shard_silent{bot=\"tanako\",shard=\"0\",process=\"tanako/0\",type=\"MESSAGE_CREATE\"} 1",
        "tanako_shard_resume_ratio{bot=\"tanako\",shard=\"0\",process=\"tanako/0\"} 0.75",
        "tanako_health_actions_total{step=\"resume\"} 2",
        "tanako_storm_brake{bot=\"tanako\"} 1",
        "tanako_store_available 0",
        "tanako_vault_sessions 3",
        "tanako_vault_writable 0",
        "tanako_vault_copy_ok 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    // Each family is there once, with its help.
    let mut families: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
    let helps = text.lines().filter(|l| l.starts_with("# HELP")).count();
    assert_eq!(families.len(), helps);
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), helps);

    assert!(get(pages.address, "/health").await.ends_with("OK\n"));
    pages.healthy.store(false, Ordering::Relaxed);
    let sick = get(pages.address, "/health").await;
    assert!(
        sick.starts_with("HTTP/1.1 503") && sick.contains("supervisor's task"),
        "{sick}"
    );

    let ready = get(pages.address, "/ready").await;
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("\"ready\":true"),
        "{ready}"
    );
    let rows = [
        status("tanako/0", None, true),
        status("tanako/1", None, false),
    ];
    pages.table.send_replace(table(&rows));
    let waits = get(pages.address, "/ready").await;
    assert!(
        waits.starts_with("HTTP/1.1 503") && waits.contains("tanako/1"),
        "{waits}"
    );
    pages.tasks.stop().await;
}

#[test]
fn the_dashboard_shows_figures_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("dashboards/grafana/tanako.json");
    let dashboard = std::fs::read_to_string(path).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let families = include_str!("../src/http/families.rs");
    let served = |name: &str| families.contains(&format!("\"{name}\""));
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut used = std::collections::BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(
            panel["type"] == "row" || !targets.is_empty(),
            "{title} shows nothing"
        );
        for target in targets {
            let expr = target["expr"].as_str().expect("an expression");
            let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for word in words.filter(|word| word.starts_with("tanako_")) {
                assert!(served(word), "{title}: {word} is not served");
                used.insert(word);
            }
        }
    }
    assert!(used.len() > 35, "{used:?}");
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    for variable in variables.iter().filter_map(|v| v["definition"].as_str()) {
        let name = variable.split(['(', ',']).nth(1).expect("a metric");
        assert!(served(name), "{name} is not served");
    }
}

/// An alert over a figure that nobody serves never fires.
#[tokio::test]
async fn alerts_use_figures_that_exist_and_have_runbooks() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let rules = root.join("dashboards/rules/tanako.yml");
    let rules = std::fs::read_to_string(rules).expect("the rules");
    let pages = pages().await;
    let text = get(pages.address, "/metrics").await;
    // Of the host nothing was measured here.
    let served = |name: &str| {
        name.starts_with("tanako_host_")
            || text
                .lines()
                .any(|l| l.starts_with(&format!("# TYPE {name} ")))
    };
    let mut names = 0;
    for word in rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if word.starts_with("tanako_") {
            assert!(served(word), "{word} is not served");
            names += 1;
        }
    }
    assert!(names > 20, "{names}");
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in &alerts {
        let path = root.join("runbooks").join(format!("{alert}.md"));
        let book = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            book.starts_with(&format!("# {alert}\n")),
            "{}",
            path.display()
        );
        assert!(
            rules.contains(&format!("runbook: runbooks/{alert}.md")),
            "{alert}"
        );
    }
    let books = std::fs::read_dir(root.join("runbooks")).expect("runbooks");
    assert_eq!(books.count(), alerts.len(), "a runbook without an alert");
    pages.tasks.stop().await;
}

#[tokio::test]
async fn only_reading_and_only_in_good_form() {
    let pages = pages().await;
    let head = "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = ask(pages.address, head.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    let post =
        "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
    assert!(
        ask(pages.address, post.as_bytes())
            .await
            .starts_with("HTTP/1.1 405")
    );
    assert!(
        get(pages.address, "/etc/passwd")
            .await
            .starts_with("HTTP/1.1 404")
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20));
    assert!(
        !ask(pages.address, long.as_bytes())
            .await
            .starts_with("HTTP/1.1 200")
    );
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    assert!(
        !ask(pages.address, many.as_bytes())
            .await
            .starts_with("HTTP/1.1 200")
    );
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..50 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(500).collect();
        let mut stream = TcpStream::connect(pages.address).await.expect("connects");
        let _ = stream.write_all(&bytes).await;
    }
    // Half a head is cut off in time: `ask` waits for the end of it.
    assert_eq!(
        ask(pages.address, b"GET /metrics HTTP/1.1\r\nHos")
            .await
            .lines()
            .count()
            .min(1),
        0
    );

    let taken = http::start(
        pages.address,
        sources_of_nothing(),
        CancellationToken::new(),
        &TaskTracker::new(),
    )
    .await
    .expect_err("the port is taken");
    assert!(taken.to_string().contains("--http"), "{taken}");
    assert!(
        get(pages.address, "/health")
            .await
            .starts_with("HTTP/1.1 200")
    );
    pages.tasks.stop().await;
}

fn sources_of_nothing() -> Sources {
    Sources {
        sample: watch::channel(Arc::default()).1,
        workers: watch::channel(Arc::default()).1,
        table: watch::channel(Arc::default()).1,
        identify: watch::channel(Arc::default()).1,
        identify_wait: Arc::new(Latency::new()),
        worker_message: Arc::new(Latency::new()),
        operations: None,
        health: Arc::new(|| Ok(())),
        shards: watch::channel(Arc::default()).1,
        vault: Arc::new(VaultStatus::default),
        registry: tanako_agent::registry::Registry::alone(tanako_agent::registry::Own::default()),
        tenure: tanako_agent::tenure::Tenure::unbounded(),
        hub: watch::channel(Figures::default()).1,
        version: "0",
    }
}
