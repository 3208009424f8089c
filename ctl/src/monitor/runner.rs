//! The loop: takes events, inputs, signals and time, lets the state decide, performs the actions and
//! draws when something changed.
//!
//! Tasks: the link ([`super::link::keep`]), at most one log stream ([`super::link::follow`]), and one
//! short task for each request. All end with the runner.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossterm::event::{Event, EventStream};
use tanako_proto::fleet::v1::{
    GuildRequest, HistoryRequest, OperationRequest, PlanRequest, Problem, plan_request::Of,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::StreamExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::instrument::WithSubscriber as _;

use super::{
    app::{Action, App, Clock, Input},
    figures, journal,
    link::{self, ANSWER, Connection, Link},
    term::{self, Term},
    theme::Theme,
    write::Write,
};
use crate::client::Fleet;

/// Inputs waiting at most; whoever sends more waits.
const INPUTS_MAX: usize = 256;
/// Frames are at least so far apart, keys excepted.
const FRAME: Duration = Duration::from_millis(50);
/// How far back histories are asked for, and in how many points.
const HISTORY: (u32, u32) = (120, 120);
/// How long a change is tried to be handed over; its request id makes repeating it safe.
const SUBMIT: Duration = Duration::from_secs(15);
/// How long ending tasks are waited for.
const GOODBYE: Duration = Duration::from_secs(1);

/// What performs the actions.
struct Runner {
    inputs: mpsc::Sender<Input>,
    connection: Connection,
    tracker: TaskTracker,
    stop: CancellationToken,
    log: CancellationToken,
    saves: Option<PathBuf>,
}

/// Runs until the operator quits, a signal comes or the terminal is gone.
pub async fn run<L: Link>(
    link: L,
    mut app: App,
    theme: Theme,
    mouse: bool,
    saves: Option<PathBuf>,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    let (inputs, mut received) = mpsc::channel(INPUTS_MAX);
    let (connected, connection) = watch::channel(None);
    // Signals are caught before the terminal changes, so that none finds it half changed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut term = Term::take(mouse, stop.clone())?;
    app.size = term.size()?;
    let keeper = link::keep(link, inputs.clone(), connected, stop.clone());
    tracker.spawn(keeper.with_current_subscriber());
    let mut runner = Runner {
        inputs,
        connection,
        tracker: tracker.clone(),
        stop: stop.clone(),
        log: CancellationToken::new(),
        saves,
    };
    let begun = Instant::now();
    let mut events = EventStream::new();
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_frame = tokio::time::Instant::now();
    let end = loop {
        if app.dirty && tokio::time::Instant::now() >= next_frame {
            if let Err(error) = term.draw(&app, theme, clock(begun)) {
                tracing::warn!(%error, "the terminal is gone");
                break Ok(());
            }
            app.dirty = false;
            next_frame = tokio::time::Instant::now() + FRAME;
        }
        let input = tokio::select! {
            biased;
            () = stop.cancelled() => break Err(anyhow::anyhow!("the monitor failed; the fleet is not affected")),
            _ = terminate.recv() => break Ok(()),
            _ = hangup.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            event = events.next() => match event {
                Some(Ok(event)) => {
                    next_frame = tokio::time::Instant::now();
                    translate(event)
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the terminal cannot be read");
                    break Ok(());
                }
                None => break Ok(()),
            },
            _ = ticks.tick() => {
                if term::is_gone() {
                    tracing::warn!("the terminal hung up");
                    break Ok(());
                }
                Some(Input::Tick)
            }
            input = received.recv() => input,
            () = sleep_until(next_frame), if app.dirty => None,
        };
        let Some(input) = input else { continue };
        let actions = app.update(clock(begun), input);
        match runner.perform(actions, &mut term) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => {
                tracing::warn!(%error, "the terminal is gone");
                break Ok(());
            }
        }
    };
    // The terminal first: nobody should wait for tasks before their shell is back.
    drop(term);
    stop.cancel();
    runner.log.cancel();
    tracker.close();
    if timeout(GOODBYE, tracker.wait()).await.is_err() {
        tracing::warn!("a task did not end in time");
    }
    end
}

fn clock(begun: Instant) -> Clock {
    let unix_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64);
    let offset_s = jiff::Timestamp::from_millisecond(unix_ms).map_or(0, |now| {
        jiff::tz::TimeZone::system().to_offset(now).seconds()
    });
    Clock {
        mono: begun.elapsed(),
        unix_ms,
        offset_s,
    }
}

fn translate(event: Event) -> Option<Input> {
    match event {
        Event::Key(key) => Some(Input::Key(key)),
        Event::Paste(text) => Some(Input::Paste(text)),
        Event::Mouse(mouse) => Some(Input::Mouse(mouse)),
        Event::Resize(columns, lines) => Some(Input::Resize(columns, lines)),
        Event::FocusGained | Event::FocusLost => None,
    }
}

