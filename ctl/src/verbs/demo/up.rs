//! `tanakoctl demo up`.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tanako_proto::fleet::v1::{ApplyRequest, FleetStatus, OperationRequest};
use tokio::time::Instant;

use super::{
    daemon, etcd,
    info::Info,
    place::Place,
    record::Record,
    seat::{ETCD_MEMBERS, HOSTS_MAX, Seat, seats},
    setup::{self, DB_NODES},
};
use crate::{
    client::{Endpoint, Way},
    context::{self, Context},
    exit::Exit,
    failure::{Failure, Outcome},
    monitor,
    operate::{follow, patiently, request_id},
    session::{Session, status},
    units::parse_duration,
    verbs::status::{show, until_healthy},
    view::status::goes_on,
};

/// Guilds unless `--guilds` says else.
const GUILDS: u32 = 10_000;

/// Fewest hosts of a demo of several: with two, etcd would not outlive the loss of one.
const HOSTS_MIN: u16 = 3;

/// Start the demo, or what is missing of it, and look at it
///
/// On a terminal the monitor opens once the fleet is healthy; leaving it leaves the fleet running. Elsewhere
/// the status is printed. A demo that runs already is left as it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Guilds of the simulated Discord [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    guilds: Option<u32>,
    /// Hosts: 1, or 3 to 9 on loopback addresses of their own, with a real etcd [default: 1]
    #[arg(long, value_name = "N", value_parser = hosts)]
    hosts: Option<u16>,
    /// Print the status instead of opening the monitor
    #[arg(long)]
    no_monitor: bool,
    /// How long the fleet may take to become healthy
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Say what would be started, start nothing (exit 4 when something would be)
    #[arg(long)]
    dry_run: bool,
}

fn hosts(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(hosts) if hosts == 1 || (HOSTS_MIN..=HOSTS_MAX).contains(&hosts) => Ok(hosts),
        _ => Err(format!("give 1, or {HOSTS_MIN} to {HOSTS_MAX}")),
    }
}

impl Args {
    pub(super) async fn run(self, session: &Session, place: &Place) -> Outcome {
        let ui = &session.ui;
        let wanted = Wanted {
            guilds: self.guilds,
            hosts: self.hosts,
        };
        if self.dry_run {
            return dry_run(session, place, wanted);
        }
        session.may_write()?;
        for program in daemon::PROGRAMS {
            daemon::program(program)?;
        }
        place.create()?;
        let context = Record::load(&place.record())?
            .map_or_else(|| place.context.clone(), |record| record.context);
        let mut how = Commands::new(place, &context);
        session.if_cancelled(Some(format!(
            "what was started goes on: `{}` continues, `{}` stops it",
            how.up, how.down
        )));
        let (record, started) = start(session, place, wanted).await?;
        if record.hosts.len() > 1 {
            how.hosts = Some((place.command("kill-host b"), place.command("revive-host b")));
        }
        let endpoint = super::endpoint(session, place, &record);
        if started.is_empty() {
            ui.note(&format!(
                "the demo already runs (context {context}); nothing was changed"
            ));
        }
        let now = until_healthy(&session.ui, &endpoint, self.timeout)
            .await
            .map_err(|failure| {
                let logs = format!(
                    "logs: {}, {} and below {}; look: `{}`; stop: `{}`",
                    list(&seats(place, &record), |seat| seat.log.clone()),
                    place.simcord_log().display(),
                    list(&seats(place, &record), |seat| seat.data_dir.join("logs")),
                    how.status,
                    how.down
                );
                failure.hint(logs)
            })?;
        session.if_cancelled(None);
        let now = measured(&endpoint, now).await;
        if ui.is_machine() {
            ui.report(&Info::new(place, &record))?;
            return Ok(Exit::Ok);
        }
        if ui.stdout_tty && ui.asks && !self.no_monitor {
            let options = monitor::Options {
                context,
                readonly: session.global.readonly,
                no_color: !ui.out.is_on(),
                ..monitor::Options::default()
            };
            monitor::run(endpoint, options).await.map_err(|error| {
                Failure::new(
                    "monitor",
                    "terminal",
                    "the monitor failed; the fleet goes on",
                )
                .cause(format!("{error:#}"))
            })?;
            ui.note(&format!(
                "The fleet goes on. Look again: {}\nStop it: {}",
                how.monitor, how.down
            ));
            return Ok(Exit::Ok);
        }
        show(session, now)?;
        ui.note(&how.text());
        Ok(Exit::Ok)
    }
}

