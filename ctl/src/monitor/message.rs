//! What goes into the state and what comes out of it.

use std::time::Duration;

use crossterm::event::{KeyEvent, MouseEvent};
use tanako_proto::fleet::v1::{
    Event, FleetUpdate, GuildLocation, HistoryReply, LogLine, Operation, PlanReply, Problem,
};

use super::write::Write;

/// The time, as told by whoever asks for a change or a drawing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Since the monitor started; never jumps.
    pub mono: Duration,
    /// Milliseconds since 1970.
    pub unix_ms: i64,
    /// Seconds east of UTC, for times of day.
    pub offset_s: i32,
}

/// What happens to the monitor.
#[derive(Debug)]
pub enum Input {
    /// A key was pressed.
    Key(KeyEvent),
    /// Text was pasted.
    Paste(String),
    /// The mouse moved or clicked.
    Mouse(MouseEvent),
    /// The terminal has another size.
    Resize(u16, u16),
    /// A second passed.
    Tick,
    /// The fleet reported.
    Update(Box<FleetUpdate>),
    /// The link to the agent broke, or did not come about.
    Lost {
        /// What went wrong.
        why: Box<Problem>,
        /// How long until the next attempt.
        retry_in: Duration,
    },
    /// Events from before the link was made.
    Events(Vec<Event>),
    /// A plan, or why there is none.
    Planned {
        /// The dialog that asked.
        ticket: u64,
        /// The answer.
        reply: Result<Box<PlanReply>, Box<Problem>>,
    },
    /// A change was taken, or not.
    Submitted {
        /// What was submitted.
        write: Box<Write>,
        /// The answer.
        reply: Result<Box<Operation>, Box<Problem>>,
    },
    /// Where a guild is.
    Located {
        /// The guild asked about.
        guild: u64,
        /// The answer.
        reply: Result<Box<GuildLocation>, Box<Problem>>,
    },
    /// Samples of the past.
    History {
        /// What was asked about.
        target: String,
        /// The answer.
        reply: HistoryReply,
    },
    /// Log lines.
    Log {
        /// The subscription.
        ticket: u64,
        /// The lines.
        lines: Vec<LogLine>,
    },
    /// No more log lines come for now.
    LogEnded {
        /// The subscription.
        ticket: u64,
        /// Why.
        why: String,
    },
    /// Log lines were saved: the path, or why not.
    Saved(Result<String, String>),
}

/// What the runner is asked to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Leave.
    Quit,
    /// Give the terminal back to the shell until continued.
    Suspend,
    /// Draw every cell anew.
    Redraw,
    /// Ask what a change would cost.
    Plan {
        /// The dialog that asks.
        ticket: u64,
        /// The change.
        write: Box<Write>,
    },
    /// Make a change.
    Submit(Box<Write>),
    /// Ask where a guild is.
    Locate(u64),
    /// Ask for samples of the past.
    History {
        /// A process, or `host:NAME`.
        target: String,
        /// Which numbers.
        metrics: Vec<String>,
    },
    /// Follow log lines, instead of those followed so far.
    Follow {
        /// The subscription.
        ticket: u64,
        /// Whose.
        targets: Vec<String>,
    },
    /// Follow none.
    Unfollow,
    /// Write lines to a new file.
    Save {
        /// For the name of the file.
        subject: String,
        /// When, likewise.
        unix_ms: i64,
        /// What.
        lines: Vec<String>,
    },
}
