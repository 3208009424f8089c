//! Many logs as one stream: the latest lines of each, in the order of their times, then what is
//! written from now on.

use std::time::Duration;

use futures_util::{StreamExt, stream::SelectAll};
use regex::{Regex, RegexBuilder};
use tanako_fleet::ProcessName;
use tanako_proto::fleet::v1::{self as wire, Problem};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::logs::{From, Line, LogError, Logs};

/// Lines from the end when none are asked for.
const TAIL_DEFAULT: usize = 100;
/// Most lines from the end of all logs together.
const LINES_MAX: usize = 20_000;
/// Least lines looked through per log when a pattern is given.
const SEARCH_MIN: usize = 200;
/// A compiled pattern may take so much memory.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// The beginning of a followed log is collected until it is quiet for so long, to put it in order.
const QUIET: Duration = Duration::from_millis(60);
/// Lines underway to a slow reader.
pub const QUEUE_MAX: usize = 256;

/// What is asked for, understood.
#[derive(Debug, Clone)]
pub struct Query {
    /// Whose logs.
    pub names: Vec<ProcessName>,
    tail: usize,
    since: i64,
    follow: bool,
    pattern: Option<(Regex, bool)>,
}

impl Query {
    /// Checks what was asked for.
    pub fn new(names: Vec<ProcessName>, request: &wire::LogsRequest) -> Result<Self, Box<Problem>> {
        let pattern = match request.grep.as_str() {
            "" => None,
            text => {
                let (text, wanted) = text
                    .strip_prefix('!')
                    .map_or((text, true), |rest| (rest, false));
                let regex = RegexBuilder::new(text)
                    .size_limit(PATTERN_BYTES_MAX)
                    .build()
                    .map_err(|error| {
                        // The last line says what is wrong, those above draw where.
                        let text = error.to_string();
                        let reason = text.lines().last().unwrap_or(&text).to_owned();
                        Problem::new(
                            "invalid-pattern",
                            &request.grep,
                            "the pattern cannot be used",
                        )
                        .cause(reason)
                        .hint("it is a regular expression: escape ( [ . * + ? with \\")
                    })?;
                Some((regex, wanted))
            }
        };
        let tail = match request.tail {
            0 => TAIL_DEFAULT,
            tail => (tail as usize).min(LINES_MAX),
        };
        Ok(Self {
            names,
            tail,
            since: request.since,
            follow: request.follow,
            pattern,
        })
    }

    fn wants(&self, line: &Line) -> bool {
        line.at_ms >= self.since
            && self
                .pattern
                .as_ref()
                .is_none_or(|(regex, wanted)| regex.is_match(&line.text) == *wanted)
    }

    /// Lines read from the end of each log.
    fn depth(&self) -> usize {
        let share = (LINES_MAX / self.names.len().max(1)).max(SEARCH_MIN);
        if self.pattern.is_some() || self.since > 0 {
            share
        } else {
            self.tail.min(share)
        }
    }
}

type Tagged = (ProcessName, Result<Line, LogError>);

/// Sends what is asked for until it is sent, the reader leaves, or the agent does.
pub async fn send(
    logs: Logs,
    query: Query,
    lines: mpsc::Sender<Result<wire::LogLine, Status>>,
    cancel: CancellationToken,
) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = lines.closed() => {}
        () = run(&logs, &query, &lines) => {}
    }
}

/// Sends what is asked for; when it is followed, for ever.
pub(super) async fn run(
    logs: &Logs,
    query: &Query,
    lines: &mpsc::Sender<Result<wire::LogLine, Status>>,
) {
    let mut live = SelectAll::new();
    let mut first: Vec<(ProcessName, Line)> = Vec::new();
    for name in &query.names {
        if query.follow {
            let name = name.clone();
            let from = From::Tail(query.depth());
            live.push(
                logs.follow(&name.clone(), from)
                    .map(move |line| (name.clone(), line))
                    .boxed(),
            );
            continue;
        }
        // A process that has never run has no log; that is no error among many.
        if let Ok(found) = logs.read_tail(name, query.depth()).await {
            keep_last(
                query,
                &mut first,
                found.into_iter().map(|line| (name.clone(), line)),
            );
        }
    }
    if query.follow {
        loop {
            match tokio::time::timeout(QUIET, live.next()).await {
                Ok(Some((name, Ok(line)))) => {
                    first.push((name, line));
                    if first.len() >= LINES_MAX {
                        break;
                    }
                }
                Ok(Some((_, Err(_)))) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
    if query.follow {
        let found = std::mem::take(&mut first);
        for name in &query.names {
            let own = found.iter().filter(|(from, _)| from == name).cloned();
            keep_last(query, &mut first, own);
        }
    }
    // Stable: lines of one process keep their order.
    first.sort_by_key(|(_, line)| line.at_ms);
    for (name, line) in first {
        if lines.send(Ok(to_wire(&name, line))).await.is_err() {
            return;
        }
    }
    if query.follow {
        follow(query, &mut live, lines).await;
    }
}

async fn follow<S>(
    query: &Query,
    live: &mut SelectAll<S>,
    lines: &mpsc::Sender<Result<wire::LogLine, Status>>,
) where
    S: futures_util::Stream<Item = Tagged> + Unpin,
{
    while let Some((name, line)) = live.next().await {
        match line {
            Ok(line) if query.wants(&line) => {
                if lines.send(Ok(to_wire(&name, line))).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(process = %name, %error, "a log cannot be followed"),
        }
    }
}

fn keep_last(
    query: &Query,
    kept: &mut Vec<(ProcessName, Line)>,
    found: impl Iterator<Item = (ProcessName, Line)>,
) {
    let mut own: Vec<(ProcessName, Line)> = found.filter(|(_, line)| query.wants(line)).collect();
    let spare = own.len().saturating_sub(query.tail);
    kept.extend(own.drain(spare..));
}

fn to_wire(name: &ProcessName, line: Line) -> wire::LogLine {
    wire::LogLine {
        process: name.to_string(),
        at: line.at_ms,
        line: line.text,
        stream: "output".to_owned(),
        truncated: line.truncated,
        host: String::new(),
    }
}
