//! Backup sets on disk: labels, the manifest of a set, listing, pruning.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tanako_fleet::target::nearest;
use tanako_proto::fleet::v1::{self as wire, Problem};

use crate::{coordinator::schedule, operations::Kind};

/// File of a set's own manifest.
pub const MANIFEST: &str = "set.json";
const PARTIAL: &str = ".partial";
const FORMAT: u32 = 1;
/// Sets on one day.
const PER_DAY_MAX: u32 = 999;
/// A set's manifest is a few KB; anything longer is not one.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;

/// What a set holds of one database node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeArchive {
    /// The node: `node1`.
    pub node: String,
    /// Its archive, beside the manifest.
    pub archive: String,
    /// Size of the archive.
    pub bytes: u64,
    /// Rows in it.
    pub rows: u64,
}

/// The manifest of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this file.
    pub format: u32,
    /// `20261121` or `20261121-2`.
    pub label: String,
    /// The fleet it was made of.
    pub fleet: String,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// When all archives were last read back and agreed.
    pub verified_at: i64,
    /// What the latest verification found wrong; empty = nothing.
    #[serde(default)]
    pub damage: String,
    /// One a node.
    pub nodes: Vec<NodeArchive>,
}

impl Manifest {
    /// A manifest of a set that every node has just verified.
    pub fn new(label: &str, fleet: &str, now: i64, nodes: Vec<NodeArchive>) -> Self {
        Self {
            format: FORMAT,
            label: label.to_owned(),
            fleet: fleet.to_owned(),
            created_at: now,
            verified_at: now,
            damage: String::new(),
            nodes,
        }
    }

    /// Rows in all.
    pub fn rows(&self) -> u64 {
        self.nodes.iter().map(|node| node.rows).sum()
    }

    /// Reads the manifest of the set in `directory`.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let path = directory.join(MANIFEST);
        let text = read_small(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| format!("{} is not a manifest: {error}", path.display()))?;
        if manifest.format != FORMAT {
            return Err(format!("{} has format {}", path.display(), manifest.format));
        }
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        match manifest.nodes.iter().find(|node| !plain(&node.archive)) {
            Some(node) => Err(format!(
                "{} names a bad archive {:?}",
                path.display(),
                node.archive
            )),
            None if manifest.nodes.is_empty() => Err(format!("{} names no node", path.display())),
            None => Ok(manifest),
        }
    }

    /// Writes it so that after a crash the old or the new one is there.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        let new = directory.join(".set.json.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, directory.join(MANIFEST))?;
        sync_directory(directory)
    }

    /// The archives' paths.
    pub fn archives(&self, directory: &Path) -> Vec<String> {
        let path =
            |node: &NodeArchive| directory.join(&node.archive).to_string_lossy().into_owned();
        self.nodes.iter().map(path).collect()
    }
}

/// Reads a file that is not expected to be large.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > MANIFEST_BYTES_MAX {
        return Err(io::Error::other(format!(
            "has {size} bytes, which no manifest has"
        )));
    }
    fs::read(path)
}

/// Makes what was done in a directory outlast a power loss.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// Makes an empty directory that only this user may look into, for a set in the making.
pub fn make_partial(root: &Path, label: &str) -> io::Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)?;
    let path = root.join(format!("{label}{PARTIAL}"));
    // Left by an attempt that did not come to its end.
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// Gives a finished set its name.
pub fn complete(root: &Path, label: &str) -> io::Result<()> {
    let partial = root.join(format!("{label}{PARTIAL}"));
    sync_directory(&partial)?;
    fs::rename(&partial, root.join(label))?;
    sync_directory(root)
}

/// The set of that label, if the backup that was to make it has come to its end before: labels are chosen so
/// that there is none yet.
pub fn made(root: &Path, label: &str, fleet: &str) -> Option<Manifest> {
    let made = Manifest::read(&root.join(label)).ok()?;
    (made.label == label && made.fleet == fleet).then_some(made)
}

