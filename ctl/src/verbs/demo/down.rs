//! `tanakoctl demo down`.

use std::{fs, io, path::Path, time::Duration};

use serde::Serialize;
use tanako_proto::fleet::v1::{ControlRequest, ListOperationsRequest, OperationRequest};
use tokio::time::Instant;

use super::{
    daemon, etcd,
    place::Place,
    process::Live,
    record::Record,
    seat::{Seat, seats},
};
use crate::{
    client::Fleet,
    confirm::{Change, Consent, Severity, confirm},
    context,
    exit::Exit,
    failure::{Failure, Outcome},
    operate::{follow, patiently, request_id},
    paint::Paint,
    session::Session,
    ui::Report,
    view::status::goes_on,
};

/// How long the fleet's processes may take to stop through the agent.
const FLEET_PATIENCE: Duration = Duration::from_mins(2);

/// How long the agent, simcord and whatever is left may take to obey SIGTERM.
const GRACE: Duration = Duration::from_secs(15);

/// Stop the demo: its processes, its agent and its simulated Discord
///
/// Leaves no process, socket or port behind. The data stays for the next `demo up`, unless --purge.
/// Whatever an interrupted or killed demo has left is cleaned up as well.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Delete the demo's data, logs and tokens as well (asks for the context's name)
    #[arg(long)]
    purge: bool,
    /// Say what would be stopped, stop nothing (exit 4 when something would be)
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
}

/// `demo down -o json`.
#[derive(Debug, Default, Serialize)]
struct Downed {
    context: String,
    stopped: Vec<String>,
    already_stopped: bool,
    purged: bool,
}

impl Report for Downed {
    fn table(&self, _paint: Paint, _wide: bool) -> String {
        let mut text = if self.already_stopped {
            "the demo does not run\n".to_owned()
        } else {
            format!("stopped: {}\n", self.stopped.join(", "))
        };
        if self.purged {
            text.push_str("its data is deleted\n");
        }
        text
    }

    fn names(&self) -> Vec<String> {
        self.stopped.clone()
    }
}

impl Args {
    pub(super) async fn run(self, session: &Session, place: &Place) -> Outcome {
        let record = Record::load(&place.record())?;
        if self.dry_run {
            return dry_run(session, place, record.as_ref());
        }
        session.may_write()?;
        let Some(record) = record else {
            // Nothing was ever started from here: a record is written before anything starts.
            session.ui.report(&Downed {
                context: place.context.clone(),
                already_stopped: true,
                ..Downed::default()
            })?;
            return Ok(Exit::Ok);
        };
        if self.purge {
            let blast = format!(
                "deletes everything of the demo in {}",
                place.data_dir.display()
            );
            let change = Change {
                severity: Severity::Destructive,
                blast: &blast,
                name: &record.context,
                production: None,
            };
            confirm(&session.ui, &self.consent, &change).await?;
        }
        session.if_cancelled(Some(format!(
            "`{}` again stops the rest",
            place.command("down")
        )));
        let _lock = place.lock().await?;
        let stopped = stop(session, place, record.clone()).await?;
        if self.purge {
            purge(place)?;
        }
        session.ui.report(&Downed {
            context: record.context,
            already_stopped: stopped.is_empty(),
            stopped,
            purged: self.purge,
        })?;
        Ok(Exit::Ok)
    }
}

async fn stop(
    session: &Session,
    place: &Place,
    mut record: Record,
) -> Result<Vec<String>, Failure> {
    let ui = &session.ui;
    let mut stopped = Vec::new();
    let seats = seats(place, &record);
    let count = children(&seats).len();
    let agents = seats
        .iter()
        .filter(|seat| daemon::agent(seat, &record).is_some())
        .count();
    if agents + count > 0 {
        ui.note("stopping the fleet's processes");
        // Before the agent is asked: whatever happens now, the next `up` starts everything.
        record.stopped = true;
        record.save(&place.record())?;
        if let Err(failure) = stop_fleet(session, place, &mut record, &seats).await {
            let problem = failure
                .problem
                .map(|problem| problem.message)
                .unwrap_or_default();
            ui.note(&format!(
                "the agent could not stop its processes ({problem}); ending them directly"
            ));
        }
        if count > 0 {
            stopped.push(format!("{count} processes"));
        }
    }
    for seat in &seats {
        if let Some(agent) = daemon::agent(seat, &record) {
            end(&agent, &seat.whose("the agent")).await?;
            stopped.push(seat.whose("tanako-agent"));
        }
    }
    // Processes that the agent did not know, forks of those it knew, and what watches over them.
    let mut left = children(&seats);
    left.extend(seats.iter().flat_map(daemon::guards));
    for live in &left {
        live.signal(rustix::process::Signal::TERM);
    }
    for live in &left {
        end(live, "a process of the fleet").await?;
    }
    // After all agents: whatever they still had to say is kept.
    let members: Vec<(&Seat, Live)> = seats
        .iter()
        .filter_map(|seat| Some((seat, etcd::member(seat, &record)?)))
        .collect();
    for (_, member) in &members {
        // All at once: the last of them would wait in vain for the others to take over from it.
        member.signal(rustix::process::Signal::TERM);
    }
    for (seat, member) in &members {
        end(member, &seat.whose("etcd")).await?;
        stopped.push(seat.whose("etcd"));
    }
    if let Some(simcord) = daemon::simcord(place, &record) {
        end(&simcord, "simcord").await?;
        stopped.push("simcord".into());
    }
    record.agent = None;
    record.simcord = None;
    for host in &mut record.hosts {
        host.agent = None;
        host.etcd = None;
        host.off = false;
    }
    record.save(&place.record())?;
    remove(&record.run_dir)?;
    for seat in &seats {
        remove(&seat.info)?;
    }
    remove(&place.simcord_info())?;
    remove_context(place, &record)?;
    Ok(stopped)
}

