//! Logs of many hosts as one stream.
//!
//! The agent that is asked reads its own logs and asks the others for theirs. A host that cannot be
//! asked is named in a line of the stream, and hides nothing of the others. While a log is followed,
//! a process that moves is followed to its new host, and a host that comes back is asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt;
use tanako_fleet::ProcessName;
use tanako_proto::fleet::v1 as wire;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tonic::Status;

use super::logs::{self, QUEUE_MAX, Query};
use crate::{
    clock::now_ms,
    hub::{Hub, merge::Window, peer},
    logs::Logs,
};

/// Lines of different hosts are put in order when they arrive within this time.
const WINDOW: Duration = Duration::from_millis(250);
/// The beginnings of followed logs are waited for this much longer.
const BEGINNING: Duration = Duration::from_millis(750);
/// Lines held at most.
const HELD_MAX: usize = 20_000;
/// How often it is looked where the processes are.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A host that sends nothing for so long, before its end, is given up.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// What a process that came to another host wrote there before anybody noticed.
const OVERLAP_MS: i64 = 30_000;

/// Where each process's log is.
pub type Placed = BTreeMap<String, Vec<ProcessName>>;

/// What comes of one host.
enum Piece {
    Line(wire::LogLine),
    Ended(String),
}

/// What is asked for.
pub struct Gather {
    /// The fleet.
    pub hub: Hub,
    /// This host's logs.
    pub logs: Logs,
    /// As it was asked.
    pub request: wire::LogsRequest,
    /// Its processes, by host.
    pub placed: Placed,
}

impl Gather {
    /// Sends lines until all are sent, or, when they are followed, until the reader leaves.
    pub async fn send(self, lines: &mpsc::Sender<Result<wire::LogLine, Status>>) {
        if self.request.follow {
            self.follow(lines).await;
        } else {
            self.merge(lines).await;
        }
    }

