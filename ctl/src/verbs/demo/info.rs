//! `tanakoctl demo info` and `demo status`.

use std::{fmt::Write as _, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{daemon, place::Place, record::Record};
use crate::{
    exit::Exit,
    failure::{Failure, Outcome},
    paint::Paint,
    session::{Session, status},
    ui::Report,
};

/// Say where everything of the demo is
///
/// Sockets, addresses, token files, logs; also while it does not run.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Show the demo's fleet, as `tanakoctl --context demo status` does
#[derive(Debug, clap::Args)]
pub struct StatusArgs {}

/// `demo info -o json`.
#[derive(Debug, Serialize)]
pub(super) struct Info {
    context: String,
    running: bool,
    agent: PathBuf,
    agent_http: String,
    agent_pid: Option<u32>,
    simcord: String,
    simcord_gateway: String,
    simcord_pid: Option<u32>,
    db: Vec<String>,
    db_token_file: PathBuf,
    discord_token_file: PathBuf,
    application_id: Option<String>,
    data_dir: PathBuf,
    spec: PathBuf,
    backups: PathBuf,
    logs: Logs,
    guilds: u32,
}

#[derive(Debug, Serialize)]
struct Logs {
    agent: PathBuf,
    simcord: PathBuf,
    processes: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
struct SimcordInfo {
    gateway: Option<String>,
    application_id: Option<serde_json::Value>,
}

impl Info {
    pub(super) fn new(place: &Place, record: &Record) -> Self {
        let agent_pid = daemon::agent(place, record).map(|live| live.pid);
        let simcord_pid = daemon::simcord(place, record).map(|live| live.pid);
        let told: SimcordInfo = std::fs::read_to_string(place.simcord_info())
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        Self {
            context: record.context.clone(),
            running: agent_pid.is_some() && simcord_pid.is_some(),
            agent: record.agent_socket(),
            agent_http: record.http_url(),
            agent_pid,
            simcord: record.simcord_url(),
            simcord_gateway: told
                .gateway
                .unwrap_or_else(|| format!("ws://127.0.0.1:{}", record.simcord_port())),
            simcord_pid,
            db: record.db_urls(),
            db_token_file: place.db_token(),
            discord_token_file: place.discord_token(),
            application_id: told
                .application_id
                .map(|id| id.to_string().trim_matches('"').to_owned()),
            data_dir: place.data_dir.clone(),
            spec: place.spec(),
            backups: place.backups(),
            logs: Logs {
                agent: place.agent_log(),
                simcord: place.simcord_log(),
                processes: place.agent_dir().join("logs"),
            },
            guilds: record.guilds,
        }
    }
}

impl Report for Info {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        let state = |pid: Option<u32>| match pid {
            Some(pid) => paint.good(&format!("running, pid {pid}")),
            None => paint.warn("not running"),
        };
        let rows = [
            ("context", self.context.clone()),
            (
                "agent",
                format!("{} ({})", self.agent.display(), state(self.agent_pid)),
            ),
            ("agent http", self.agent_http.clone()),
            (
                "simcord",
                format!(
                    "{} ({}), {} guilds",
                    self.simcord,
                    state(self.simcord_pid),
                    self.guilds
                ),
            ),
            ("gateway", self.simcord_gateway.clone()),
            ("database", self.db.join(" ")),
            ("db token", self.db_token_file.display().to_string()),
            ("bot token", self.discord_token_file.display().to_string()),
            ("data", self.data_dir.display().to_string()),
            ("spec", self.spec.display().to_string()),
            (
                "logs",
                format!(
                    "{} {} {}",
                    self.logs.agent.display(),
                    self.logs.simcord.display(),
                    self.logs.processes.display()
                ),
            ),
        ];
        rows.iter().fold(String::new(), |mut text, (label, value)| {
            let _ = writeln!(text, "{label:<11} {value}");
            text
        })
    }

    fn names(&self) -> Vec<String> {
        vec![self.context.clone()]
    }
}

fn load(place: &Place) -> Result<Record, Failure> {
    Record::load(&place.record())?.ok_or_else(|| {
        Failure::new(
            "not-found",
            place.data_dir.display().to_string(),
            "there is no demo",
        )
        .hint("start one with `tanakoctl demo up`; another directory is named with --data-dir")
    })
}

/// Shows it.
pub(super) fn show(session: &Session, place: &Place) -> Outcome {
    let record = load(place)?;
    session.ui.report(&Info::new(place, &record))?;
    Ok(Exit::Ok)
}

impl StatusArgs {
    pub(super) async fn run(self, session: &Session, place: &Place) -> Outcome {
        let record = load(place)?;
        let endpoint = session.endpoint_at(record.agent_socket());
        let now = status(&mut endpoint.open().await?).await?;
        crate::verbs::status::show(session, now)
    }
}
