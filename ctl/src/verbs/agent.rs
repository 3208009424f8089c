//! `tanakoctl agent`.

use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    exit::Exit,
    failure::{Failure, Outcome},
    operate::backoff,
    paint::Paint,
    session::{Session, status},
    ui::Report,
    units::{age, parse_duration},
};

/// Look after the agent itself
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Replace the running agent by the binary now on disk; its processes go on untouched
    Upgrade {
        /// How long the new agent may take to answer
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
        /// Show which version runs, change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Serialize)]
struct Upgraded {
    from_version: String,
    to_version: String,
}

impl Report for Upgraded {
    fn table(&self, _paint: Paint, _wide: bool) -> String {
        format!(
            "agent {} replaced by {}\n",
            self.from_version, self.to_version
        )
    }

    fn names(&self) -> Vec<String> {
        vec![self.to_version.clone()]
    }
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let Verb::Upgrade { timeout, dry_run } = self.verb;
        let mut fleet = session.fleet().await?;
        if dry_run {
            let now = status(&mut fleet).await?;
            session.ui.print(&format!(
                "would replace the agent (version {}) by the binary on disk; {} processes go on\n",
                now.agent_version,
                now.processes
                    .iter()
                    .filter(|process| process.pid != 0)
                    .count()
            ))?;
            return Ok(Exit::Changes);
        }
        let before = status(&mut fleet).await?;
        let from = fleet.writer()?.upgrade().await?;
        let endpoint = session.endpoint()?;
        let deadline = Instant::now() + timeout;
        let started = Instant::now();
        let mut tries = 0;
        loop {
            let attempt = async { status(&mut endpoint.open().await?).await };
            if let Ok(Ok(now)) = tokio::time::timeout_at(deadline, attempt).await {
                let uptime = |status: &tanako_proto::fleet::v1::FleetStatus| {
                    status.hosts.first().map_or(0, |host| host.agent_uptime_s)
                };
                // The old one answers until it has handed over; the new one counts from zero.
                let is_new =
                    uptime(&now) < uptime(&before) || uptime(&now) <= started.elapsed().as_secs();
                if is_new {
                    session.ui.report(&Upgraded {
                        from_version: from.from_version,
                        to_version: now.agent_version,
                    })?;
                    return Ok(Exit::Ok);
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(
                    "timeout",
                    endpoint.way().to_string(),
                    format!("the new agent does not answer after {}", age(timeout.as_secs())),
                )
                .hint("processes go on without it; look at its log (journalctl -u tanako-agent), then start it: systemctl start tanako-agent"));
            }
            tries += 1;
            tokio::time::sleep(backoff(tries).min(Duration::from_millis(500))).await;
        }
    }
}