    /// Each host's lines are in order: the earliest of the next ones is the next one.
    async fn merge(&self, lines: &mpsc::Sender<Result<wire::LogLine, Status>>) {
        let mut tasks = JoinSet::new();
        let mut sources = Vec::new();
        for (host, names) in &self.placed {
            let (pieces, source) = mpsc::channel(QUEUE_MAX);
            self.open(&mut tasks, host, names, self.request.clone(), pieces);
            sources.push((host, source, None::<wire::LogLine>));
        }
        loop {
            let mut ended = Vec::new();
            for (at, (host, source, head)) in sources.iter_mut().enumerate() {
                if head.is_some() {
                    continue;
                }
                match timeout(SILENCE_MAX, source.recv()).await {
                    Ok(Some((_, Piece::Line(line)))) => *head = Some(line),
                    Ok(Some((_, Piece::Ended(why)))) => {
                        ended.push(at);
                        if !why.is_empty() && lines.send(Ok(notice(host, &why))).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => ended.push(at),
                    Err(_) => {
                        ended.push(at);
                        if lines.send(Ok(notice(host, "silent"))).await.is_err() {
                            return;
                        }
                    }
                }
            }
            for at in ended.into_iter().rev() {
                sources.swap_remove(at);
            }
            let next = sources
                .iter_mut()
                .min_by_key(|(_, _, head)| head.as_ref().map(|line| line.at));
            let Some(line) = next.and_then(|(_, _, head)| head.take()) else {
                return;
            };
            if lines.send(Ok(line)).await.is_err() {
                return;
            }
        }
    }

    async fn follow(mut self, lines: &mpsc::Sender<Result<wire::LogLine, Status>>) {
        let began = Instant::now();
        let mut window = Window::new(WINDOW, HELD_MAX);
        let mut tasks = JoinSet::new();
        let (pieces, mut arrived) = mpsc::channel::<(String, Piece)>(QUEUE_MAX);
        let mut open: BTreeMap<String, BTreeSet<ProcessName>> = BTreeMap::new();
        // Each failure is told once.
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        for (host, names) in &self.placed {
            let request = self.request.clone();
            self.open(&mut tasks, host, names, request, pieces.clone());
            open.insert(host.clone(), names.iter().cloned().collect());
        }
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        loop {
            while let Some(line) = window.pop(began.elapsed()) {
                if lines.send(Ok(line)).await.is_err() {
                    return;
                }
            }
            let due = window.deadline().map(|due| began + due);
            tokio::select! {
                Some((host, piece)) = arrived.recv() => match piece {
                    Piece::Line(line) => {
                        told.remove(&host);
                        let now = began.elapsed();
                        let extra = BEGINNING.saturating_sub(now);
                        let source = line.process.clone();
                        window.push(now, extra, &source, line.at, line);
                    }
                    Piece::Ended(why) => {
                        open.remove(&host);
                        if told.insert(host.clone(), why.clone()).as_ref() != Some(&why) {
                            let line = notice(&host, &why);
                            let now = began.elapsed();
                            window.push(now, Duration::ZERO, &line.process.clone(), line.at, line);
                        }
                    }
                },
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
                _ = look.tick() => {
                    if !self.look(&mut tasks, &mut open, &pieces).await {
                        return;
                    }
                    while tasks.try_join_next().is_some() {}
                }
                () = lines.closed() => return,
            }
        }
    }

    /// Follows processes to where they are now. False when the agent ends.
    async fn look(
        &mut self,
        tasks: &mut JoinSet<()>,
        open: &mut BTreeMap<String, BTreeSet<ProcessName>>,
        pieces: &mpsc::Sender<(String, Piece)>,
    ) -> bool {
        let names: Vec<ProcessName> = self.placed.values().flatten().cloned().collect();
        let own = self.hub.host().to_owned();
        let placed = self.hub.look(move |core, _| {
            let mut placed = Placed::new();
            for name in names {
                let host = core.host_of(name.as_str()).unwrap_or(&own).to_owned();
                placed.entry(host).or_default().push(name);
            }
            let others = core.others();
            placed.retain(|host, _| others.get(host).is_none_or(|live| *live));
            placed
        });
        let Ok(placed) = placed.await else {
            return false;
        };
        for (host, names) in placed {
            let known = open.entry(host.clone()).or_default();
            let new: Vec<ProcessName> = names
                .into_iter()
                .filter(|name| known.insert(name.clone()))
                .collect();
            if new.is_empty() {
                continue;
            }
            let request = wire::LogsRequest {
                since: self.request.since.max(now_ms() - OVERLAP_MS),
                ..self.request.clone()
            };
            self.open(tasks, &host, &new, request, pieces.clone());
        }
        true
    }

    /// Begins to read the logs of one host.
    fn open(
        &self,
        tasks: &mut JoinSet<()>,
        host: &str,
        names: &[ProcessName],
        request: wire::LogsRequest,
        pieces: mpsc::Sender<(String, Piece)>,
    ) {
        let host = host.to_owned();
        if host == self.hub.host() {
            let Ok(query) = Query::new(names.to_vec(), &request) else {
                return; // It was looked at before anything was opened.
            };
            let logs = self.logs.clone();
            tasks.spawn(async move {
                let (lines, mut found) = mpsc::channel(QUEUE_MAX);
                let read = logs::run(&logs, &query, &lines);
                tokio::pin!(read);
                loop {
                    let line = tokio::select! {
                        Some(line) = found.recv() => line,
                        () = &mut read => break,
                    };
                    if !pass(&pieces, &host, line).await {
                        return;
                    }
                }
                found.close();
                while let Some(line) = found.recv().await {
                    if !pass(&pieces, &host, line).await {
                        return;
                    }
                }
                let _ = pieces.send((host, Piece::Ended(String::new()))).await;
            });
            return;
        }
        let hub = self.hub.clone();
        let request = wire::LogsRequest {
            targets: names.iter().map(ToString::to_string).collect(),
            ..request
        };
        tasks.spawn(async move {
            let follow = request.follow;
            let asked = peer::ask(&hub, &host, |mut client| async move {
                client.logs(peer::hop(request)).await
            });
            let mut lines = match asked.await {
                Ok(lines) => lines,
                Err(problem) => {
                    let why = format!("{}: {}", problem.message, problem.cause);
                    let _ = pieces.send((host, Piece::Ended(why))).await;
                    return;
                }
            };
            let mut why = String::new();
            while let Some(line) = lines.next().await {
                match line {
                    Ok(line) => {
                        if !pass(&pieces, &host, Ok(line)).await {
                            return;
                        }
                    }
                    Err(status) => {
                        why = peer::problem_of(&host, &status).cause;
                        break;
                    }
                }
            }
            if follow && why.is_empty() {
                "its agent ended the stream".clone_into(&mut why);
            }
            let _ = pieces.send((host, Piece::Ended(why))).await;
        });
    }
}

async fn pass(
    pieces: &mpsc::Sender<(String, Piece)>,
    host: &str,
    line: Result<wire::LogLine, Status>,
) -> bool {
    let Ok(mut line) = line else { return true };
    host.clone_into(&mut line.host);
    pieces
        .send((host.to_owned(), Piece::Line(line)))
        .await
        .is_ok()
}

/// Says of a host that its lines are missing.
fn notice(host: &str, why: &str) -> wire::LogLine {
    wire::LogLine {
        process: format!("host:{host}"),
        at: now_ms(),
        line: format!("its lines are missing: {why}"),
        stream: "notice".to_owned(),
        truncated: false,
        host: host.to_owned(),
    }
}
