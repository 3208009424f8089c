//! What each input does to the state. Pure: the same inputs at the same times give the same state
//! and the same actions.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, MouseButton, MouseEvent, MouseEventKind};
use tanako_proto::fleet::v1::{FleetUpdate, fleet_update::Update};

use super::{
    app::{Action, App, Clock, Gravity, Input, LinkState, View, problem_line},
    dialog::{Answer, Plan},
    intake,
    keymap::{self, Command, Meaning},
    prompt::{Prompt, Purpose},
    rows::Filter,
};

/// Rows the wheel moves.
const WHEEL_ROWS: i64 = 3;

impl App {
    /// Takes one input at `clock`; what it returns is for the runner to do.
    pub fn update(&mut self, clock: Clock, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.dirty |= !matches!(input, Input::Tick);
        match input {
            Input::Key(key) if key.kind == KeyEventKind::Release => {}
            Input::Key(key) => self.key(clock, key, &mut actions),
            Input::Paste(text) => self.paste(&text),
            Input::Mouse(mouse) => self.mouse(clock, mouse, &mut actions),
            Input::Resize(columns, lines) => self.size = (columns, lines),
            Input::Tick => self.tick(clock),
            Input::Update(update) => self.fleet(clock, *update),
            Input::Lost { why, retry_in } => {
                self.link = LinkState::Lost {
                    why,
                    retry_at: clock.mono + retry_in,
                };
            }
            Input::Events(events) => self.model.add_events(events),
            Input::Planned { ticket, reply } => self.planned(ticket, reply),
            Input::Submitted { write, reply } => match reply {
                Ok(operation) => {
                    self.operation = Some(operation.id.clone());
                    self.model.add_operation(*operation);
                }
                Err(problem) => {
                    let what = write.verb().title();
                    self.say(
                        clock,
                        Gravity::Error,
                        format!("{what} failed: {}", problem_line(&problem)),
                    );
                }
            },
            Input::Located { guild, reply } => {
                if matches!(self.screen().view, View::Guild(open) if open == guild) {
                    let reply = reply.map(|location| intake::location(*location));
                    self.guild = Some((guild, reply.map_err(|problem| problem_line(&problem))));
                }
            }
            Input::History { target, reply } => {
                if let Some(focus) = self.focus.as_mut().filter(|focus| focus.target == target) {
                    focus.fill(&reply);
                }
            }
            Input::Log { ticket, lines } => {
                if let Some(logs) = self.logs.as_mut().filter(|logs| logs.ticket == ticket) {
                    logs.ended = None;
                    logs.push(lines);
                }
            }
            Input::LogEnded { ticket, why } => {
                if let Some(logs) = self.logs.as_mut().filter(|logs| logs.ticket == ticket) {
                    logs.ended = Some(super::text::clean(&why, 300).into_owned());
                }
            }
            Input::Saved(Ok(path)) => self.say(clock, Gravity::Info, format!("saved to {path}")),
            Input::Saved(Err(why)) => self.say(clock, Gravity::Error, format!("not saved: {why}")),
        }
        self.settle(&mut actions);
        actions
    }

    fn key(&mut self, clock: Clock, key: KeyEvent, actions: &mut Vec<Action>) {
        if keymap::lookup(keymap::PLAIN, key, None) == Meaning::Command(Command::Quit)
            && key.code == KeyCode::Char('c')
        {
            // Control-C leaves from everywhere, a half-typed line or an open question included.
            actions.push(Action::Quit);
            return;
        }
        if self.dialog.is_some() {
            self.dialog_key(clock, key, actions);
            return;
        }
        if self.prompt.is_some() {
            self.prompt_key(clock, key, actions);
            return;
        }
        let first = self.first_press.take();
        match keymap::lookup(self.screen().scope(), key, first) {
            Meaning::Command(command) => self.command(clock, command, actions),
            Meaning::First(c) => self.first_press = Some(c),
            Meaning::None => {}
        }
    }

    fn dialog_key(&mut self, clock: Clock, key: KeyEvent, actions: &mut Vec<Action>) {
        let Some(dialog) = &mut self.dialog else {
            return;
        };
        match dialog.key(key) {
            Answer::None => {}
            Answer::Cancel => {
                self.dialog = None;
                self.say(clock, Gravity::Info, "cancelled, nothing was changed");
            }
            Answer::Confirm => {
                if let Some(dialog) = self.dialog.take()
                    && let Plan::Ready(plan) = dialog.plan
                {
                    let write = dialog.write.based_on(plan.version);
                    self.say(
                        clock,
                        Gravity::Info,
                        format!("{} sent", write.verb().kind()),
                    );
                    self.marked.clear();
                    actions.push(Action::Submit(Box::new(write)));
                }
            }
        }
    }