/// An agent that has just started has not measured anything yet; its first sample is a second away.
async fn measured(endpoint: &Endpoint, mut now: FleetStatus) -> FleetStatus {
    let deadline = Instant::now() + Duration::from_secs(3);
    let is_measured = |now: &FleetStatus| {
        let mut processes = now.processes.iter().filter(|process| process.pid != 0);
        !now.hosts.is_empty() && processes.all(|process| process.rss_bytes > 0)
    };
    while !is_measured(&now) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let again = async { status(&mut endpoint.open().await?).await };
        if let Ok(again) = again.await {
            now = again;
        }
    }
    now
}

/// What was asked for, where anything was.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    guilds: Option<u32>,
    hosts: Option<u16>,
}

/// Paths of all hosts in one line.
fn list(seats: &[Seat], path: impl Fn(&Seat) -> PathBuf) -> String {
    let all: Vec<String> = seats
        .iter()
        .map(|seat| path(seat).display().to_string())
        .collect();
    all.join(" ")
}

/// Starts what is missing, and says what that was.
async fn start(
    session: &Session,
    place: &Place,
    wanted: Wanted,
) -> Result<(Record, Vec<&'static str>), Failure> {
    let ui = &session.ui;
    let _lock = place.lock().await?;
    let mut record = if let Some(record) = Record::load(&place.record())? {
        known(place, &record, wanted)?;
        record
    } else {
        fresh(place, wanted)?
    };
    check_context(place, &record)?;
    record.save(&place.record())?;
    // simcord makes the bot's token itself: it has the form of a real one.
    setup::token(&place.db_token())?;
    setup::spec(place, &record)?;
    etcd::certificates(place, &record)?;
    let mut started = Vec::new();
    if daemon::simcord(place, &record).is_none() {
        let address = (Ipv4Addr::LOCALHOST, record.simcord_port());
        port_is_free(place, address.into(), "simcord")?;
        ui.note(&format!(
            "starting simcord with {} guilds on {}",
            record.guilds,
            record.simcord_url()
        ));
        daemon::start_simcord(place, &mut record).await?;
        started.push("simcord");
    }
    started.extend(start_hosts(session, place, &mut record, &HostSet::All).await?);
    let endpoint = super::endpoint(session, place, &record);
    add_context(session, place, &record)?;
    if record.hosts.len() > 1 {
        first_spec(place, &endpoint).await?;
    }
    let targets = if record.stopped {
        vec!["all".to_owned()]
    } else {
        given_up(&endpoint).await?
    };
    if !targets.is_empty() {
        start_processes(session, &endpoint, targets).await?;
        record.stopped = false;
        record.save(&place.record())?;
        started.push("processes");
    }
    Ok((record, started))
}

/// A demo as it was asked for; nothing is written down yet.
fn fresh(place: &Place, wanted: Wanted) -> Result<Record, Failure> {
    let hosts = wanted.hosts.unwrap_or(1);
    if hosts > 1 {
        etcd::program()?;
    }
    let guilds = wanted.guilds.unwrap_or(GUILDS);
    let record = Record::new(place, guilds, setup::base_port(place, hosts)?, DB_NODES)?;
    Ok(if hosts > 1 {
        record.over(place, hosts)
    } else {
        record
    })
}

/// Which hosts are started.
#[derive(Debug)]
pub(super) enum HostSet {
    /// All of them.
    All,
    /// One.
    One(usize),
}

/// Starts etcd and agents where they are missing, and says which of them were. The hosts are on from
/// here on.
pub(super) async fn start_hosts(
    session: &Session,
    place: &Place,
    record: &mut Record,
    which: &HostSet,
) -> Result<Vec<&'static str>, Failure> {
    let ui = &session.ui;
    for (index, host) in record.hosts.iter_mut().enumerate() {
        if matches!(which, HostSet::All) || matches!(which, HostSet::One(one) if *one == index) {
            host.off = false;
        }
    }
    record.save(&place.record())?;
    let seats: Vec<Seat> = seats(place, record)
        .into_iter()
        .filter(|seat| !seat.is_off())
        .collect();
    let mut started = Vec::new();
    let missing: Vec<&Seat> = seats
        .iter()
        .filter(|seat| etcd::is_wanted(seat) && etcd::member(seat, record).is_none())
        .collect();
    if !missing.is_empty() {
        for (address, whose) in missing.iter().flat_map(|seat| etcd::addresses(seat)) {
            port_is_free(place, address, &whose)?;
        }
        ui.note(&format!("starting {} of etcd", members(missing.len())));
        etcd::start(place, record, &missing).await?;
        started.push("etcd");
    }
    for seat in &seats {
        let endpoint = session.endpoint_at(seat.agent_socket());
        match daemon::agent(seat, record) {
            None => {
                let http = (seat.address, seat.http_port).into();
                let listen = seat.member.as_ref().map(|member| member.listen);
                for address in [Some(http), listen].into_iter().flatten() {
                    port_is_free(place, address, &seat.whose("the agent"))?;
                }
                ui.note(&format!(
                    "starting tanako-agent in {}",
                    seat.data_dir.display()
                ));
                daemon::start_agent(place, record, seat, &endpoint).await?;
                started.push("tanako-agent");
            }
            Some(live) if !daemon::answers(&endpoint).await => {
                return Err(Failure::new(
                    "not-ready",
                    seat.log.display().to_string(),
                    format!(
                        "{} (pid {}) lives but does not answer",
                        seat.whose("the demo's agent"),
                        live.pid
                    ),
                )
                .hint(format!(
                    "its log is in that file; `{}` ends it, then try again",
                    place.command("down")
                )));
            }
            Some(_) => {}
        }
    }
    Ok(started)
}

