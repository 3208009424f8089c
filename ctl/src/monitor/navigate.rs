//! Moving between and within screens, and keeping what is selected valid whatever the fleet does.

use tanako_proto::fleet::v1::Process;

use super::{
    app::{Action, App, Clock, Gravity, Screen, Subject, View},
    keymap::Command,
    prompt::Purpose,
    rows::{Filter, Rows},
    state::Model,
};

/// Screens on top of each other at most; the oldest but the fleet view are forgotten.
const SCREENS_MAX: usize = 16;

impl App {
    /// Carries out a command.
    pub(super) fn command(&mut self, clock: Clock, command: Command, actions: &mut Vec<Action>) {
        let page = self.screen().list.page.get().max(1) as i64;
        match command {
            Command::Up => self.move_by(-1),
            Command::Down => self.move_by(1),
            Command::PageUp => self.move_by(-page),
            Command::PageDown => self.move_by(page),
            Command::HalfUp => self.move_by(-(page / 2).max(1)),
            Command::HalfDown => self.move_by((page / 2).max(1)),
            Command::Top => self.move_to(0),
            Command::Bottom => self.move_to(usize::MAX),
            Command::Open => self.open_selected(),
            Command::Back => self.back(),
            Command::Quit => actions.push(Action::Quit),
            Command::Suspend => actions.push(Action::Suspend),
            Command::Redraw => actions.push(Action::Redraw),
            Command::Help => self.open(View::Help),
            Command::CommandLine => self.open_prompt(Purpose::Command, ""),
            Command::Guild => self.open_prompt(Purpose::Command, "guild "),
            Command::Filter if self.logs_open() => self.open_prompt(Purpose::Search, ""),
            Command::Filter => self.open_prompt(Purpose::Filter, ""),
            Command::Sort => {
                let query = self.table_mut().query_mut();
                query.sort = query.sort.next();
                query.reverse = false;
            }
            Command::SortReverse => {
                let query = self.table_mut().query_mut();
                query.reverse = !query.reverse;
            }
            Command::FaultsOnly => {
                let query = self.table_mut().query_mut();
                query.faults_only = !query.faults_only;
            }
            Command::Mark => {
                if let Some(name) = self.selected_process().map(|process| process.name.clone()) {
                    if !self.marked.remove(&name) {
                        self.marked.insert(name);
                    }
                    self.move_by(1);
                }
            }
            Command::MarkNone => self.marked.clear(),
            Command::Describe => {
                if let Some(subject) = self.subject() {
                    self.open(View::Describe(subject));
                }
            }
            Command::Logs => {
                let targets = self.targets();
                if targets.is_empty() {
                    self.say(clock, Gravity::Info, "no process is selected");
                } else {
                    self.open(View::Logs(targets));
                }
            }
            Command::Fleet => self.screens.truncate(1),
            Command::Hosts => self.open(View::Hosts),
            Command::Host => {
                if let Some(host) = self.selected_process().map(|process| process.host.clone()) {
                    self.open_host(host);
                }
            }
            Command::Events => {
                let object = match &self.screen().view {
                    View::Process(name) => Some(name.clone()),
                    _ => None,
                };
                self.open(View::Events(object));
            }
            Command::Identify => self.open(View::Identify),
            Command::Operations => self.open(View::Operations),
            Command::Pause => {
                self.frozen = match self.frozen.take() {
                    Some(_) => None,
                    None => Some((Box::new(self.model.clone()), clock.mono)),
                };
                self.rows.query_mut();
                self.host_rows.query_mut();
                if let Some(logs) = &mut self.logs {
                    logs.set_following(self.frozen.is_none());
                }
            }
            Command::Write(verb) => {
                let targets = if verb == super::write::Verb::Backup {
                    Vec::new()
                } else {
                    self.targets()
                };
                self.ask(clock, verb, targets, actions);
            }
            Command::Follow
            | Command::Wrap
            | Command::Timestamps
            | Command::NextMatch
            | Command::PreviousMatch
            | Command::OnlyMatches
            | Command::Save => self.log_commands(clock, command, actions),
        }
    }

    /// Opens `view`, unless it is the one that is shown.
    pub(super) fn open(&mut self, view: View) {
        if self.screen().view == view {
            return;
        }
        self.screens.push(Screen::new(view));
        if self.screens.len() > SCREENS_MAX {
            self.screens.remove(1);
        }
    }

    pub(super) fn open_host(&mut self, host: String) {
        self.host_rows = Rows::default();
        self.host_rows.query_mut().host = Some(host.clone());
        // At most one host is open at a time, since there is one table for it.
        self.screens
            .retain(|screen| !matches!(screen.view, View::Host(_)));
        self.open(View::Host(host));
    }

    fn back(&mut self) {
        if self.screens.len() > 1 {
            self.screens.pop();
        } else if !self.marked.is_empty() {
            self.marked.clear();
        } else if self.rows.query().filter.is_some() {
            self.rows.query_mut().filter = None;
        } else if self.rows.query().faults_only {
            self.rows.query_mut().faults_only = false;
        }
    }