    fn prompt_key(&mut self, clock: Clock, key: KeyEvent, actions: &mut Vec<Action>) {
        let Some(prompt) = &mut self.prompt else {
            return;
        };
        match key.code {
            KeyCode::Esc => {
                let (purpose, before) = (prompt.purpose, prompt.before.clone());
                self.prompt = None;
                // What was in force before was valid then.
                let _ = self.set_pattern(purpose, &before);
            }
            KeyCode::Enter => {
                let (purpose, line) = (prompt.purpose, prompt.editor.text());
                let done = match purpose {
                    Purpose::Command => self.run_line(clock, &line, actions),
                    Purpose::Filter | Purpose::Search => self.set_pattern(purpose, &line),
                };
                match (done, &mut self.prompt) {
                    (Err(why), Some(prompt)) => prompt.error = Some(why),
                    (Err(why), None) => self.say(clock, Gravity::Error, why),
                    (Ok(()), _) => {
                        self.prompt = None;
                        if purpose == Purpose::Search
                            && let Some(logs) = &mut self.logs
                            && logs.search.is_some()
                            && !logs.is_following()
                        {
                            logs.find(true);
                        }
                    }
                }
            }
            KeyCode::Tab => prompt.complete(&self.model, false),
            KeyCode::BackTab => prompt.complete(&self.model, true),
            KeyCode::Backspace if prompt.editor.is_empty() => self.prompt = None,
            _ => {
                if prompt.editor.key(key) {
                    prompt.settle();
                    self.typed();
                }
            }
        }
    }

    /// A filter or a search takes effect while it is typed.
    fn typed(&mut self) {
        let Some(prompt) = &self.prompt else { return };
        let (purpose, line) = (prompt.purpose, prompt.editor.text());
        if purpose != Purpose::Command
            && let Err(why) = self.set_pattern(purpose, &line)
            && let Some(prompt) = &mut self.prompt
        {
            prompt.error = Some(why);
        }
    }

    pub(super) fn set_pattern(&mut self, purpose: Purpose, typed: &str) -> Result<(), String> {
        let filter = Filter::parse(typed)?;
        match purpose {
            Purpose::Filter => self.table_mut().query_mut().filter = filter,
            Purpose::Search => {
                if let Some(logs) = &mut self.logs {
                    logs.only_matches &= filter.is_some();
                    logs.search = filter;
                }
            }
            Purpose::Command => {}
        }
        Ok(())
    }

    fn paste(&mut self, text: &str) {
        if let Some(dialog) = &mut self.dialog {
            if dialog.must_type.is_some() {
                dialog.typed.insert(text.trim());
            }
        } else if let Some(prompt) = &mut self.prompt {
            prompt.editor.insert(text.trim_end_matches(['\r', '\n']));
            prompt.settle();
            self.typed();
        }
    }

    fn mouse(&mut self, clock: Clock, mouse: MouseEvent, actions: &mut Vec<Action>) {
        if self.dialog.is_some() || self.prompt.is_some() {
            return;
        }
        match mouse.kind {
            MouseEventKind::ScrollDown => self.move_by(WHEEL_ROWS),
            MouseEventKind::ScrollUp => self.move_by(-WHEEL_ROWS),
            MouseEventKind::Down(MouseButton::Left) => {
                let list = &self.screen().list;
                let (top, page, offset) = (list.top.get(), list.page.get(), list.offset.get());
                let Some(row) = mouse
                    .row
                    .checked_sub(top)
                    .map(usize::from)
                    .filter(|row| *row < page)
                else {
                    return;
                };
                let row = offset + row;
                // A click selects; a click on what is selected opens it.
                if row == self.screen().list.cursor {
                    self.command(clock, Command::Open, actions);
                } else {
                    self.move_to(row);
                }
            }
            _ => self.dirty = false,
        }
    }

    fn tick(&mut self, clock: Clock) {
        if self
            .notice
            .as_ref()
            .is_some_and(|notice| notice.until <= clock.mono)
        {
            self.notice = None;
        }
        // Ages and countdowns on the screen move once a second.
        self.dirty = true;
    }

    fn fleet(&mut self, clock: Clock, update: FleetUpdate) {
        match update.update {
            Some(Update::Snapshot(status)) => self.model.apply_snapshot(status),
            Some(Update::Delta(delta)) => {
                self.model.apply_delta(delta);
            }
            // From a newer agent: alive, but nothing we know.
            None => {}
        }
        if self.link != LinkState::Live {
            // What the open screen needs is asked for again.
            self.asked = None;
            self.link = LinkState::Live;
        }
        self.updated = Some(clock.mono);
        if let Some(focus) = &mut self.focus {
            focus.sample(&self.model);
        }
    }

    pub(super) fn open_prompt(&mut self, purpose: Purpose, text: &str) {
        let before = match purpose {
            Purpose::Filter => self
                .table()
                .query()
                .filter
                .as_ref()
                .map_or("", Filter::typed)
                .to_owned(),
            Purpose::Search => {
                let search = self.logs.as_ref().and_then(|logs| logs.search.as_ref());
                search.map_or("", Filter::typed).to_owned()
            }
            Purpose::Command => String::new(),
        };
        let text = if purpose == Purpose::Command {
            text
        } else {
            &before
        };
        self.prompt = Some(Prompt::new(purpose, text, &before));
    }
}
