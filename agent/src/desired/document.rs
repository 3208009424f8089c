//! The document of the desired state, as it is stored, and how it changes; pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tanako_fleet::{
    ProcessName, ProcessSpec, Spec,
    spec::{self, Generation, Layout, Places, SpecError},
};

/// A spec as the operator wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its text.
    pub toml: String,
    /// Name of its file, for messages.
    pub file_name: String,
}

impl Written {
    /// Tells it from others.
    pub fn mark(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.toml.as_bytes())
    }
}

/// The sets of processes of a bot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generations {
    /// The one that serves.
    pub active: Generation,
    /// The one that an operation builds beside it.
    #[serde(default)]
    pub next: Option<Generation>,
    /// The highest number that was ever used.
    pub last: u32,
}

/// The document as stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Rises with each change.
    pub version: u64,
    /// The spec as the operator wrote it; empty = none yet.
    pub toml: String,
    /// Name of its file, for messages.
    pub file_name: String,
    /// Processes that shall not run. All others of the spec shall.
    pub stopped: BTreeSet<ProcessName>,
    /// The sets of processes of bots whose set is not the first, or was laid out anew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub generations: BTreeMap<String, Generations>,
    /// Processes that go on by another spec than the present one, until a rollout comes to them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held: BTreeMap<ProcessName, u64>,
    /// Those specs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub specs: BTreeMap<u64, Written>,
}

/// What follows from a document.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    /// The present spec; `None` = there is none yet.
    pub spec: Option<Spec>,
    /// All processes, database nodes first.
    pub processes: Vec<ProcessSpec>,
}

impl Document {
    /// The sets of processes of a bot of `spec`.
    pub fn generations_of(&self, bot: &str, spec: &Spec) -> Option<Generations> {
        self.generations.get(bot).copied().or_else(|| {
            let active = spec.bots.get(bot)?.first();
            Some(Generations {
                active,
                next: None,
                last: active.number,
            })
        })
    }

    fn layout(&self) -> Layout {
        self.generations
            .iter()
            .map(|(bot, generations)| {
                let all = [Some(generations.active), generations.next];
                (bot.clone(), all.into_iter().flatten().collect())
            })
            .collect()
    }

    /// Spec and processes.
    pub fn resolve(&self, places: &Places) -> Result<Resolved, SpecError> {
        if self.toml.is_empty() {
            return Ok(Resolved::default());
        }
        let spec = spec::parse(&self.toml, &self.file_name)?;
        let layout = self.layout();
        let mut processes = processes(&spec, places, &layout);
        if !self.held.is_empty() {
            let mut older: BTreeMap<u64, BTreeMap<ProcessName, ProcessSpec>> = BTreeMap::new();
            for (number, written) in &self.specs {
                let spec = spec::parse(&written.toml, &written.file_name)?;
                let all = self::processes(&spec, places, &layout);
                let named = all
                    .into_iter()
                    .map(|process| (process.name.clone(), process));
                older.insert(*number, named.collect());
            }
            for (name, number) in &self.held {
                let Some(held) = older.get_mut(number).and_then(|all| all.remove(name)) else {
                    continue;
                };
                match processes.iter_mut().find(|process| process.name == *name) {
                    Some(process) => *process = held,
                    None => processes.push(held),
                }
            }
        }
        Ok(Resolved {
            spec: Some(spec),
            processes,
        })
    }

    /// Makes `written` the present spec. What runs of `processes` and would differ by it goes on by the
    /// spec that it runs by now, until it is released.
    pub fn bring_in(&mut self, written: &Written, places: &Places) -> Result<(), SpecError> {
        let before = self.resolve(places)?.processes;
        let present = self.specs.keys().next_back().map_or(1, |last| last + 1);
        let old = Written {
            toml: std::mem::replace(&mut self.toml, written.toml.clone()),
            file_name: std::mem::replace(&mut self.file_name, written.file_name.clone()),
        };
        self.specs.insert(present, old);
        let mut runs_by = std::mem::take(&mut self.held);
        for process in &before {
            runs_by.entry(process.name.clone()).or_insert(present);
        }
        let after = self.resolve(places)?.processes;
        let after: BTreeMap<&ProcessName, &ProcessSpec> = after
            .iter()
            .map(|process| (&process.name, process))
            .collect();
        self.held = before
            .iter()
            .filter(|process| !self.stopped.contains(&process.name))
            .filter(|process| after.get(&process.name) != Some(process))
            .filter_map(|process| Some((process.name.clone(), *runs_by.get(&process.name)?)))
            .collect();
        self.prune();
        Ok(())
    }

    /// The process runs by the present spec from now on.
    pub fn release(&mut self, name: &ProcessName) {
        self.held.remove(name);
        self.prune();
    }

    /// Nothing is held any more.
    pub fn release_all(&mut self) {
        self.held.clear();
        self.prune();
    }

    /// Drops specs that nothing runs by.
    fn prune(&mut self) {
        let used: BTreeSet<u64> = self.held.values().copied().collect();
        self.specs.retain(|number, _| used.contains(number));
    }

