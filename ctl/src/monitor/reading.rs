//! The commands of the log view.

use super::{
    app::{Action, App, Clock, Gravity, View},
    figures,
    keymap::Command,
    logs::{Line, Logs},
};

impl App {
    pub(super) fn log_commands(
        &mut self,
        clock: Clock,
        command: Command,
        actions: &mut Vec<Action>,
    ) {
        let page = self.screen().list.page.get();
        let View::Logs(targets) = &self.screen().view else {
            return;
        };
        let subject = if targets.len() == 1 {
            targets[0].clone()
        } else {
            "several".into()
        };
        let Some(logs) = &mut self.logs else { return };
        match command {
            Command::Follow => logs.set_following(!logs.is_following()),
            Command::Wrap => logs.wrap = !logs.wrap,
            Command::Timestamps => logs.timestamps = !logs.timestamps,
            Command::OnlyMatches if logs.search.is_some() => {
                logs.only_matches = !logs.only_matches;
                logs.scroll(0, page);
            }
            Command::NextMatch | Command::PreviousMatch => {
                let up = command == Command::PreviousMatch;
                if logs.search.is_none() {
                    self.say(
                        clock,
                        Gravity::Info,
                        "nothing is searched for: press / first",
                    );
                } else if !logs.find(up) {
                    self.say(
                        clock,
                        Gravity::Info,
                        if up {
                            "no match above"
                        } else {
                            "no match below"
                        },
                    );
                }
            }
            Command::Save => {
                let lines = logs
                    .iter()
                    .map(|line| saved_line(logs, line, clock.offset_s))
                    .collect();
                actions.push(Action::Save {
                    subject,
                    unix_ms: clock.unix_ms,
                    lines,
                });
            }
            Command::OnlyMatches => self.say(
                clock,
                Gravity::Info,
                "nothing is searched for: press / first",
            ),
            _ => {}
        }
    }
}

fn saved_line(logs: &Logs, line: &Line, offset_s: i32) -> String {
    let time = figures::date_time(line.at, offset_s);
    if logs.targets.len() == 1 {
        format!("{time} {}", line.text)
    } else {
        format!("{time} {} {}", line.process, line.text)
    }
}
