//! The command line, and asking before a change.

use tanako_proto::fleet::v1::{PlanReply, Problem};

use super::{
    app::{Action, App, Clock, Gravity, Subject, View},
    dialog::{Dialog, Plan},
    keymap::Command,
    prompt::COMMANDS,
    rows::SortKey,
    write::{Verb, Write},
};

impl App {
    /// Runs a typed command.
    pub(super) fn run_line(
        &mut self,
        clock: Clock,
        line: &str,
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        let (verb, rest) = line
            .trim()
            .split_once(char::is_whitespace)
            .unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        let need = |what: &str| {
            if rest.is_empty() {
                Err(format!("{verb} needs {what}"))
            } else {
                Ok(rest.to_owned())
            }
        };
        match verb {
            "" => {}
            "q" | "quit" | "exit" => actions.push(Action::Quit),
            "help" => self.open(View::Help),
            "fleet" => self.screens.truncate(1),
            "hosts" => self.open(View::Hosts),
            "host" => {
                let host = self.known(need("a host")?, "host", |app, name| {
                    app.shown().host(name).is_some()
                })?;
                self.open_host(host);
            }
            "process" => {
                let name = self.known_process(need("a process")?)?;
                self.open(View::Process(name));
            }
            "guild" => {
                let id = need("a guild id")?;
                let id = id
                    .parse()
                    .map_err(|_| format!("{id} is no guild id: a number is expected"))?;
                self.open(View::Guild(id));
            }
            "logs" => {
                let names = need("a process")?;
                let names = names
                    .split_whitespace()
                    .map(|name| self.known_process(name.to_owned()));
                let names = names.collect::<Result<_, _>>()?;
                self.open(View::Logs(names));
            }
            "events" => self.open(View::Events((!rest.is_empty()).then(|| rest.to_owned()))),
            "identify" => self.open(View::Identify),
            "operations" => self.open(View::Operations),
            "describe" => {
                let name = need("a process or host")?;
                let subject = if self.shown().host(&name).is_some() {
                    Subject::Host(name)
                } else {
                    Subject::Process(self.known_process(name)?)
                };
                self.open(View::Describe(subject));
            }
            "start" | "stop" | "restart" => {
                let targets =
                    need("a target: a process, a bot, db, host:NAME, shard:ID, guild:ID or all")?;
                let verb = match verb {
                    "start" => Verb::Start,
                    "stop" => Verb::Stop,
                    _ => Verb::Restart,
                };
                self.ask(
                    clock,
                    verb,
                    targets.split_whitespace().map(str::to_owned).collect(),
                    actions,
                );
            }
            "backup" => self.ask(clock, Verb::Backup, Vec::new(), actions),
            "sort" => {
                let column = need("a column")?;
                let (column, reverse) = column
                    .strip_prefix('-')
                    .map_or((&*column, false), |column| (column, true));
                let mut fits = SortKey::ALL
                    .iter()
                    .filter(|key| key.name().starts_with(column));
                let names = || SortKey::ALL.map(SortKey::name).join(", ");
                let key = fits
                    .next()
                    .ok_or_else(|| format!("no column {column}; there are {}", names()))?;
                let query = self.table_mut().query_mut();
                (query.sort, query.reverse) = (*key, reverse);
            }
            "filter" => self.toggle_filter(rest)?,
            "faults" => self.command(clock, Command::FaultsOnly, actions),
            "pause" => self.command(clock, Command::Pause, actions),
            unknown => {
                let near = COMMANDS
                    .iter()
                    .map(|(name, _)| (strsim::jaro_winkler(name, unknown), *name))
                    .max_by(|a, b| a.0.total_cmp(&b.0))
                    .filter(|(likeness, _)| *likeness > 0.75);
                return Err(match near {
                    Some((_, name)) => format!("no command {unknown}; did you mean {name}?"),
                    None => format!("no command {unknown}; Tab lists them"),
                });
            }
        }
        Ok(())
    }

    fn known_process(&self, name: String) -> Result<String, String> {
        self.known(name, "process", |app, name| {
            app.shown().process(name).is_some()
        })
    }

    fn known(
        &self,
        name: String,
        what: &str,
        is: impl Fn(&Self, &str) -> bool,
    ) -> Result<String, String> {
        if is(self, &name) {
            return Ok(name);
        }
        let hosts = self.shown().hosts.iter().map(|host| &host.name);
        let processes = self.shown().processes().iter().map(|process| &process.name);
        let names: Vec<&String> = if what == "host" {
            hosts.collect()
        } else {
            processes.collect()
        };
        let near = names
            .into_iter()
            .map(|known| (strsim::jaro_winkler(known, &name), known))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness > 0.7);
        Err(match near {
            Some((_, near)) => format!("no {what} {name}; did you mean {near}?"),
            None => format!("no {what} {name}"),
        })
    }

    /// Opens the question about `verb` on `targets` and asks the fleet what it would cost.
    pub(super) fn ask(
        &mut self,
        clock: Clock,
        verb: Verb,
        targets: Vec<String>,
        actions: &mut Vec<Action>,
    ) {
        if targets.is_empty() && verb != Verb::Backup {
            self.say(clock, Gravity::Info, "no process is selected");
            return;
        }
        let ticket = self.ticket();
        let id = format!("monitor-{}-{ticket}", self.session);
        let Some(token) = &self.writer else {
            self.say(
                clock,
                Gravity::Error,
                "read-only: nothing can be changed from here (started with --readonly)",
            );
            return;
        };
        let must_type = self.must_type(verb, &targets);
        let write = Write::new(token, verb, targets, id);
        self.prompt = None;
        self.dialog = Some(Dialog::new(ticket, write.clone(), must_type));
        actions.push(Action::Plan {
            ticket,
            write: Box::new(write),
        });
    }

    /// What has to be typed: the one target, or the fleet's name where more is at stake.
    fn must_type(&self, verb: Verb, targets: &[String]) -> Option<String> {
        let every = self
            .model
            .processes()
            .iter()
            .all(|process| targets.contains(&process.name));
        let all = targets.iter().any(|target| target == "all") || (every && !targets.is_empty());
        let dear = match verb {
            Verb::Stop => all || self.model.production,
            Verb::Restart => self.model.production,
            Verb::Start | Verb::Backup => false,
        };
        let fleet = || {
            if self.model.fleet.is_empty() {
                self.context.clone()
            } else {
                self.model.fleet.clone()
            }
        };
        dear.then(|| match targets {
            [one] if !all => one.clone(),
            _ => fleet(),
        })
    }

    pub(super) fn planned(&mut self, ticket: u64, reply: Result<Box<PlanReply>, Box<Problem>>) {
        let Some(dialog) = self
            .dialog
            .as_mut()
            .filter(|dialog| dialog.ticket == ticket)
        else {
            return;
        };
        dialog.plan = match reply {
            Ok(mut plan) => {
                for text in plan
                    .changes
                    .iter_mut()
                    .flat_map(|change| [&mut change.action, &mut change.object, &mut change.why])
                    .chain(&mut plan.warnings)
                {
                    super::text::clean_in(text, 300);
                }
                Plan::Ready(plan)
            }
            Err(mut problem) => {
                for text in [
                    &mut problem.object,
                    &mut problem.message,
                    &mut problem.cause,
                    &mut problem.hint,
                ] {
                    super::text::clean_in(text, 500);
                }
                Plan::Refused(problem)
            }
        };
    }
}