/// Removes a set. It loses its name first, so that a half-removed one is never taken for a whole.
pub fn remove(root: &Path, directory: &str) -> io::Result<()> {
    let path = root.join(directory);
    let doomed = if directory.ends_with(PARTIAL) {
        path
    } else {
        let doomed = root.join(format!("{directory}{PARTIAL}"));
        if doomed.exists() {
            fs::remove_dir_all(&doomed)?;
        }
        fs::rename(&path, &doomed)?;
        sync_directory(root)?;
        doomed
    };
    fs::remove_dir_all(doomed)
}

/// What a set is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It can be restored.
    Verified,
    /// It was never finished.
    Incomplete,
    /// It cannot be restored.
    Damaged,
}

impl Condition {
    /// The word users see and the wire carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Incomplete => "incomplete",
            Self::Damaged => "damaged",
        }
    }
}

/// A set as found on disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// Name of its directory.
    pub directory: String,
    /// Its label.
    pub label: String,
    /// What it is good for.
    pub condition: Condition,
    /// Why, when it is not verified.
    pub detail: String,
    /// Its manifest, if readable.
    pub manifest: Option<Manifest>,
}

impl Found {
    /// As `tanakoctl` gets it.
    pub fn to_wire(&self) -> wire::Backup {
        let manifest = self.manifest.as_ref();
        wire::Backup {
            date: self.label.clone(),
            created_at: manifest.map_or(0, |manifest| manifest.created_at),
            bytes: manifest.map_or(0, |manifest| {
                manifest.nodes.iter().map(|node| node.bytes).sum()
            }),
            rows: manifest.map_or(0, Manifest::rows),
            nodes: manifest.map_or(0, |manifest| manifest.nodes.len() as u32),
            state: self.condition.as_str().to_owned(),
            detail: self.detail.clone(),
            verified_at: manifest.map_or(0, |manifest| manifest.verified_at),
            host: String::new(),
        }
    }
}

/// The sets under `root`, newest first. No directory = none.
pub fn list(root: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if entry.file_type()?.is_dir() {
            found.extend(look(root, &name));
        }
    }
    found.sort_by(|a, b| {
        order(&b.label)
            .cmp(&order(&a.label))
            .then(a.directory.cmp(&b.directory))
    });
    Ok(found)
}

fn look(root: &Path, name: &str) -> Option<Found> {
    let label = name.strip_suffix(PARTIAL).unwrap_or(name);
    // What else lies there is none of ours.
    parse_label(label)?;
    let mut found = Found {
        directory: name.to_owned(),
        label: label.to_owned(),
        condition: Condition::Incomplete,
        detail: "it was not finished, or is being made".to_owned(),
        manifest: None,
    };
    if name != label {
        return Some(found);
    }
    found.condition = Condition::Damaged;
    let directory = root.join(name);
    match Manifest::read(&directory) {
        Err(error) => found.detail = error,
        Ok(manifest) => {
            let fault = manifest.nodes.iter().find_map(|node| {
                let path = directory.join(&node.archive);
                match fs::metadata(&path) {
                    Err(error) => Some(format!("{}: {error}", node.archive)),
                    Ok(meta) if meta.len() != node.bytes => Some(format!(
                        "{} has {} bytes, {} were written",
                        node.archive,
                        meta.len(),
                        node.bytes
                    )),
                    Ok(_) => None,
                }
            });
            let damage = Some(manifest.damage.clone()).filter(|damage| !damage.is_empty());
            if let Some(fault) = fault.or(damage) {
                found.detail = fault;
            } else {
                found.condition = Condition::Verified;
                found.detail = String::new();
            }
            found.manifest = Some(manifest);
        }
    }
    Some(found)
}

