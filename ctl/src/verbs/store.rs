//! `tanakoctl store`.

use std::{path::PathBuf, time::Duration};

use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use tanako_proto::fleet::v1::{MigrateStoreReply, MigrateStoreRequest};
use tokio::time::Instant;

use crate::{
    confirm::{Change, Consent, Severity, confirm},
    exit::Exit,
    failure::{Failure, Outcome},
    operate::backoff,
    paint::Paint,
    session::{Session, status},
    ui::Report,
    units::{age, bytes, count},
};

/// How long the agent may take to come back.
const PATIENCE: Duration = Duration::from_secs(90);

/// Look after the place where the fleet's control state is kept
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Move a one-machine fleet's control state to etcd; no process stops
    ///
    /// Spec, desired state, operations, audit log, identify ledger and sessions are copied and compared while
    /// nothing is decided, then the agent replaces itself and goes on there. The place in etcd must be empty. The
    /// agent remembers it in its data directory (store.json), so that its unit needs no change. The old store
    /// stays as it was. What fails changes nothing, and may be tried again.
    Migrate(Migrate),
}

#[derive(Debug, clap::Args)]
struct Migrate {
    /// Where to
    #[arg(long, value_enum)]
    to: Target,
    /// URLs of the etcd members, separated by commas
    #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// What all keys of this fleet will begin with, for example tanako/prod/
    #[arg(long, value_name = "PREFIX")]
    prefix: String,
    /// CA of the members (PEM), on the agent's host; https needs it
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The agent's client certificate (PEM)
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its key (PEM, mode 0600)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File of mode 0600 with the user's password, on the agent's host
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Look whether it could be done, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// An existing etcd, 3.4 or later
    Etcd,
}

#[derive(Debug, Serialize)]
struct Moved {
    keys: u64,
    bytes: u64,
    prefix: String,
    unchanged: bool,
    dry_run: bool,
}

impl Report for Moved {
    fn table(&self, _paint: Paint, _wide: bool) -> String {
        let what = format!(
            "{} ({})",
            count(self.keys, "key", "keys"),
            bytes(self.bytes)
        );
        match (self.unchanged, self.dry_run) {
            (true, _) => format!("the agent keeps its state under {} already\n", self.prefix),
            (_, true) => format!("would move {what} to {}; no process stops\n", self.prefix),
            _ => format!("{what} moved to {}; the agent goes on there\n", self.prefix),
        }
    }

    fn names(&self) -> Vec<String> {
        vec![self.prefix.clone()]
    }
}

fn path(path: Option<PathBuf>) -> Result<String, Failure> {
    let Some(path) = path else {
        return Ok(String::new());
    };
    let absolute =
        std::path::absolute(&path).map_err(|error| Failure::io(&path, "use the path", &error))?;
    Ok(absolute.to_string_lossy().into_owned())
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let Verb::Migrate(asked) = self.verb;
        let Target::Etcd = asked.to;
        let request = MigrateStoreRequest {
            endpoints: asked.endpoints,
            prefix: asked.prefix.clone(),
            ca: path(asked.ca)?,
            cert: path(asked.cert)?,
            key: path(asked.key)?,
            user: asked.user.unwrap_or_default(),
            password_file: path(asked.password_file)?,
            dry_run: true,
        };
        let mut fleet = session.fleet().await?;
        let mut writer = fleet.writer()?;
        let moved = |reply: MigrateStoreReply, dry_run| Moved {
            keys: reply.keys,
            bytes: reply.bytes,
            prefix: asked.prefix.clone(),
            unchanged: reply.unchanged,
            dry_run,
        };
        // Looked at first in any case: what cannot be is not asked about.
        let looked = writer.migrate_store(request.clone()).await?;
        if looked.unchanged {
            session.ui.report(&moved(looked, asked.dry_run))?;
            return Ok(Exit::Nothing);
        }
        if asked.dry_run {
            session.ui.report(&moved(looked, true))?;
            return Ok(Exit::Changes);
        }
        let before = status(&mut fleet).await?;
        let blast = format!(
            "moves {} of fleet {} to etcd; the agent replaces itself, no process stops",
            count(looked.keys, "key", "keys"),
            before.fleet
        );
        let change = Change {
            severity: Severity::Disruptive,
            blast: &blast,
            name: &before.fleet,
            production: before.production.then_some(before.fleet.as_str()),
        };
        confirm(&session.ui, &asked.consent, &change).await?;
        let started = Instant::now();
        let done = writer
            .migrate_store(MigrateStoreRequest {
                dry_run: false,
                ..request
            })
            .await?;
        back(session, &before, started).await?;
        session.ui.report(&moved(done, false))?;
        Ok(Exit::Ok)
    }
}

/// Waits until the agent that replaced the old one answers and decides.
async fn back(
    session: &Session,
    before: &tanako_proto::fleet::v1::FleetStatus,
    started: Instant,
) -> Result<(), Failure> {
    let endpoint = session.endpoint()?;
    let deadline = started + PATIENCE;
    let uptime = |status: &tanako_proto::fleet::v1::FleetStatus| {
        status.hosts.first().map_or(0, |host| host.agent_uptime_s)
    };
    let mut tries = 0;
    loop {
        let attempt = async { status(&mut endpoint.open().await?).await };
        if let Ok(Ok(now)) = tokio::time::timeout_at(deadline, attempt).await {
            let is_new =
                uptime(&now) < uptime(before) || uptime(&now) <= started.elapsed().as_secs();
            if is_new && now.version > 0 {
                return Ok(());
            }
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                "timeout",
                "store",
                format!(
                    "the state is in etcd, but the agent does not answer after {}",
                    age(PATIENCE.as_secs())
                ),
            )
            .hint("processes go on without it; look at its log (journalctl -u tanako-agent)"));
        }
        tries += 1;
        tokio::time::sleep(backoff(tries).min(Duration::from_millis(500))).await;
    }
}
