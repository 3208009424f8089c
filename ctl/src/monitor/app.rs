//! Everything the monitor knows and shows: the model, the screens on top of each other, what is being
//! typed and asked. No clock of its own, no drawing, no network.

use std::{cell::Cell, collections::BTreeSet, time::Duration};

use tanako_proto::fleet::v1::{GuildLocation, Problem};

pub use super::message::{Action, Clock, Input};
use super::{
    dialog::Dialog,
    focus::Focus,
    keymap::{self, Scope},
    logs::Logs,
    prompt::Prompt,
    rows::Rows,
    state::Model,
    write::WriteToken,
};

/// The way to the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkState {
    /// The first attempt runs.
    Connecting,
    /// Updates come.
    Live,
    /// No agent answers; what is shown is old.
    Lost {
        /// What went wrong.
        why: Box<Problem>,
        /// When the next attempt is due.
        retry_at: Duration,
    },
}

/// Data older than this is marked, even on a link that claims to be alive.
pub const STALE_AFTER: Duration = Duration::from_secs(3);

/// Where a list stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct List {
    /// The selected row.
    pub cursor: usize,
    /// Name of what is selected, so that another order does not select something else.
    pub anchor: Option<String>,
    /// First row on the screen; drawing keeps it so that the cursor is visible.
    pub offset: Cell<usize>,
    /// Rows on the screen when last drawn.
    pub page: Cell<usize>,
    /// Line of the screen where the rows begin, when last drawn; for the mouse.
    pub top: Cell<u16>,
}

/// What a described thing is.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// A process by name.
    Process(String),
    /// A host by name.
    Host(String),
    /// An operation by id.
    Operation(String),
}

/// What is on the screen.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// All processes.
    Fleet,
    /// All hosts.
    Hosts,
    /// One host and its processes.
    Host(String),
    /// One process.
    Process(String),
    /// Where one guild is served.
    Guild(u64),
    /// Log lines of these.
    Logs(Vec<String>),
    /// Events, of one object or all.
    Events(Option<String>),
    /// The IDENTIFY budget.
    Identify,
    /// Operations.
    Operations,
    /// One operation.
    Operation(String),
    /// All fields of something.
    Describe(Subject),
    /// The keys.
    Help,
}

/// A view and where its list stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Screen {
    /// What is shown.
    pub view: View,
    /// Its list.
    pub list: List,
}

impl Screen {
    /// `view` from its beginning.
    pub fn new(view: View) -> Self {
        Self {
            view,
            list: List::default(),
        }
    }

    /// Which bindings hold here.
    pub fn scope(&self) -> Scope {
        use keymap::{DESCRIBES, LIST, LOGS, OPENS, PLAIN, PROCESS, TABLE};
        match self.view {
            View::Fleet | View::Host(_) => LIST | TABLE | PROCESS | OPENS | DESCRIBES,
            View::Hosts | View::Operations => LIST | OPENS | DESCRIBES,
            View::Process(_) => LIST | PROCESS | OPENS | DESCRIBES,
            View::Logs(_) => LIST | LOGS,
            View::Guild(_) | View::Events(_) | View::Identify => LIST | OPENS,
            View::Operation(_) => LIST | DESCRIBES,
            View::Describe(_) | View::Help => LIST | PLAIN,
        }
    }
}

/// How grave a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gravity {
    /// Done, or to know.
    Info,
    /// Refused or failed.
    Error,
}

/// A line for the operator that goes away by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// What it says.
    pub text: String,
    /// How it looks.
    pub gravity: Gravity,
    /// When it goes.
    pub until: Duration,
}

