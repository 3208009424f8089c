//! What each process does with its shards: told in its welcome, kept by the coordinator.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use serde::{Deserialize, Serialize};
use tanako_proto::worker::v1::{Cut, Duty};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assignment {
    /// Active, warm or a shadow.
    pub duty: Duty,
    /// Which of the events are its own; unset = all.
    pub cut: Option<Cut>,
}

impl Default for Assignment {
    fn default() -> Self {
        Self {
            duty: Duty::Active,
            cut: None,
        }
    }
}

impl Assignment {
    /// Whether it may hold sessions: who stands by holds none before it is given some.
    pub fn holds_sessions(&self) -> bool {
        self.duty != Duty::Warm
    }
}

/// An assignment on disk: the duty's name on the wire, and the cut's moment and side.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    duty: String,
    cut: Option<(i64, bool)>,
}

/// The duties of all processes; clones are cheap and equal. Whoever is not in it is active.
///
/// The agent fills it from the operations that are under way before the first worker can say hello. They
/// lie on disk, too: an agent that starts while the store is away must not take a shadow for an active one,
/// which would handle every event a second time.
#[derive(Debug, Clone, Default)]
pub struct Duties {
    known: Arc<RwLock<Known>>,
    path: Option<Arc<PathBuf>>,
}

#[derive(Debug, Default)]
struct Known {
    all: BTreeMap<String, Assignment>,
    /// They could not be written down: what lies on disk is older.
    unwritten: bool,
}

impl Duties {
    /// Those that the last agent of this data directory knew. None, where nothing can be read.
    pub fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("duties.json");
        let all = match fs::read(&path) {
            Ok(text) => parse(&text).unwrap_or_else(|| {
                tracing::error!(path = %path.display(), "the duties of workers cannot be read");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        let known = Known {
            all,
            unwritten: false,
        };
        Self {
            known: Arc::new(RwLock::new(known)),
            path: Some(Arc::new(path)),
        }
    }

    /// What this process does.
    pub fn of(&self, process: &str) -> Assignment {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .all
            .get(process)
            .copied()
            .unwrap_or_default()
    }

    /// Replaces all of them, and writes them down. They hold when that fails, too. Blocks for one write
    /// when something is new.
    pub fn replace(&self, all: BTreeMap<String, Assignment>) -> io::Result<()> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let written = match &self.path {
            Some(path) if known.unwritten || known.all != all => write(path, &all),
            _ => Ok(()),
        };
        known.unwritten = written.is_err();
        known.all = all;
        written
    }
}

fn parse(text: &[u8]) -> Option<BTreeMap<String, Assignment>> {
    let written: BTreeMap<String, Written> = serde_json::from_slice(text).ok()?;
    let known = written.into_iter().map(|(process, written)| {
        let duty = Duty::from_str_name(&written.duty)?;
        let cut = written.cut.map(|(at, before)| Cut { at, before });
        Some((process, Assignment { duty, cut }))
    });
    known.collect()
}

fn write(path: &Path, all: &BTreeMap<String, Assignment>) -> io::Result<()> {
    let written: BTreeMap<&str, Written> = all
        .iter()
        .map(|(process, known)| {
            let written = Written {
                duty: known.duty.as_str_name().to_owned(),
                cut: known.cut.map(|cut| (cut.at, cut.before)),
            };
            (process.as_str(), written)
        })
        .collect();
    let text = serde_json::to_vec(&written).map_err(io::Error::other)?;
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_agent_knows_who_is_a_shadow() {
        let dir = tempfile::tempdir().expect("a directory");
        let duties = Duties::open(dir.path());
        assert_eq!(duties.of("x/0"), Assignment::default());
        let shadow = Assignment {
            duty: Duty::Shadow,
            cut: Some(Cut {
                at: 7,
                before: false,
            }),
        };
        let all = BTreeMap::from([("x/g2-0".to_owned(), shadow)]);
        duties.replace(all).expect("writes");
        let next = Duties::open(dir.path());
        assert_eq!(next.of("x/g2-0"), shadow);
        assert_eq!(next.of("x/0"), Assignment::default());
        // The operation has ended: everybody is active again, for the one after that, too.
        next.replace(BTreeMap::new()).expect("writes");
        assert_eq!(Duties::open(dir.path()).of("x/g2-0"), Assignment::default());
        fs::write(dir.path().join("duties.json"), "{").expect("writes");
        assert_eq!(Duties::open(dir.path()).of("x/g2-0"), Assignment::default());
    }

    #[test]
    fn what_cannot_be_written_down_holds_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let data_dir = dir.path().join("missing");
        let duties = Duties::open(&data_dir);
        let warm = Assignment {
            duty: Duty::Warm,
            cut: None,
        };
        let all = BTreeMap::from([("x/1".to_owned(), warm)]);
        assert!(duties.replace(all.clone()).is_err());
        assert_eq!(duties.of("x/1"), warm);
        assert!(duties.replace(all.clone()).is_err(), "it is tried again");
        // Also where an older file lies.
        fs::create_dir(&data_dir).expect("makes");
        fs::write(data_dir.join("duties.json"), "{}").expect("writes");
        duties.replace(all).expect("writes");
        assert_eq!(Duties::open(&data_dir).of("x/1"), warm);
    }
}