/// Day and number of a label.
fn parse_label(label: &str) -> Option<(u32, u32)> {
    let (day, number) = label
        .split_once('-')
        .map_or((label, "1"), |(day, number)| (day, number));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if day.len() != 8 || !plain(day) || !plain(number) || number.starts_with('0') {
        return None;
    }
    let date = jiff::civil::Date::new(
        day[..4].parse().ok()?,
        day[4..6].parse().ok()?,
        day[6..].parse().ok()?,
    );
    date.ok()?;
    let number = number
        .parse()
        .ok()
        .filter(|number| *number <= PER_DAY_MAX)?;
    Some((day.parse().ok()?, number))
}

fn order(label: &str) -> (u32, u32) {
    parse_label(label).unwrap_or((0, 0))
}

/// The label that an operation works on: a new one for a backup, an existing one for the others.
pub fn choose(kind: Kind, root: &Path, date: &str, now: i64) -> Result<String, Box<Problem>> {
    if kind == Kind::BackupPrune {
        return Ok(String::new());
    }
    let bad = || {
        Problem::new("invalid-argument", date, format!("{date:?} is not a date"))
            .hint("write YYYYMMDD, for example 20261121; a second set of a day is 20261121-2")
    };
    if !date.is_empty() && parse_label(date).is_none() {
        return Err(Box::new(bad()));
    }
    let sets = list(root).map_err(|error| unreadable(root, &error))?;
    if kind == Kind::Backup {
        let day = if date.is_empty() {
            schedule::label(now)
        } else {
            date.to_owned()
        };
        if day.contains('-') {
            return Err(Box::new(
                bad().cause("the number of a new set is chosen by the agent"),
            ));
        }
        let taken = |label: &str| root.join(label).exists();
        if !taken(&day) {
            return Ok(day);
        }
        return (2..=PER_DAY_MAX)
            .map(|number| format!("{day}-{number}"))
            .find(|label| !taken(label))
            .ok_or_else(|| {
                Box::new(
                    Problem::new(
                        "too-many",
                        day,
                        format!("{PER_DAY_MAX} sets were made that day"),
                    )
                    .hint("prune: `tanakoctl backup prune`"),
                )
            });
    }
    let named = |condition| sets.iter().find(|set| set.condition == condition);
    let set = if date.is_empty() {
        named(Condition::Verified)
    } else {
        sets.iter()
            .find(|set| set.label == date && set.directory == set.label)
    };
    let Some(set) = set else {
        let what = if date.is_empty() {
            "a verified backup"
        } else {
            date
        };
        let labels = sets.iter().map(|set| set.label.as_str());
        let hint = match nearest(date, labels) {
            Some(near) if !date.is_empty() => format!("did you mean {near}?"),
            _ => "`tanakoctl backup list` shows what there is".to_owned(),
        };
        return Err(Box::new(
            Problem::new(
                "unknown-backup",
                date,
                format!("there is no {what} in {}", root.display()),
            )
            .hint(hint),
        ));
    };
    if set.manifest.is_none() {
        return Err(Box::new(
            Problem::new(
                "damaged-backup",
                &set.label,
                "the backup set cannot be used",
            )
            .cause(set.detail.clone())
            .hint("use another one: `tanakoctl backup list`"),
        ));
    }
    Ok(set.label.clone())
}

/// The directories to delete so that `keep` good sets stay: old good ones, and bad ones older than
/// the newest good one. The last good one is never among them.
pub fn prunable(sets: &[Found], keep: u32) -> Vec<String> {
    let good = |set: &&Found| set.condition == Condition::Verified;
    let Some(newest) = sets.iter().find(good) else {
        return Vec::new();
    };
    let spare = sets.iter().filter(good).skip(keep.max(1) as usize);
    let bad = sets
        .iter()
        .filter(|set| !good(set) && order(&set.label) < order(&newest.label));
    spare.chain(bad).map(|set| set.directory.clone()).collect()
}