/// The agents' children and theirs: all of them inherit the path of the socket.
fn children(seats: &[Seat]) -> Vec<Live> {
    seats.iter().flat_map(children_of).collect()
}

/// The children of one host's agent, and theirs.
pub(super) fn children_of(seat: &Seat) -> Vec<Live> {
    Live::by_environment("TANAKO_SOCKET", &seat.worker_socket())
}

/// Stops every process through the agent; starts the agent first when it is gone.
async fn stop_fleet(
    session: &Session,
    place: &Place,
    record: &mut Record,
    seats: &[Seat],
) -> Result<(), Failure> {
    let on: Vec<&Seat> = seats.iter().filter(|seat| !seat.is_off()).collect();
    let etcd: Vec<&Seat> = on
        .iter()
        .copied()
        .filter(|seat| etcd::is_wanted(seat) && etcd::member(seat, record).is_none())
        .collect();
    if !etcd.is_empty() {
        session.ui.note("starting etcd to stop everything in order");
        etcd::start(place, record, &etcd).await?;
    }
    for seat in on {
        if daemon::agent(seat, record).is_none() {
            session.ui.note(&format!(
                "{} is gone; starting it to stop its processes in order",
                seat.whose("the agent")
            ));
            let endpoint = session.endpoint_at(seat.agent_socket());
            daemon::start_agent(place, record, seat, &endpoint).await?;
        }
    }
    let endpoint = super::endpoint(session, place, record);
    let fleet = endpoint.open().await?;
    let mut writer = fleet.writer()?;
    let request = OperationRequest {
        request_id: request_id(),
        kind: "stop".into(),
        targets: vec!["all".into()],
        // Whatever else runs gives way: everything ends here.
        force: true,
        ..OperationRequest::default()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let operation = loop {
        match patiently(async || writer.submit(request.clone()).await).await {
            // An operation that an interrupted `up` has left is in the way.
            Err(failure) if failure.exit == Exit::Locked && Instant::now() < deadline => {
                abort_others(&fleet).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => break other?,
        }
    };
    let ended = follow(session, &fleet, operation, FLEET_PATIENCE).await?;
    match ended.problem.filter(|problem| !problem.code.is_empty()) {
        Some(problem) => Err(problem.into()),
        None => Ok(()),
    }
}

/// Aborts what runs; what cannot be aborted ends by itself or is ended with its processes.
async fn abort_others(fleet: &Fleet) {
    let Ok(list) = fleet
        .clone()
        .list_operations(ListOperationsRequest { limit: 100 })
        .await
    else {
        return;
    };
    let Ok(mut writer) = fleet.writer() else {
        return;
    };
    for operation in list.operations.into_iter().filter(goes_on) {
        let request = ControlRequest {
            id: operation.id,
            action: "abort".into(),
        };
        // One that has just ended cannot be aborted, which is as good.
        let _ = writer.control(request).await;
    }
}

async fn end(live: &Live, what: &str) -> Result<(), Failure> {
    if live.end(GRACE).await {
        return Ok(());
    }
    Err(Failure::new(
        "not-stopped",
        format!("pid {}", live.pid),
        format!("{what} does not end, not even by SIGKILL"),
    )
    .cause("it waits inside the kernel, or belongs to another user")
    .hint("look at it with `ps`, then call `tanakoctl demo down` again"))
}

/// Removes a file or a directory with all in it; none there is as good.
fn remove(path: &Path) -> Result<(), Failure> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::io(path, "remove it", &error))
        }
        _ => Ok(()),
    }
}

/// Removes the context if it still leads to this demo.
fn remove_context(place: &Place, record: &Record) -> Result<(), Failure> {
    let way = super::way(place, record);
    context::update(|config| {
        let ours = config
            .contexts()?
            .iter()
            .any(|context| context.name == record.context && context.way == way);
        Ok((ours && config.remove(&record.context), ()))
    })
}

/// Removes what a demo makes, and the directory if nothing else is in it.
fn purge(place: &Place) -> Result<(), Failure> {
    for path in place.contents() {
        remove(&path)?;
    }
    match fs::remove_dir(&place.data_dir) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(Failure::io(&place.data_dir, "remove the directory", &error))
        }
        _ => Ok(()),
    }
}

fn dry_run(session: &Session, place: &Place, record: Option<&Record>) -> Outcome {
    let mut running = Vec::new();
    if let Some(record) = record {
        let seats = seats(place, record);
        let children = children(&seats).len();
        if children > 0 {
            running.push(format!("{children} processes"));
        }
        for seat in &seats {
            if let Some(agent) = daemon::agent(seat, record) {
                running.push(format!(
                    "{} (pid {})",
                    seat.whose("tanako-agent"),
                    agent.pid
                ));
            }
            if let Some(member) = etcd::member(seat, record) {
                running.push(format!("{} (pid {})", seat.whose("etcd"), member.pid));
            }
        }
        if let Some(simcord) = daemon::simcord(place, record) {
            running.push(format!("simcord (pid {})", simcord.pid));
        }
    }
    if running.is_empty() {
        session
            .ui
            .print("nothing to stop: the demo does not run\n")?;
        return Ok(Exit::Ok);
    }
    session
        .ui
        .print(&format!("would stop: {}\n", running.join(", ")))?;
    Ok(Exit::Changes)
}
