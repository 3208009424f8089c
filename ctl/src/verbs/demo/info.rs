//! `tanakoctl demo info` and `demo status`.

use std::{fmt::Write as _, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    daemon, etcd,
    place::Place,
    record::Record,
    seat::{Seat, seats},
};
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
    /// Empty for one host.
    hosts: Vec<HostInfo>,
}

/// One of several hosts.
#[derive(Debug, Serialize)]
struct HostInfo {
    name: String,
    address: String,
    agent_http: String,
    agent_pid: Option<u32>,
    etcd: Option<String>,
    etcd_pid: Option<u32>,
    /// `demo kill-host` has ended everything there.
    off: bool,
    data_dir: PathBuf,
    log: PathBuf,
}

impl HostInfo {
    fn new(seat: &Seat, record: &Record) -> Option<Self> {
        let member = seat.member.as_ref()?;
        Some(Self {
            name: member.name.clone(),
            address: member.listen.to_string(),
            agent_http: http(seat),
            agent_pid: daemon::agent(seat, record).map(|live| live.pid),
            etcd: member
                .etcd
                .as_ref()
                .map(|etcd| format!("https://{}", etcd.client)),
            etcd_pid: etcd::member(seat, record).map(|live| live.pid),
            off: member.off,
            data_dir: seat.data_dir.clone(),
            log: seat.log.clone(),
        })
    }
}

fn http(seat: &Seat) -> String {
    format!("http://{}:{}", seat.address, seat.http_port)
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
        let seats = seats(place, record);
        // Any one of several answers.
        let first = seats
            .iter()
            .find(|seat| daemon::agent(seat, record).is_some())
            .unwrap_or(&seats[0]);
        let agent_pid = daemon::agent(first, record).map(|live| live.pid);
        let simcord_pid = daemon::simcord(place, record).map(|live| live.pid);
        let told: SimcordInfo = std::fs::read_to_string(place.simcord_info())
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        Self {
            context: record.context.clone(),
            running: agent_pid.is_some() && simcord_pid.is_some(),
            agent: first.agent_socket(),
            agent_http: http(first),
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
                agent: first.log.clone(),
                simcord: place.simcord_log(),
                processes: first.data_dir.join("logs"),
            },
            guilds: record.guilds,
            hosts: seats
                .iter()
                .filter_map(|seat| HostInfo::new(seat, record))
                .collect(),
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
        let mut text = rows.iter().fold(String::new(), |mut text, (label, value)| {
            let _ = writeln!(text, "{label:<11} {value}");
            text
        });
        for host in &self.hosts {
            let is_off = host.off.then(|| paint.warn("off"));
            let etcd = host.etcd.as_ref().map(|url| {
                let state = is_off.clone().unwrap_or_else(|| state(host.etcd_pid));
                format!(", etcd {url} ({state})")
            });
            let _ = writeln!(
                text,
                "{:<11} {} ({}){}",
                format!("host {}", host.name),
                host.address,
                is_off.unwrap_or_else(|| state(host.agent_pid)),
                etcd.unwrap_or_default()
            );
        }
        text
    }

    fn names(&self) -> Vec<String> {
        vec![self.context.clone()]
    }
}

pub(super) fn load(place: &Place) -> Result<Record, Failure> {
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
        let endpoint = super::endpoint(session, place, &record);
        let now = status(&mut endpoint.open().await?).await?;
        crate::verbs::status::show(session, now)
    }
}
