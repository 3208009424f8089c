//! `tanakoctl demo up`.

use std::time::Duration;

use tanako_proto::fleet::v1::{FleetStatus, OperationRequest};
use tokio::time::Instant;

use super::{
    daemon,
    info::Info,
    place::Place,
    record::Record,
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

/// Start the demo, or what is missing of it, and look at it
///
/// On a terminal the monitor opens once the fleet is healthy; leaving it leaves the fleet running. Elsewhere
/// the status is printed. A demo that runs already is left as it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Guilds of the simulated Discord [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    guilds: Option<u32>,
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

impl Args {
    pub(super) async fn run(self, session: &Session, place: &Place) -> Outcome {
        let ui = &session.ui;
        if self.dry_run {
            return dry_run(session, place);
        }
        session.may_write()?;
        for program in daemon::PROGRAMS {
            daemon::program(program)?;
        }
        place.create()?;
        let context = Record::load(&place.record())?
            .map_or_else(|| place.context.clone(), |record| record.context);
        let how = Commands::new(place, &context);
        session.if_cancelled(Some(format!(
            "what was started goes on: `{}` continues, `{}` stops it",
            how.up, how.down
        )));
        let (record, started) = start(session, place, self.guilds).await?;
        let endpoint = session.endpoint_at(record.agent_socket());
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
                    place.agent_log().display(),
                    place.simcord_log().display(),
                    place.agent_dir().join("logs").display(),
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

/// Starts what is missing, and says what that was.
async fn start(
    session: &Session,
    place: &Place,
    guilds: Option<u32>,
) -> Result<(Record, Vec<&'static str>), Failure> {
    let ui = &session.ui;
    let _lock = place.lock().await?;
    let mut record = match Record::load(&place.record())? {
        Some(record) => {
            known(session, place, &record, guilds)?;
            record
        }
        None => Record::new(
            place,
            guilds.unwrap_or(GUILDS),
            setup::base_port(place)?,
            DB_NODES,
        )?,
    };
    check_context(&record)?;
    record.save(&place.record())?;
    // simcord makes the bot's token itself: it has the form of a real one.
    setup::token(&place.db_token())?;
    setup::spec(place, &record)?;
    let mut started = Vec::new();
    if daemon::simcord(place, &record).is_none() {
        port_is_free(place, record.simcord_port(), "simcord")?;
        ui.note(&format!(
            "starting simcord with {} guilds on {}",
            record.guilds,
            record.simcord_url()
        ));
        daemon::start_simcord(place, &mut record).await?;
        started.push("simcord");
    }
    let endpoint = session.endpoint_at(record.agent_socket());
    match daemon::agent(place, &record) {
        None => {
            port_is_free(place, record.http_port(), "the agent")?;
            ui.note(&format!(
                "starting tanako-agent in {}",
                place.agent_dir().display()
            ));
            daemon::start_agent(place, &mut record, &endpoint).await?;
            started.push("tanako-agent");
        }
        Some(live) if !daemon::answers(&endpoint).await => {
            return Err(Failure::new(
                "not-ready",
                place.agent_log().display().to_string(),
                format!(
                    "the demo's agent (pid {}) lives but does not answer",
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
    add_context(session, &record)?;
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

/// What is said when options do not fit the demo that is there.
fn known(
    session: &Session,
    place: &Place,
    record: &Record,
    guilds: Option<u32>,
) -> Result<(), Failure> {
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
    if let Some(wanted) = guilds.filter(|wanted| *wanted != record.guilds) {
        session.ui.note(&format!(
            "this demo was made with {} guilds and keeps them; for {wanted}: {}, then {}",
            record.guilds,
            place.command("down --purge"),
            place.command(&format!("up --guilds {wanted}"))
        ));
    }
    Ok(())
}

fn port_is_free(place: &Place, port: u16, who: &str) -> Result<(), Failure> {
    if setup::is_free(port) {
        return Ok(());
    }
    Err(Failure::new(
        "port-in-use",
        format!("127.0.0.1:{port}"),
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
fn check_context(record: &Record) -> Result<(), Failure> {
    let socket = record.agent_socket();
    let contexts = context::Config::load()?.contexts()?;
    let taken = contexts.iter().find(|context| {
        context.name == record.context
            && match context.way.socket() {
                Some(other) => other != socket && other.exists(),
                None => true,
            }
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

fn add_context(session: &Session, record: &Record) -> Result<(), Failure> {
    let name = &record.context;
    let current = context::update(|config| {
        let changed = config.put(&Context {
            name: name.clone(),
            way: Way::Socket(record.agent_socket()),
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

fn dry_run(session: &Session, place: &Place) -> Outcome {
    let record = Record::load(&place.record())?;
    let missing: Vec<&str> = match &record {
        None => vec!["simcord", "tanako-agent", "4 x tanako-bot", "3 x tanako-db"],
        Some(record) => {
            let mut missing = Vec::new();
            if daemon::simcord(place, record).is_none() {
                missing.push("simcord");
            }
            if daemon::agent(place, record).is_none() {
                missing.push("tanako-agent");
            }
            if record.stopped {
                missing.push("the fleet's processes");
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
    context: String,
}

impl Commands {
    fn new(place: &Place, context: &str) -> Self {
        Self {
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
        format!(
            "\nWhat to try next:\n  {:<52} watch it live\n  {:<52} restart a process; its shards resume\n  {:<52} back up the database\n  {:<52} where everything is\n  {:<52} stop all of it",
            self.monitor,
            format!("tanakoctl --context {context} restart tanako/0"),
            format!("tanakoctl --context {context} backup"),
            self.info,
            self.down,
        )
    }
}