impl Runner {
    /// Performs `actions`; false when it is time to leave.
    fn perform(&mut self, actions: Vec<Action>, term: &mut Term) -> std::io::Result<bool> {
        for action in actions {
            match action {
                Action::Quit => return Ok(false),
                Action::Suspend => term.suspend()?,
                Action::Redraw => term.redraw(),
                Action::Plan { ticket, write } => {
                    let request = write.request().clone();
                    self.ask(
                        move |fleet| plan(fleet, request),
                        move |reply| Input::Planned {
                            ticket,
                            reply: boxed(reply),
                        },
                    );
                }
                Action::Submit(write) => {
                    let connection = self.connection.clone();
                    self.spawn(async move {
                        let reply = boxed(submit(connection, &write).await);
                        Some(Input::Submitted { write, reply })
                    });
                }
                Action::Locate(guild) => {
                    let request = GuildRequest { guild_id: guild };
                    self.ask(
                        move |mut fleet| async move { fleet.locate_guild(request).await },
                        move |reply| Input::Located {
                            guild,
                            reply: boxed(reply),
                        },
                    );
                }
                Action::History { target, metrics } => {
                    let (seconds, points) = HISTORY;
                    let request = HistoryRequest {
                        target: target.clone(),
                        metrics,
                        seconds,
                        points,
                    };
                    self.ask_quietly(
                        move |mut fleet| async move { fleet.history(request).await },
                        move |reply| Input::History { target, reply },
                    );
                }
                Action::Follow { ticket, targets } => {
                    self.log.cancel();
                    self.log = self.stop.child_token();
                    let (connection, inputs) = (self.connection.clone(), self.inputs.clone());
                    let follow =
                        link::follow(connection, inputs, ticket, targets, self.log.clone());
                    self.tracker.spawn(follow.with_current_subscriber());
                }
                Action::Unfollow => self.log.cancel(),
                Action::Save {
                    subject,
                    unix_ms,
                    lines,
                } => self.save(subject, unix_ms, lines),
            }
        }
        Ok(true)
    }

    /// Runs `work` and hands its input over, unless the runner ends first.
    fn spawn(&self, work: impl Future<Output = Option<Input>> + Send + 'static) {
        let (inputs, stop) = (self.inputs.clone(), self.stop.clone());
        let task = async move {
            let input = tokio::select! {
                () = stop.cancelled() => return,
                input = work => input,
            };
            if let Some(input) = input {
                // Nobody listens any more only when the runner ends.
                let _ = inputs.send(input).await;
            }
        };
        self.tracker.spawn(task.with_current_subscriber());
    }

    fn ask<T, F>(
        &self,
        call: impl FnOnce(Fleet) -> F + Send + 'static,
        answer: impl FnOnce(Result<T, Problem>) -> Input + Send + 'static,
    ) where
        F: Future<Output = Result<T, Problem>> + Send,
        T: Send,
    {
        let connection = self.connection.clone();
        self.spawn(async move { Some(answer(request(connection, call).await)) });
    }

    /// As [`Runner::ask`], for what the view can do without.
    fn ask_quietly<T, F>(
        &self,
        call: impl FnOnce(Fleet) -> F + Send + 'static,
        answer: impl FnOnce(T) -> Input + Send + 'static,
    ) where
        F: Future<Output = Result<T, Problem>> + Send,
        T: Send,
    {
        let connection = self.connection.clone();
        self.spawn(async move {
            match request(connection, call).await {
                Ok(reply) => Some(answer(reply)),
                Err(why) => {
                    tracing::info!(code = why.code, message = why.message, "no history");
                    None
                }
            }
        });
    }

    fn save(&self, subject: String, unix_ms: i64, lines: Vec<String>) {
        let (inputs, directory) = (self.inputs.clone(), self.saves.clone());
        self.tracker.spawn_blocking(move || {
            let stamp = figures::date_time(unix_ms, 0)
                .replace(['-', ':'], "")
                .replace(' ', "T");
            let saved = match directory {
                Some(directory) => journal::save(&directory, &subject, &stamp, &lines)
                    .map(|path| path.display().to_string())
                    .map_err(|error| format!("{}: {error}", directory.display())),
                None => Err("neither XDG_STATE_HOME nor HOME says where".into()),
            };
            // Nobody listens any more only when the runner ends.
            let _ = inputs.blocking_send(Input::Saved(saved));
        });
    }
}

fn boxed<T>(reply: Result<T, Problem>) -> Result<Box<T>, Box<Problem>> {
    reply.map(Box::new).map_err(Box::new)
}

/// Calls the fleet once there is a connection, all within one deadline.
async fn request<T, F>(
    mut connection: Connection,
    call: impl FnOnce(Fleet) -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let work = async {
        let fleet = connection
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|fleet| fleet.clone());
        match fleet {
            Some(fleet) => call(fleet).await,
            None => Err(
                Problem::new("unreachable", "", "there is no connection to an agent").retryable(),
            ),
        }
    };
    match timeout(ANSWER, work).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::new("timeout", "", "the agent did not answer")
            .hint("try again when the link is back")
            .retryable()),
    }
}

async fn plan(
    mut fleet: Fleet,
    request: OperationRequest,
) -> Result<tanako_proto::fleet::v1::PlanReply, Problem> {
    let request = PlanRequest {
        of: Some(Of::Operation(request)),
        file_name: String::new(),
    };
    fleet.plan(request).await
}

/// Hands a change over. When the answer is lost it is asked again with the same request id, which
/// gives the same operation and not a second one.
async fn submit(
    connection: Connection,
    write: &Write,
) -> Result<tanako_proto::fleet::v1::Operation, Problem> {
    let begun = Instant::now();
    let mut attempt = 0;
    loop {
        let change = write.request().clone();
        let answer = request(connection.clone(), |fleet| async move {
            fleet.writer()?.submit(change).await
        })
        .await;
        match answer {
            Err(why) if why.retryable && lost(&why) && begun.elapsed() < SUBMIT => {
                tokio::time::sleep(link::backoff(attempt, fastrand::f64())).await;
                attempt += 1;
            }
            Err(why) if lost(&why) => {
                let hint = "whether it was taken is not known: the operations view (o) says so once the link is back";
                return Err(why.hint(hint));
            }
            answer => return answer,
        }
    }
}

fn lost(why: &Problem) -> bool {
    matches!(why.code.as_str(), "unreachable" | "timeout")
}