/// The whole state.
#[derive(Debug)]
pub struct App {
    /// Name of the context.
    pub context: String,
    /// What is known.
    pub model: Model,
    /// What is shown instead while paused, and since when.
    pub frozen: Option<(Box<Model>, Duration)>,
    /// The way to the agent.
    pub link: LinkState,
    /// When the last update arrived.
    pub updated: Option<Duration>,
    /// The screens, the shown one last; never empty.
    pub screens: Vec<Screen>,
    /// The table of the fleet view.
    pub rows: Rows,
    /// The table of the host view.
    pub host_rows: Rows,
    /// Marked processes.
    pub marked: BTreeSet<String>,
    /// What is being typed.
    pub prompt: Option<Prompt>,
    /// What is being asked.
    pub dialog: Option<Dialog>,
    /// What was said last.
    pub notice: Option<Notice>,
    /// Histories of the open process or host.
    pub focus: Option<Focus>,
    /// Log lines of the open view.
    pub logs: Option<Logs>,
    /// Where the open guild is, or why that is not known.
    pub guild: Option<(u64, Result<GuildLocation, String>)>,
    /// The operation started here last.
    pub operation: Option<String>,
    /// Columns and lines of the terminal.
    pub size: (u16, u16),
    /// Whether the picture is out of date.
    pub dirty: bool,
    pub(super) writer: Option<WriteToken>,
    pub(super) first_press: Option<char>,
    pub(super) session: String,
    pub(super) tickets: u64,
    pub(super) asked: Option<Asked>,
}

/// What a screen needs from the agent beyond the updates; asked for when it changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Asked {
    pub logs: Option<Vec<String>>,
    pub history: Option<String>,
    pub guild: Option<u64>,
}

impl App {
    /// Nothing known yet. `session` makes request ids unique among monitors.
    pub fn new(context: &str, readonly: bool, session: &str, size: (u16, u16)) -> Self {
        Self {
            context: super::text::clean(context, 60).into_owned(),
            model: Model::default(),
            frozen: None,
            link: LinkState::Connecting,
            updated: None,
            screens: vec![Screen::new(View::Fleet)],
            rows: Rows::default(),
            host_rows: Rows::default(),
            marked: BTreeSet::new(),
            prompt: None,
            dialog: None,
            notice: None,
            focus: None,
            logs: None,
            guild: None,
            operation: None,
            size,
            dirty: true,
            writer: WriteToken::unless(readonly),
            first_press: None,
            session: session.to_owned(),
            tickets: 0,
            asked: None,
        }
    }

    /// Whether nothing can be changed from here.
    pub fn is_readonly(&self) -> bool {
        self.writer.is_none()
    }

    /// What is drawn: the live model, or the one held still.
    pub fn shown(&self) -> &Model {
        self.frozen
            .as_ref()
            .map_or(&self.model, |(frozen, _)| frozen)
    }

    /// The screen that is shown.
    pub fn screen(&self) -> &Screen {
        self.screens
            .last()
            .expect("invariant: the fleet view is never closed")
    }

    pub(super) fn screen_mut(&mut self) -> &mut Screen {
        self.screens
            .last_mut()
            .expect("invariant: the fleet view is never closed")
    }

    /// The table of the shown screen.
    pub fn table(&self) -> &Rows {
        if matches!(self.screen().view, View::Host(_)) {
            &self.host_rows
        } else {
            &self.rows
        }
    }

    /// How old the data is, and whether that is too old to be trusted.
    pub fn age(&self, clock: Clock) -> Option<(Duration, bool)> {
        let age = clock.mono.saturating_sub(self.updated?);
        Some((age, self.link != LinkState::Live || age > STALE_AFTER))
    }

    pub(super) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    pub(super) fn say(&mut self, clock: Clock, gravity: Gravity, text: impl AsRef<str>) {
        let text = super::text::clean(text.as_ref(), 500).into_owned();
        let shown = if gravity == Gravity::Error { 12 } else { 6 };
        self.notice = Some(Notice {
            text,
            gravity,
            until: clock.mono + Duration::from_secs(shown),
        });
    }
}

/// A problem in one line: what, why, what to do.
pub fn problem_line(problem: &Problem) -> String {
    let mut line = String::new();
    if !problem.object.is_empty() {
        line.push_str(&problem.object);
        line.push_str(": ");
    }
    line.push_str(if problem.message.is_empty() {
        &problem.code
    } else {
        &problem.message
    });
    for (lead, part) in [(" (", &problem.cause), (" · ", &problem.hint)] {
        if !part.is_empty() {
            line.push_str(lead);
            line.push_str(part);
            line.push_str(if lead == " (" { ")" } else { "" });
        }
    }
    line
}