    /// Lays the set that serves a bot out in this way.
    pub fn lay_out(&mut self, bot: &str, set: Generation) {
        let generations = self
            .generations
            .entry(bot.to_owned())
            .or_insert(Generations {
                active: set,
                next: None,
                last: set.number,
            });
        generations.active = set;
    }

    /// Puts a set of processes beside the one that serves.
    pub fn build(&mut self, bot: &str, spec: &Spec, next: Generation) {
        if let Some(mut generations) = self.generations_of(bot, spec) {
            generations.next = Some(next);
            generations.last = generations.last.max(next.number);
            self.generations.insert(bot.to_owned(), generations);
        }
    }

    /// The next set of a bot becomes the one that serves.
    pub fn adopt(&mut self, bot: &str) {
        if let Some(generations) = self.generations.get_mut(bot)
            && let Some(next) = generations.next.take()
        {
            let left = generations.active;
            generations.active = next;
            for name in left.names(bot) {
                self.held.remove(&name);
                self.stopped.remove(&name);
            }
            self.prune();
        }
    }

    /// The next set of a bot is given up.
    pub fn drop_next(&mut self, bot: &str) {
        if let Some(generations) = self.generations.get_mut(bot)
            && let Some(next) = generations.next.take()
        {
            for name in next.names(bot) {
                self.held.remove(&name);
                self.stopped.remove(&name);
            }
            self.prune();
        }
    }
}

/// The processes of a spec, each told to which fleet it belongs.
fn processes(spec: &Spec, places: &Places, layout: &Layout) -> Vec<ProcessSpec> {
    let mut processes = spec.processes_in(places, layout);
    for process in &mut processes {
        process
            .env
            .insert("TANAKO_FLEET".to_owned(), spec.name.clone());
    }
    processes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places {
            data_dir: "/d".to_owned(),
        }
    }

    fn written(extra: &str) -> Written {
        Written {
            toml: format!(
                "[fleet]\nname = \"t\"\n[bots.b]\ncommand = [\"tanako-bot\"]\ntoken_file = \"/t\"\nshards = 3\n{extra}"
            ),
            file_name: "fleet.toml".to_owned(),
        }
    }

    fn document() -> Document {
        Document {
            toml: written("").toml,
            ..Document::default()
        }
    }

    fn name(text: &str) -> ProcessName {
        text.parse().expect("a good name")
    }

    /// Process and value of the variable A.
    fn values(document: &Document) -> Vec<String> {
        let resolved = document.resolve(&places()).expect("resolves");
        let value = |process: &ProcessSpec| process.env.get("A").cloned().unwrap_or_default();
        resolved
            .processes
            .iter()
            .map(|process| format!("{}={}", process.name, value(process)))
            .collect()
    }

    #[test]
    fn what_is_not_rolled_yet_goes_on_by_its_spec_also_after_a_restart_of_the_agent() {
        let mut document = document();
        document.stopped.insert(name("b/2"));
        document
            .bring_in(&written("env = { A = \"1\" }"), &places())
            .expect("a good spec");
        assert_eq!(values(&document), ["b/0=", "b/1=", "b/2=1"]);
        document.release(&name("b/0"));
        let text = serde_json::to_vec(&document).expect("encodes");
        let mut document: Document = serde_json::from_slice(&text).expect("decodes");
        assert_eq!(values(&document), ["b/0=1", "b/1=", "b/2=1"]);
        // Back: the one that has changed is held by what it runs by, the other is as it should be.
        document
            .bring_in(&written(""), &places())
            .expect("a good spec");
        assert_eq!(values(&document), ["b/0=1", "b/1=", "b/2="]);
        assert_eq!(document.held.len(), 1);
        document.release(&name("b/0"));
        assert!(document.specs.is_empty() && document.held.is_empty());
    }

    #[test]
    fn a_removed_process_stays_until_it_is_released() {
        let mut document = document();
        let mut without = written("");
        without.toml = without
            .toml
            .replace("shards = 3", "shards = 3\nshards_per_process = 3");
        document.bring_in(&without, &places()).expect("a good spec");
        assert_eq!(values(&document).len(), 3);
        document.release(&name("b/2"));
        assert_eq!(values(&document).len(), 2);
    }

    #[test]
    fn a_generation_comes_and_takes_the_place_of_the_other() {
        let mut document = document();
        let spec = document
            .resolve(&places())
            .expect("resolves")
            .spec
            .expect("one");
        let next = Generation {
            number: 2,
            shards: 6,
            shards_per_process: 3,
        };
        document.build("b", &spec, next);
        assert_eq!(
            values(&document),
            ["b/0=", "b/1=", "b/2=", "b/g2-0=", "b/g2-1="]
        );
        let mut given_up = document.clone();
        given_up.drop_next("b");
        assert_eq!(values(&given_up), ["b/0=", "b/1=", "b/2="]);
        assert_eq!(
            given_up.generations["b"].last, 2,
            "its number is never used again"
        );
        document.adopt("b");
        assert_eq!(values(&document), ["b/g2-0=", "b/g2-1="]);
    }
}
