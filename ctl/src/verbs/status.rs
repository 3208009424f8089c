//! `tanakoctl status`.

use std::time::Duration;

use tanako_proto::fleet::v1::FleetStatus;
use tokio::time::Instant;

use crate::{
    client::Endpoint,
    exit::Exit,
    failure::{Failure, Outcome},
    operate::backoff,
    progress::Progress,
    session::{Session, status},
    ui::{Format, Ui},
    units::{age, parse_duration},
    view::StatusView,
};

/// Show the fleet: its health, processes, hosts, IDENTIFY budget and operations
///
/// Exit 10 when the fleet is not healthy, and says why. With --wait, exit 0 once it is healthy and 12
/// when it was not in time; an agent that does not answer yet is waited for as well.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait until the fleet is healthy
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Show it again and again until Ctrl-C
    #[arg(long, short = 'w', conflicts_with = "wait")]
    watch: bool,
    /// Time between two views with --watch
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        if self.watch {
            return watch(session, self.interval).await;
        }
        let now = if self.wait {
            until_healthy(&session.ui, &session.endpoint()?, self.timeout).await?
        } else {
            status(&mut session.fleet().await?).await?
        };
        show(session, now)
    }
}

/// Prints a status; exit 10 when it is not healthy.
pub(super) fn show(session: &Session, now: FleetStatus) -> Outcome {
    let exit = if now.healthy {
        Exit::Ok
    } else {
        Exit::Unhealthy
    };
    session.ui.report(&StatusView::from(now))?;
    Ok(exit)
}

/// Waits until the fleet is healthy. Nothing there yet is a state like any other.
pub(super) async fn until_healthy(
    ui: &Ui,
    endpoint: &Endpoint,
    patience: Duration,
) -> Result<FleetStatus, Failure> {
    let deadline = Instant::now() + patience;
    let mut progress = Progress::new(ui);
    let mut tries = 0;
    let mut last = String::from("no answer yet");
    loop {
        let attempt = async { status(&mut endpoint.open().await?).await };
        match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(now)) if now.healthy => return Ok(now),
            Ok(Ok(now)) => {
                let ready = now.processes.iter().filter(|process| process.ready).count();
                let short = match now.reasons.as_slice() {
                    [] => "not healthy yet".into(),
                    [only] => only.clone(),
                    [first, rest @ ..] => format!("{first}; and {} more", rest.len()),
                };
                progress.say(ready as u64, now.processes.len() as u64, "ready", &short);
                last = why(&now);
                tries = 0;
            }
            Ok(Err(failure)) => {
                let passing = failure
                    .problem
                    .as_ref()
                    .is_some_and(|problem| problem.retryable);
                if !passing {
                    return Err(failure);
                }
                last = failure
                    .problem
                    .map(|problem| problem.message)
                    .unwrap_or_default();
                progress.say(0, 0, "ready", &last);
                tries += 1;
            }
            Err(_) => {}
        }
        let pause = if tries == 0 {
            Duration::from_millis(250)
        } else {
            backoff(tries).min(Duration::from_secs(1))
        };
        if Instant::now() + pause >= deadline {
            return Err(Failure::new(
                "timeout",
                endpoint.way().to_string(),
                format!("the fleet is not healthy after {}", age(patience.as_secs())),
            )
            .cause(last)
            .hint("look closer: `tanakoctl status -o wide`, `tanakoctl events`, `tanakoctl logs TARGET`; wait longer: --timeout"));
        }
        tokio::time::sleep(pause).await;
    }
}

/// What stands between a fleet and its health, one line each.
fn why(now: &FleetStatus) -> String {
    const SHOWN: usize = 12;
    let mut lines: Vec<String> = now.reasons.iter().take(SHOWN).cloned().collect();
    if now.reasons.len() > SHOWN {
        lines.push(format!("and {} more", now.reasons.len() - SHOWN));
    }
    let failed = now
        .operations
        .iter()
        .filter(|operation| operation.state == "failed")
        .max_by_key(|operation| operation.ended_at);
    if let Some(operation) = failed {
        lines.push(format!(
            "operation {} failed: {}",
            operation.id, operation.message
        ));
    }
    if lines.is_empty() {
        lines.push("the agent gives no reason".into());
    }
    lines.join("\n")
}

/// Shows it until Ctrl-C. A lost agent is said and waited for; what was last seen stays.
async fn watch(session: &Session, interval: Duration) -> Outcome {
    let ui = &session.ui;
    let endpoint = session.endpoint()?;
    session.if_cancelled(Some(String::new()));
    let repaint = ui.stdout_tty && matches!(ui.format, Format::Table | Format::Wide);
    let mut shown = String::new();
    let mut fleet = endpoint.open().await?;
    let mut tries = 0;
    loop {
        let attempt = status(&mut fleet).await;
        let pause = match attempt {
            Ok(now) => {
                tries = 0;
                let view = StatusView::from(now);
                if repaint {
                    shown = ui.render(&view)?;
                    // Home, each line cleared to its end, then everything below.
                    let body = shown.replace('\n', "\x1b[K\n");
                    ui.print(&format!("\x1b[H{body}\x1b[J"))?;
                } else {
                    ui.item(&view)?;
                }
                interval.max(Duration::from_millis(100))
            }
            Err(failure) => {
                let passing = failure
                    .problem
                    .as_ref()
                    .is_some_and(|problem| problem.retryable);
                if !passing {
                    return Err(failure);
                }
                tries += 1;
                let said = failure
                    .problem
                    .map(|problem| problem.message)
                    .unwrap_or_default();
                let line = format!("STALE: {said}; trying again");
                if repaint {
                    let body = shown.replace('\n', "\x1b[K\n");
                    ui.print(&format!("\x1b[H{body}{}\x1b[K\n\x1b[J", ui.out.bad(&line)))?;
                } else {
                    ui.note(&line);
                }
                if let Ok(again) = endpoint.open().await {
                    fleet = again;
                }
                backoff(tries)
            }
        };
        tokio::time::sleep(pause).await;
    }
}