/// Says what a fleet of several hosts is to run, unless that was said before. All of them are there by now,
/// so that all get their share.
async fn first_spec(place: &Place, endpoint: &Endpoint) -> Result<(), Failure> {
    let file = place.spec();
    let spec_toml = std::fs::read_to_string(&file)
        .map_err(|error| Failure::io(&file, "read the demo's fleet.toml", &error))?;
    let mut fleet = endpoint.open().await?;
    if status(&mut fleet).await?.version != 0 {
        return Ok(());
    }
    let request = ApplyRequest {
        spec_toml,
        base_version: 0,
        request_id: request_id(),
        file_name: file.display().to_string(),
        no_start: false,
    };
    let mut writer = fleet.writer()?;
    patiently(async || writer.apply(request.clone()).await).await?;
    Ok(())
}

fn members(count: usize) -> String {
    if count == 1 {
        "a member".to_owned()
    } else {
        format!("{count} members")
    }
}

/// Processes that should run and that the agent no longer tries to start. What the operator has stopped
/// is not among them.
async fn given_up(endpoint: &Endpoint) -> Result<Vec<String>, Failure> {
    let now = status(&mut endpoint.open().await?).await?;
    let busy = now.operations.iter().any(goes_on);
    Ok(now
        .processes
        .into_iter()
        .filter(|process| !busy && process.desired == "running" && process.state == "failed")
        .map(|process| process.name)
        .collect())
}

/// Starts what `demo down` has stopped for good, or what was given up.
async fn start_processes(
    session: &Session,
    endpoint: &Endpoint,
    targets: Vec<String>,
) -> Result<(), Failure> {
    let request = OperationRequest {
        request_id: request_id(),
        kind: "start".into(),
        targets,
        ..OperationRequest::default()
    };
    let fleet = endpoint.open().await?;
    let mut writer = fleet.writer()?;
    let deadline = Instant::now() + Duration::from_mins(1);
    let operation = loop {
        match patiently(async || writer.submit(request.clone()).await).await {
            // What an interrupted `up` had asked for goes on; it ends with what is asked for here.
            Err(failure) if failure.exit == Exit::Locked && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => break other?,
        }
    };
    // Whether it becomes healthy is waited for, and told, by the caller.
    let ended = follow(session, &fleet, operation, Duration::from_mins(10)).await?;
    if let Some(problem) = ended.problem.filter(|problem| !problem.code.is_empty()) {
        session
            .ui
            .note(&format!("starting the fleet: {}", problem.message));
    }
    Ok(())
}

/// Refuses options that do not fit the demo that is there: what is asked for is not what would be shown.
fn known(place: &Place, record: &Record, wanted: Wanted) -> Result<(), Failure> {
    if place.named && place.context != record.context {
        return Err(Failure::usage(
            &place.context,
            format!(
                "the demo in {} has the context {}",
                place.data_dir.display(),
                record.context
            ),
        )
        .hint("leave out --context, or name another directory with --data-dir"));
    }
    let guilds = wanted.guilds.map(|wanted| ("guild", wanted, record.guilds));
    let own = u32::try_from(record.hosts.len().max(1)).unwrap_or(u32::MAX);
    let hosts = wanted.hosts.map(|wanted| ("host", wanted.into(), own));
    let Some((what, wanted, there)) = [guilds, hosts]
        .into_iter()
        .flatten()
        .find(|(_, wanted, there)| wanted != there)
    else {
        return Ok(());
    };
    let plural = if there == 1 { "" } else { "s" };
    Err(Failure::usage(
        format!("--{what}s"),
        format!("the demo that is there was made with {there} {what}{plural}, not {wanted}"),
    )
    .hint(format!(
        "leave out --{what}s to go on with it; or delete it with `{}`, then `{}`",
        place.command("down --purge"),
        place.command(&format!("up --{what}s {wanted}"))
    )))
}

