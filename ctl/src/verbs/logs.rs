//! `tanakoctl logs`.

use std::collections::HashMap;

use tanako_proto::fleet::v1::{LogLine, LogsRequest, Problem};

use crate::{
    client::{Endpoint, Fleet},
    exit::Exit,
    failure::{Failure, Outcome},
    operate::{backoff, is_passing},
    session::{Session, status},
    target,
    units::parse_since,
    view::stream::{LogView, Shown},
};

/// Lines asked for again after a lost connection; what was shown already is left out.
const TAIL_AGAIN: u32 = 10_000;

/// Show what processes print
///
/// All of them without TARGET. With -f new lines are shown as they come, also across a restart of the
/// process or of the agent.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose lines [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Go on with new lines
    #[arg(long, short = 'f')]
    follow: bool,
    /// Begin with so many lines of each process
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tail: u32,
    /// Only lines of the last while (10m), or since a time (2026-11-21T03:00:00Z)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Only lines that match this regular expression; ! in front: that do not
    #[arg(long, short = 'g', value_name = "REGEX")]
    grep: Option<String>,
    /// Show when each line was written
    #[arg(long, short = 't')]
    timestamps: bool,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let request = self.request()?;
        if self.follow {
            session.if_cancelled(Some(String::new()));
        }
        let mut fleet = session.fleet().await?;
        let now = status(&mut fleet).await?;
        target::check(&request.targets, &now)?;
        let widest = now.processes.iter().map(|process| process.name.len()).max();
        let alone = request.targets.len() == 1 && request.targets[0].contains('/');
        let shown = Shown {
            prefix: widest.filter(|_| !alone),
            timestamps: self.timestamps,
        };
        let mut reader = Reader {
            session,
            shown,
            seen: Seen::default(),
        };
        let mut tries = 0;
        let mut next = request.clone();
        loop {
            match reader.read(&mut fleet, next.clone()).await? {
                None if self.follow => tries += 1,
                None => return Ok(Exit::Ok),
                Some(problem) if self.follow && is_passing(&problem) => {
                    tries += 1;
                    session.ui.note(&format!(
                        "lost the agent ({}), trying again",
                        problem.message
                    ));
                }
                Some(problem) => return Err(problem.into()),
            }
            tokio::time::sleep(backoff(tries)).await;
            if let Ok(again) = session.endpoint()?.open().await {
                fleet = again;
                tries = 0;
            }
            if let Some(since) = reader.seen.oldest() {
                next = LogsRequest {
                    since,
                    tail: TAIL_AGAIN,
                    ..request.clone()
                };
                reader.seen.again();
            }
        }
    }

    fn request(&self) -> Result<LogsRequest, Failure> {
        target::parse(&self.targets)?;
        if let Some(pattern) = &self.grep {
            let pattern = pattern.strip_prefix('!').unwrap_or(pattern);
            regex::Regex::new(pattern).map_err(|error| {
                Failure::usage(pattern, "this is not a regular expression")
                    .cause(error.to_string())
                    .hint(r"write a literal character such as ( or [ with a backslash: \(")
            })?;
        }
        let since = match &self.since {
            None => 0,
            Some(text) => parse_since(text, jiff::Timestamp::now())
                .map_err(|message| Failure::usage("--since", message))?,
        };
        Ok(LogsRequest {
            targets: if self.targets.is_empty() {
                vec!["all".into()]
            } else {
                self.targets.clone()
            },
            tail: self.tail,
            follow: self.follow,
            since,
            grep: self.grep.clone().unwrap_or_default(),
        })
    }
}

struct Reader<'s> {
    session: &'s Session,
    shown: Shown,
    seen: Seen,
}

impl Reader<'_> {
    /// Reads to the end of the stream; a lost connection is returned, a failure to print ends the run.
    async fn read(
        &mut self,
        fleet: &mut Fleet,
        request: LogsRequest,
    ) -> Result<Option<Problem>, Failure> {
        let follow = request.follow;
        let mut lines = match fleet.logs(request).await {
            Ok(lines) => lines,
            Err(problem) => return Ok(Some(problem)),
        };
        loop {
            match next(fleet.endpoint(), &mut lines, follow).await {
                // About lines, not one of them: a host whose logs are missing.
                Ok(Some(line)) if line.stream == "notice" => {
                    let host = line.process;
                    self.session.ui.note(&format!("{host}: {}", line.line));
                }
                Ok(Some(line)) => {
                    if self.seen.is_new(&line) {
                        self.session.ui.item(&LogView::new(line, self.shown))?;
                    }
                }
                Ok(None) => return Ok(None),
                Err(problem) => return Ok(Some(problem)),
            }
        }
    }
}

/// The next message of a stream. One that ends by itself must not fall silent; one that is followed may.
pub(super) async fn next<T>(
    endpoint: &Endpoint,
    stream: &mut tonic::Streaming<T>,
    follow: bool,
) -> Result<Option<T>, Problem> {
    let message = stream.message();
    let message = if follow {
        message.await
    } else {
        match tokio::time::timeout(endpoint.deadline(), message).await {
            Ok(message) => message,
            Err(_) => return Err(endpoint.timeout("the rest")),
        }
    };
    message.map_err(|status| endpoint.problem(&status))
}

/// Which lines were shown, so that a reader who comes back shows none twice.
#[derive(Debug, Default)]
struct Seen {
    /// Per process: the time of the newest line, and how many lines of that time were shown.
    newest: HashMap<String, (i64, u32)>,
    /// Per process, after coming back: lines of that newest time still to leave out.
    skip: HashMap<String, (i64, u32)>,
}

impl Seen {
    fn is_new(&mut self, line: &LogLine) -> bool {
        if let Some((newest, count)) = self.skip.get_mut(&line.process) {
            if line.at < *newest {
                return false;
            }
            if line.at == *newest && *count > 0 {
                *count -= 1;
                return false;
            }
        }
        let newest = self
            .newest
            .entry(line.process.clone())
            .or_insert((line.at, 0));
        if newest.0 == line.at {
            newest.1 += 1;
        } else {
            *newest = (line.at, 1);
        }
        true
    }

    /// From when to ask again.
    fn oldest(&self) -> Option<i64> {
        self.newest.values().map(|(at, _)| *at).min()
    }

    fn again(&mut self) {
        self.skip.clone_from(&self.newest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(process: &str, at: i64) -> LogLine {
        LogLine {
            process: process.into(),
            at,
            ..LogLine::default()
        }
    }

    #[test]
    fn nothing_is_shown_twice_after_coming_back() {
        let mut seen = Seen::default();
        let lines = [line("a", 1), line("a", 2), line("b", 1), line("a", 2)];
        assert!(lines.iter().all(|line| seen.is_new(line)));
        assert_eq!(seen.oldest(), Some(1));
        seen.again();
        // The agent sends everything since 1 again, and what is new.
        let again: Vec<bool> = [
            line("a", 1),
            line("a", 2),
            line("b", 1),
            line("a", 2),
            line("a", 2),
            line("b", 3),
        ]
        .iter()
        .map(|line| seen.is_new(line))
        .collect();
        assert_eq!(again, [false, false, false, false, true, true]);
    }
}