    fn open_selected(&mut self) {
        let cursor = self.screen().list.cursor;
        match &self.screen().view {
            View::Fleet | View::Host(_) => {
                if let Some(name) = self.selected_process().map(|process| process.name.clone()) {
                    self.open(View::Process(name));
                }
            }
            View::Hosts => {
                if let Some(host) = self.shown().hosts.get(cursor).map(|host| host.name.clone()) {
                    self.open_host(host);
                }
            }
            View::Process(_) => self.open_prompt(Purpose::Command, "guild "),
            View::Guild(_) => {
                let shards = self
                    .guild
                    .as_ref()
                    .and_then(|(_, reply)| reply.as_ref().ok())
                    .map(|at| &at.shards);
                let node = self
                    .guild
                    .as_ref()
                    .and_then(|(_, reply)| reply.as_ref().ok())
                    .map(|at| &at.db_node);
                let name = shards
                    .and_then(|shards| shards.get(cursor))
                    .map(|shard| &shard.process)
                    .or(node)
                    .cloned();
                self.open_process(name);
            }
            View::Events(object) => {
                let name = events(self.shown(), object.as_deref())
                    .nth(cursor)
                    .map(|event| event.object.clone());
                self.open_process(name);
            }
            View::Identify => {}
            View::Operations => {
                if let Some(id) = self
                    .shown()
                    .operations
                    .get(cursor)
                    .map(|operation| operation.id.clone())
                {
                    self.open(View::Operation(id));
                }
            }
            View::Operation(_) | View::Logs(_) | View::Describe(_) | View::Help => {}
        }
    }

    fn open_process(&mut self, name: Option<String>) {
        if let Some(name) = name.filter(|name| self.shown().process(name).is_some()) {
            self.open(View::Process(name));
        }
    }

    /// The process under the cursor, or the one that is open.
    pub fn selected_process(&self) -> Option<&Process> {
        match &self.screen().view {
            View::Fleet | View::Host(_) => self
                .table()
                .process(self.shown(), self.screen().list.cursor),
            View::Process(name) => self.shown().process(name),
            _ => None,
        }
    }

    fn subject(&self) -> Option<Subject> {
        let cursor = self.screen().list.cursor;
        match &self.screen().view {
            View::Hosts => self
                .shown()
                .hosts
                .get(cursor)
                .map(|host| Subject::Host(host.name.clone())),
            View::Operations => self
                .shown()
                .operations
                .get(cursor)
                .map(|operation| Subject::Operation(operation.id.clone())),
            View::Operation(id) => Some(Subject::Operation(id.clone())),
            _ => self
                .selected_process()
                .map(|process| Subject::Process(process.name.clone())),
        }
    }

    /// The marked processes, or the selected one.
    fn targets(&self) -> Vec<String> {
        if !self.marked.is_empty() && matches!(self.screen().view, View::Fleet | View::Host(_)) {
            return self.marked.iter().cloned().collect();
        }
        self.selected_process()
            .map(|process| process.name.clone())
            .into_iter()
            .collect()
    }

    fn logs_open(&self) -> bool {
        matches!(self.screen().view, View::Logs(_))
    }

    pub(super) fn table_mut(&mut self) -> &mut Rows {
        if matches!(self.screen().view, View::Host(_)) {
            &mut self.host_rows
        } else {
            &mut self.rows
        }
    }

    pub(super) fn move_by(&mut self, rows: i64) {
        let page = self.screen().list.page.get();
        if self.logs_open() {
            if let Some(logs) = &mut self.logs {
                logs.scroll(rows, page);
            }
            return;
        }
        let cursor = self.screen().list.cursor;
        self.move_to(cursor.saturating_add_signed(rows as isize));
    }

    pub(super) fn move_to(&mut self, row: usize) {
        let page = self.screen().list.page.get();
        if self.logs_open() {
            if let Some(logs) = &mut self.logs {
                if row == 0 {
                    logs.to_top(page);
                } else {
                    logs.set_following(true);
                }
            }
            return;
        }
        let last = self.len().saturating_sub(1);
        let list = &mut self.screen_mut().list;
        list.cursor = row.min(last);
        list.anchor = None;
    }

    /// Rows of the shown screen's list.
    pub fn len(&self) -> usize {
        let model = self.shown();
        match &self.screen().view {
            View::Fleet | View::Host(_) => self.table().len(),
            View::Hosts => model.hosts.len(),
            View::Process(name) => model
                .process(name)
                .map_or(0, |process| process.shards.len()),
            View::Guild(_) => match &self.guild {
                Some((_, Ok(location))) => {
                    location.shards.len() + usize::from(!location.db_node.is_empty())
                }
                _ => 0,
            },
            View::Logs(_) => 0,
            View::Events(object) => events(model, object.as_deref()).count(),
            View::Identify => model.identify.buckets.len(),
            View::Operations => model.operations.len(),
            View::Operation(id) => super::views::operations::detail_len(model, id),
            View::Describe(subject) => super::views::describe::fields(model, subject).len(),
            View::Help => super::views::help::lines().len(),
        }
    }

    /// Whether the shown screen's list is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn toggle_filter(&mut self, typed: &str) -> Result<(), String> {
        let filter = Filter::parse(typed)?;
        self.screens.truncate(1);
        self.rows.query_mut().filter = filter;
        Ok(())
    }
}

/// Events of `object` or all, the newest first.
pub fn events<'m>(
    model: &'m Model,
    object: Option<&'m str>,
) -> impl Iterator<Item = &'m tanako_proto::fleet::v1::Event> {
    model
        .events
        .iter()
        .rev()
        .filter(move |event| object.is_none_or(|object| event.object == object))
}
