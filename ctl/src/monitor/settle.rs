//! After every input: what is selected stays valid whatever the fleet does, and the agent is asked
//! for what the shown screen needs beyond the updates.

use super::{
    app::{Action, App, Asked, View},
    focus::Focus,
    logs::Logs,
};

impl App {
    /// After every input: rows, selections and marks follow the model, and the agent is asked for
    /// what the shown screen needs beyond the updates.
    pub(super) fn settle(&mut self, actions: &mut Vec<Action>) {
        let dirty = self.model.take_dirty();
        let (model, dirty) = match &self.frozen {
            Some((frozen, _)) => (&**frozen, &[][..]),
            None => (&self.model, &dirty[..]),
        };
        self.rows.refresh(model, dirty);
        if self
            .screens
            .iter()
            .any(|screen| matches!(screen.view, View::Host(_)))
        {
            self.host_rows.refresh(model, dirty);
        }
        self.marked.retain(|name| model.process(name).is_some());
        self.hold_selection();
        self.ask_for_screen(actions);
    }

    fn hold_selection(&mut self) {
        let len = self.len();
        let screen = self
            .screens
            .last()
            .expect("invariant: the fleet view is never closed");
        let mut cursor = screen.list.cursor.min(len.saturating_sub(1));
        let mut anchor = None;
        if matches!(screen.view, View::Fleet | View::Host(_)) {
            let (table, model) = (self.table(), self.shown());
            if let Some(name) = &screen.list.anchor {
                cursor = table.position(model, name, cursor).unwrap_or(cursor);
            }
            anchor = table
                .process(model, cursor)
                .map(|process| process.name.clone());
        }
        let list = &mut self.screen_mut().list;
        list.cursor = cursor;
        list.anchor = anchor;
    }

    fn ask_for_screen(&mut self, actions: &mut Vec<Action>) {
        let wants = match &self.screen().view {
            View::Process(name) => Asked {
                logs: Some(vec![name.clone()]),
                history: Some(name.clone()),
                guild: None,
            },
            View::Host(name) => Asked {
                history: Some(format!("host:{name}")),
                ..Asked::default()
            },
            View::Logs(targets) => {
                // The process underneath goes on being watched.
                let below = self.focus.as_ref().map(|focus| focus.target.clone());
                Asked {
                    logs: Some(targets.clone()),
                    history: below,
                    guild: None,
                }
            }
            View::Guild(id) => Asked {
                guild: Some(*id),
                ..Asked::default()
            },
            _ => Asked::default(),
        };
        if self.asked.as_ref() == Some(&wants) {
            return;
        }
        let before = self.asked.take().unwrap_or_default();
        if wants.logs != before.logs || before == Asked::default() {
            match &wants.logs {
                Some(targets) => {
                    let ticket = self.ticket();
                    // Same lines wanted on a new link: those already here stay until new ones come.
                    let known = self.logs.take().filter(|logs| logs.targets == *targets);
                    let mut logs = known.unwrap_or_else(|| Logs::new(ticket, targets.clone()));
                    logs.ticket = ticket;
                    self.logs = Some(logs);
                    actions.push(Action::Follow {
                        ticket,
                        targets: targets.clone(),
                    });
                }
                None if before.logs.is_some() => {
                    self.logs = None;
                    actions.push(Action::Unfollow);
                }
                None => self.logs = None,
            }
        }
        match &wants.history {
            Some(target)
                if self
                    .focus
                    .as_ref()
                    .is_none_or(|focus| focus.target != *target) =>
            {
                let mut focus = Focus::new(target, &self.model);
                focus.sample(&self.model);
                actions.push(Action::History {
                    target: target.clone(),
                    metrics: focus.metrics(),
                });
                self.focus = Some(focus);
            }
            Some(_) => {}
            None => self.focus = None,
        }
        if let Some(id) = wants.guild {
            self.guild = self.guild.take().filter(|(known, _)| *known == id);
            actions.push(Action::Locate(id));
        }
        self.asked = Some(wants);
    }
}