fn port_is_free(place: &Place, address: SocketAddr, who: &str) -> Result<(), Failure> {
    if setup::is_free(address) {
        return Ok(());
    }
    let port = address.port();
    Err(Failure::new(
        "port-in-use",
        address.to_string(),
        format!("{who} needs this port, and something else listens there"),
    )
    .cause(format!(
        "the demo in {} keeps its ports, so that its processes find each other again",
        place.data_dir.display()
    ))
    .hint(format!(
        "find it with `ss -ltnp 'sport = :{port}'` and end it, or use another --data-dir"
    )))
}

/// Refuses a name that belongs to another fleet, before anything starts.
fn check_context(place: &Place, record: &Record) -> Result<(), Failure> {
    let way = super::way(place, record);
    let contexts = context::Config::load()?.contexts()?;
    let taken = contexts.iter().find(|context| {
        let leads_somewhere = match &context.way {
            Way::Socket(socket) => socket.exists(),
            Way::Fleet(remote) => remote.identity.exists(),
        };
        context.name == record.context && context.way != way && leads_somewhere
    });
    match taken {
        None => Ok(()),
        Some(context) => Err(Failure::new(
            "conflict",
            &record.context,
            format!("a context of this name leads to {}", context.way),
        )
        .hint("give the demo another name with --context, or remove that context: tanakoctl context remove NAME")
        .exit(Exit::Error)),
    }
}

fn add_context(session: &Session, place: &Place, record: &Record) -> Result<(), Failure> {
    let name = &record.context;
    let way = super::way(place, record);
    let current = context::update(|config| {
        let changed = config.put(&Context {
            name: name.clone(),
            way: way.clone(),
            production: false,
        });
        let first = config.current().is_none() && config.set_current(Some(name));
        Ok((changed || first, first))
    })?;
    if current {
        session
            .ui
            .note(&format!("{name} is now the current context"));
    }
    Ok(())
}

fn dry_run(session: &Session, place: &Place, wanted: Wanted) -> Outcome {
    let record = Record::load(&place.record())?;
    if let Some(record) = &record {
        known(place, record, wanted)?;
    }
    let hosts = wanted.hosts.unwrap_or(1);
    let missing: Vec<String> = match &record {
        None if hosts > 1 => vec![
            "simcord".into(),
            format!("{} x etcd", ETCD_MEMBERS.min(hosts.into())),
            format!("{hosts} x tanako-agent"),
            format!("{} x tanako-bot", 2 * hosts),
            format!("{DB_NODES} x tanako-db"),
        ],
        None => ["simcord", "tanako-agent", "4 x tanako-bot", "3 x tanako-db"]
            .map(str::to_owned)
            .to_vec(),
        Some(record) => {
            let mut missing = Vec::new();
            if daemon::simcord(place, record).is_none() {
                missing.push("simcord".to_owned());
            }
            for seat in seats(place, record) {
                if etcd::is_wanted(&seat) && etcd::member(&seat, record).is_none() {
                    missing.push(seat.whose("etcd"));
                }
                if daemon::agent(&seat, record).is_none() {
                    missing.push(seat.whose("tanako-agent"));
                }
            }
            if record.stopped {
                missing.push("the fleet's processes".to_owned());
            }
            missing
        }
    };
    if missing.is_empty() {
        session.ui.print("nothing to start: the demo runs\n")?;
        return Ok(Exit::Ok);
    }
    session.ui.print(&format!(
        "would start in {}: {}\n",
        place.data_dir.display(),
        missing.join(", ")
    ))?;
    Ok(Exit::Changes)
}

/// What to type next.
struct Commands {
    up: String,
    info: String,
    down: String,
    status: String,
    monitor: String,
    /// To kill a host and to bring it back, when there are several.
    hosts: Option<(String, String)>,
    context: String,
}

impl Commands {
    fn new(place: &Place, context: &str) -> Self {
        Self {
            hosts: None,
            up: place.command("up"),
            info: place.command("info"),
            down: place.command("down"),
            status: format!("tanakoctl --context {context} status"),
            monitor: format!("tanakoctl --context {context} monitor"),
            context: context.to_owned(),
        }
    }

    fn text(&self) -> String {
        let context = &self.context;
        let restart = format!("tanakoctl --context {context} restart tanako/0");
        let backup = format!("tanakoctl --context {context} backup");
        let mut rows = vec![
            (&self.monitor, "watch it live"),
            (&restart, "restart a process; its shards resume"),
            (&backup, "back up the database"),
        ];
        if let Some((kill, revive)) = &self.hosts {
            rows.push((kill, "what a power cut does to a host"));
            rows.push((revive, "and its return"));
        }
        rows.push((&self.info, "where everything is"));
        rows.push((&self.down, "stop all of it"));
        let mut text = "\nWhat to try next:".to_owned();
        for (command, why) in rows {
            let _ = write!(text, "\n  {command:<52} {why}");
        }
        text
    }
}