/// The backup directory cannot be read.
pub fn unreadable(root: &Path, error: &io::Error) -> Problem {
    Problem::new(
        "backup-directory",
        root.to_string_lossy(),
        "the backup directory cannot be used",
    )
    .cause(error.to_string())
    .hint("check [backup] directory in fleet.toml, its owner and its mode")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(root: &Path, label: &str, bytes: &[u8]) {
        let directory = make_partial(root, label).expect("makes");
        fs::write(directory.join("node1.tbk"), bytes).expect("writes");
        let node = NodeArchive {
            node: "node1".to_owned(),
            archive: "node1.tbk".to_owned(),
            bytes: bytes.len() as u64,
            rows: 3,
        };
        Manifest::new(label, "t", 5, vec![node])
            .write(&directory)
            .expect("writes");
        complete(root, label).expect("completes");
    }

    #[test]
    fn only_a_whole_set_is_verified() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        set(root, "20261119", b"abc");
        set(root, "20261120", b"abc");
        set(root, "20261120-2", b"abc");
        fs::write(root.join("20261120/node1.tbk"), b"ab").expect("truncates");
        make_partial(root, "20261121").expect("makes");
        fs::create_dir(root.join("lost+found")).expect("makes");
        fs::create_dir(root.join("20261122")).expect("makes");
        let seen: Vec<(String, &str)> = list(root)
            .expect("lists")
            .iter()
            .map(|set| (set.label.clone(), set.condition.as_str()))
            .collect();
        let expected = [
            ("20261122", "damaged"),
            ("20261121", "incomplete"),
            ("20261120-2", "verified"),
            ("20261120", "damaged"),
            ("20261119", "verified"),
        ];
        assert_eq!(
            seen,
            expected.map(|(label, state)| (label.to_owned(), state))
        );
        assert_eq!(
            choose(Kind::Restore, root, "", 0).expect("the latest"),
            "20261120-2"
        );
        let pruned = prunable(&list(root).expect("lists"), 1);
        assert_eq!(pruned, ["20261119", "20261120"]);
    }

    #[test]
    fn a_backup_knows_what_an_earlier_life_of_it_has_made() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        assert_eq!(made(root, "20261121", "t"), None);
        make_partial(root, "20261121").expect("makes");
        assert_eq!(made(root, "20261121", "t"), None, "it came to no end");
        set(root, "20261121", b"abc");
        let found = made(root, "20261121", "t").expect("it is there");
        assert_eq!(found.rows(), 3);
        assert_eq!(made(root, "20261121", "another"), None);
        // Made once more it would have no name to get.
        make_partial(root, "20261121").expect("makes");
        fs::write(root.join("20261121.partial/x"), b"x").expect("writes");
        complete(root, "20261121").expect_err("there is one");
    }

    #[test]
    fn the_last_good_set_is_never_pruned() {
        let root = tempfile::tempdir().expect("a directory");
        set(root.path(), "20200101", b"x");
        make_partial(root.path(), "20261121").expect("makes");
        assert!(prunable(&list(root.path()).expect("lists"), 0).is_empty());
        remove(root.path(), "20200101").expect("removes");
        assert!(prunable(&list(root.path()).expect("lists"), 0).is_empty());
        assert_eq!(list(root.path()).expect("lists").len(), 1);
    }

    #[test]
    fn labels() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        assert_eq!(
            choose(Kind::Backup, root, "20261121", 0).expect("free"),
            "20261121"
        );
        set(root, "20261121", b"x");
        assert_eq!(
            choose(Kind::Backup, root, "20261121", 0).expect("free"),
            "20261121-2"
        );
        assert_eq!(choose(Kind::Backup, root, "", 0).expect("free"), "19700101");
        for bad in [
            "2026",
            "20261301",
            "../../etc",
            "20261121-0",
            "20261121-2/..",
            "today",
            "２０２６１１２１",
        ] {
            let problem = choose(Kind::Backup, root, bad, 0).expect_err(bad);
            assert_eq!(problem.code, "invalid-argument", "{bad}");
        }
        let problem = choose(Kind::Restore, root, "20261122", 0).expect_err("unknown");
        assert_eq!(
            (problem.code.as_str(), problem.hint.as_str()),
            ("unknown-backup", "did you mean 20261121?")
        );
    }
}
