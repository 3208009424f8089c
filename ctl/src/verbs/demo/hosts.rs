//! `tanakoctl demo kill-host` and `demo revive-host`.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::Signal;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    daemon, down, etcd, info,
    place::Place,
    process::Live,
    record::Record,
    seat::{ETCD_MEMBERS, Seat, seats},
    up::{HostSet, start_hosts},
};
use crate::{
    exit::Exit,
    failure::{Failure, Outcome},
    paint::Paint,
    session::Session,
    target::nearest,
    ui::Report,
};

/// How long everything of a host may take to die: a killed process needs a core for that.
const PATIENCE: Duration = Duration::from_secs(30);

/// Do to a host what a power cut does: kill -9 of its agent, its member of etcd and all their children
///
/// All of them stand still before the first one dies, so that none can tell the others.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// Name of the host
    #[arg(value_name = "HOST")]
    host: String,
    /// Say what would be killed, kill nothing (exit 4 when something would be)
    #[arg(long)]
    dry_run: bool,
}

/// Bring a host back after `demo kill-host`, as a start of the machine does
#[derive(Debug, clap::Args)]
pub struct ReviveArgs {
    /// Name of the host
    #[arg(value_name = "HOST")]
    host: String,
}

/// What was done to a host.
#[derive(Debug, Serialize)]
struct Done {
    context: String,
    host: String,
    /// Processes that were killed.
    killed: usize,
    /// It was so before.
    unchanged: bool,
    #[serde(skip)]
    text: String,
}

impl Report for Done {
    fn table(&self, _paint: Paint, _wide: bool) -> String {
        format!("{}\n", self.text)
    }

    fn names(&self) -> Vec<String> {
        vec![self.host.clone()]
    }
}

/// The host of that name.
fn find(place: &Place, record: &Record, name: &str) -> Result<(usize, Seat), Failure> {
    let names: Vec<&str> = record.hosts.iter().map(|host| &*host.name).collect();
    if names.is_empty() {
        return Err(
            Failure::usage(name, "this demo has one host, and no other to take over").hint(
                format!(
                    "`{}`, then `{}`",
                    place.command("down --purge"),
                    place.command("up --hosts 3")
                ),
            ),
        );
    }
    let seats = seats(place, record);
    let index = names.iter().position(|one| *one == name).ok_or_else(|| {
        let failure = Failure::usage(name, format!("the demo has no host {name:?}"));
        match nearest(name, names.iter().copied()) {
            Some(near) => failure.hint(format!("did you mean {near}? It has {}", names.join(", "))),
            None => failure.hint(format!("it has {}", names.join(", "))),
        }
    })?;
    Ok((index, seats[index].clone()))
}

/// Everything of a host that lives.
fn all_of(seat: &Seat, record: &Record) -> Vec<Live> {
    // The agent and its guard first: they must not see a child end.
    let mut all: Vec<Live> = daemon::agent(seat, record).into_iter().collect();
    all.extend(daemon::guards(seat));
    all.extend(etcd::member(seat, record));
    all.extend(down::children_of(seat));
    let mut known = BTreeSet::new();
    all.retain(|live| known.insert(live.pid));
    all
}

impl KillArgs {
    pub(super) async fn run(self, session: &Session, place: &Place) -> Outcome {
        let mut record = info::load(place)?;
        let (index, seat) = find(place, &record, &self.host)?;
        if self.dry_run {
            let count = all_of(&seat, &record).len();
            let text = if count == 0 {
                format!("nothing runs on host {}\n", self.host)
            } else {
                format!("would kill {count} processes of host {}\n", self.host)
            };
            session.ui.print(&text)?;
            return Ok(if count == 0 { Exit::Ok } else { Exit::Changes });
        }
        session.may_write()?;
        let _lock = place.lock().await?;
        record = info::load(place)?;
        // Written down first: an interrupted kill is not undone by the next `up` by half.
        record.hosts[index].off = true;
        record.save(&place.record())?;
        let killed = kill(&seat, &record).await?;
        record.hosts[index].agent = None;
        record.hosts[index].etcd = None;
        record.save(&place.record())?;
        let name = &self.host;
        let lost = record
            .hosts
            .iter()
            .take(ETCD_MEMBERS)
            .filter(|host| host.off);
        if lost.count() > ETCD_MEMBERS / 2 {
            session.ui.note(&format!(
                "most members of etcd are off: nothing is decided until `{}`; the shards of living \
                 hosts go on",
                place.command(&format!("revive-host {name}"))
            ));
        }
        let text = if killed == 0 {
            format!("host {name} was off already")
        } else {
            format!(
                "host {name} is off: {killed} processes killed\nwatch the fleet heal: tanakoctl \
                 --context {} monitor\nbring it back: {}",
                record.context,
                place.command(&format!("revive-host {name}"))
            )
        };
        session.ui.report(&Done {
            context: record.context.clone(),
            host: name.clone(),
            killed,
            unchanged: killed == 0,
            text,
        })?;
        Ok(Exit::Ok)
    }
}

/// Stops everything in its tracks, then kills it; again while there is something, since a process may
/// have started another one before it stood still.
async fn kill(seat: &Seat, record: &Record) -> Result<usize, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut killed = 0;
    loop {
        let all = all_of(seat, record);
        if all.is_empty() {
            return Ok(killed);
        }
        for signal in [Signal::STOP, Signal::KILL] {
            for live in &all {
                live.signal(signal);
            }
        }
        for live in &all {
            let left = deadline.saturating_duration_since(Instant::now());
            if !live.ended_within(left).await {
                return Err(Failure::new(
                    "not-stopped",
                    format!("pid {}", live.pid),
                    "a process does not end, not even by SIGKILL",
                )
                .cause("it waits inside the kernel, or belongs to another user")
                .hint("look at it with `ps`, then try again"));
            }
        }
        killed += all.len();
    }
}

impl ReviveArgs {
    pub(super) async fn run(self, session: &Session, place: &Place) -> Outcome {
        session.may_write()?;
        let record = info::load(place)?;
        let (index, _) = find(place, &record, &self.host)?;
        session.if_cancelled(Some(format!(
            "what was started goes on: `{}` again starts the rest",
            place.command(&format!("revive-host {}", self.host))
        )));
        let _lock = place.lock().await?;
        let mut record = info::load(place)?;
        let name = &self.host;
        if record.stopped {
            return Err(Failure::new(
                "stopped",
                place.data_dir.display().to_string(),
                "the demo does not run",
            )
            .hint(format!("start it with `{}`", place.command("up"))));
        }
        let started = start_hosts(session, place, &mut record, &HostSet::One(index)).await?;
        let text = if started.is_empty() {
            format!("host {name} runs already")
        } else {
            format!("host {name} is back")
        };
        session.ui.report(&Done {
            context: record.context.clone(),
            host: name.clone(),
            killed: 0,
            unchanged: started.is_empty(),
            text,
        })?;
        Ok(Exit::Ok)
    }
}
