//! Named fleets: `$XDG_CONFIG_HOME/tanako/config.toml`.
//!
//! ```toml
//! current = "demo"
//!
//! [contexts.demo]
//! socket = "/var/lib/tanako/demo/run/agent.sock"
//! production = false
//!
//! [contexts.prod]
//! addresses = ["10.0.0.1:7400", "10.0.0.2:7400"]
//! identity = "/home/me/.config/tanako/identities/prod"
//! production = true
//! ```
//!
//! Changes keep comments and order, go through a temporary file and a rename, and are serialised by a
//! lock beside the file, so that two runs of `tanakoctl` never lose each other's change.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use toml_edit::{Decor, DocumentMut, Item, Table};

use crate::{
    client::{SYSTEM_SOCKET, Way},
    failure::Failure,
    remote::Remote,
    target::nearest,
};

/// One named fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its name.
    pub name: String,
    /// How its agents are reached.
    pub way: Way,
    /// Whether a mistake here hurts users: stricter confirmations, red colours.
    pub production: bool,
}

/// Where the way that is used was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The context; unset when a socket was given or none is configured.
    pub context: Option<Context>,
    /// How the agent is reached.
    pub way: Way,
}

impl Choice {
    /// The name to show: the context's, or where it leads.
    pub fn label(&self) -> String {
        self.context
            .as_ref()
            .map_or_else(|| self.way.to_string(), |context| context.name.clone())
    }
}

/// The file, read.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    document: DocumentMut,
    /// Comments at the top of the file, up to the blank line that parts them from the first key.
    head: String,
}

impl Config {
    /// `$XDG_CONFIG_HOME/tanako/config.toml`, or the same below `~/.config`.
    pub fn path() -> Result<PathBuf, Failure> {
        base("XDG_CONFIG_HOME", ".config").map(|base| base.join("tanako").join("config.toml"))
    }

    /// Reads the file; a missing one is empty.
    pub fn load() -> Result<Self, Failure> {
        Self::load_from(&Self::path()?)
    }

    fn load_from(path: &Path) -> Result<Self, Failure> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Failure::io(path, "read the configuration", &error)),
        };
        let (head, body) = text.split_at(head_length(&text));
        let document: DocumentMut = body.parse().map_err(|error: toml_edit::TomlError| {
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..head.len() + at).unwrap_or(&text);
            let line = before.matches('\n').count() + 1;
            Failure::new(
                "config",
                format!("{}:{line}", path.display()),
                "the configuration is not TOML",
            )
            .cause(error.message().to_owned())
            .hint("repair that line, or move the file away and add the contexts again")
        })?;
        let config = Self {
            path: path.to_owned(),
            document,
            head: head.to_owned(),
        };
        // Everything that is wrong shows at once, not when that context is used.
        config.contexts()?;
        if config
            .document
            .get("current")
            .is_some_and(|item| item.as_str().is_none())
        {
            return Err(config.wrong("current", "must be the name of a context, in quotes"));
        }
        Ok(config)
    }

    /// All contexts, by name.
    pub fn contexts(&self) -> Result<Vec<Context>, Failure> {
        let Some(item) = self.document.get("contexts") else {
            return Ok(Vec::new());
        };
        let table = item
            .as_table_like()
            .ok_or_else(|| self.wrong("contexts", "must be a table: [contexts.NAME]"))?;
        let mut contexts = table
            .iter()
            .map(|(name, item)| self.context(name, item))
            .collect::<Result<Vec<_>, _>>()?;
        contexts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(contexts)
    }

    fn context(&self, name: &str, item: &Item) -> Result<Context, Failure> {
        let key = |field: &str| format!("contexts.{name}.{field}");
        let table = item
            .as_table_like()
            .ok_or_else(|| self.wrong(&format!("contexts.{name}"), "must be a table"))?;
        let (mut socket, mut addresses, mut identity, mut production) = (None, None, None, false);
        for (field, item) in table.iter() {
            let path = || {
                let path = item.as_str().filter(|path| !path.is_empty());
                path.map(PathBuf::from)
                    .ok_or_else(|| self.wrong(&key(field), "must be a path, in quotes"))
            };
            match field {
                "socket" => socket = Some(path()?),
                "identity" => identity = Some(path()?),
                "addresses" => {
                    let parsed = item.as_array().and_then(|list| {
                        let text = list.iter().map(|one| one.as_str()?.parse().ok());
                        text.collect::<Option<Vec<SocketAddr>>>()
                    });
                    addresses = Some(parsed.filter(|list| !list.is_empty()).ok_or_else(|| {
                        self.wrong(&key(field), "must be a list of IP:PORT, each in quotes")
                    })?);
                }
                "production" => {
                    production = item
                        .as_bool()
                        .ok_or_else(|| self.wrong(&key(field), "must be true or false"))?;
                }
                _ => {
                    let known = ["socket", "addresses", "identity", "production"];
                    let hint = nearest(field, known).map_or_else(
                        || format!("known keys: {}", known.join(", ")),
                        |name| format!("did you mean {name}?"),
                    );
                    return Err(self.wrong(&key(field), "is not known").hint(hint));
                }
            }
        }
        let way = match (socket, addresses, identity) {
            (Some(socket), None, None) => Way::Socket(socket),
            (None, Some(addresses), Some(identity)) => Way::Fleet(Remote {
                addresses,
                identity,
            }),
            (None, None, None) => return Err(self.wrong(&key("socket"), "is missing")),
            (None, Some(_), None) => return Err(self.wrong(&key("identity"), "is missing")),
            (None, None, Some(_)) => return Err(self.wrong(&key("addresses"), "is missing")),
            (Some(_), _, _) => {
                return Err(self.wrong(
                    &key("socket"),
                    "and addresses with identity are two ways; keep one",
                ));
            }
        };
        Ok(Context {
            name: name.to_owned(),
            way,
            production,
        })
    }

    fn wrong(&self, key: &str, message: &str) -> Failure {
        Failure::new(
            "config",
            self.path.display().to_string(),
            format!("{key} {message}"),
        )
        .hint("correct the file by hand; `tanakoctl context add NAME --socket PATH` shows the form")
    }

    /// Name of the current context.
    pub fn current(&self) -> Option<&str> {
        self.document.get("current").and_then(Item::as_str)
    }

    /// The context of that name; a misspelt one is answered with what was probably meant.
    pub fn get(&self, name: &str) -> Result<Context, Failure> {
        let contexts = self.contexts()?;
        if let Some(context) = contexts.iter().find(|context| context.name == name) {
            return Ok(context.clone());
        }
        let failure = Failure::new("unknown-context", name, "there is no such context");
        let names = || contexts.iter().map(|context| context.name.as_str());
        Err(match nearest(name, names()) {
            Some(near) => failure.hint(format!("did you mean {near}?")),
            None if contexts.is_empty() => failure.hint(
                "none is configured: `tanakoctl context add NAME --socket PATH`, or `tanakoctl demo up`",
            ),
            None => failure.hint(format!("known contexts: {}", names().collect::<Vec<_>>().join(", "))),
        })
    }

    /// Adds or replaces a context; says whether that changed anything.
    pub fn put(&mut self, context: &Context) -> bool {
        let contexts = self.document.entry("contexts").or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        let Some(contexts) = contexts.as_table_like_mut() else {
            return false;
        };
        let settings = settings(context);
        if let Some(table) = contexts
            .get_mut(&context.name)
            .and_then(Item::as_table_like_mut)
        {
            let same = |(key, new): &(&str, toml_edit::Value)| {
                let old = table.get(key).and_then(Item::as_value);
                // Comments and spaces do not count; nor does a default that is left out.
                old.map_or(*key == "production" && !context.production, |old| {
                    plain(old) == plain(new)
                })
            };
            let stale: Vec<&str> = WAYS
                .into_iter()
                .filter(|key| table.contains_key(key) && settings.iter().all(|(new, _)| new != key))
                .collect();
            if stale.is_empty() && settings.iter().all(same) {
                return false;
            }
            for key in stale {
                table.remove(key);
            }
            for (key, new) in settings {
                set(table, key, new);
            }
            return true;
        }
        let mut table = Table::new();
        for (key, new) in settings {
            table.insert(key, Item::Value(new));
        }
        contexts.insert(&context.name, Item::Table(table));
        true
    }

    /// Makes a context the current one; none when unset. Says whether that changed anything.
    pub fn set_current(&mut self, name: Option<&str>) -> bool {
        if self.current() == name {
            return false;
        }
        if let Some(name) = name {
            set(self.document.as_table_mut(), "current", name.into());
        } else {
            let key = self.document.key("current");
            let above = key.map(|key| key.leaf_decor().clone());
            self.document.remove("current");
            // It is the first key, so its comments are those of the file.
            self.head.push_str(above.as_ref().map_or("", prefix));
        }
        true
    }

    /// Removes a context, and unsets `current` if it was that; says whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let removed = self
            .document
            .get_mut("contexts")
            .and_then(Item::as_table_like_mut)
            .and_then(|contexts| contexts.remove(name))
            .is_some();
        if removed && self.current() == Some(name) {
            self.set_current(None);
        }
        removed
    }
}

impl Config {
    /// The file's new text.
    fn text(&self) -> String {
        let body = self.document.to_string();
        let body = body.trim_start_matches('\n');
        // A blank line parts the comments from the first key, so that they are found again.
        let parted = self.head.is_empty() || self.head.ends_with("\n\n") || body.is_empty();
        format!("{}{}{body}", self.head, if parted { "" } else { "\n" })
    }
}

/// The keys that say how an agent is reached.
const WAYS: [&str; 3] = ["socket", "addresses", "identity"];

/// What stands in the table of a context.
fn settings(context: &Context) -> Vec<(&'static str, toml_edit::Value)> {
    let mut settings = match &context.way {
        Way::Socket(socket) => vec![("socket", socket.display().to_string().into())],
        Way::Fleet(remote) => {
            let addresses = remote.addresses.iter().map(ToString::to_string);
            vec![
                ("addresses", addresses.collect::<toml_edit::Array>().into()),
                ("identity", remote.identity.display().to_string().into()),
            ]
        }
    };
    settings.push(("production", context.production.into()));
    settings
}

/// A value without its comments.
fn plain(value: &toml_edit::Value) -> String {
    let mut value = value.clone();
    value.decor_mut().clear();
    if let Some(list) = value.as_array_mut() {
        list.iter_mut().for_each(|one| one.decor_mut().clear());
        list.fmt();
    }
    value.to_string()
}

/// Bytes of the comments at the top of a file: up to the last blank line among them, or all of a file
/// of comments alone.
fn head_length(text: &str) -> usize {
    let mut end = 0;
    let mut head = 0;
    for line in text.split_inclusive('\n') {
        match line.trim() {
            "" => head = end + line.len(),
            comment if comment.starts_with('#') => {}
            _ => return head,
        }
        end += line.len();
    }
    end
}

/// Comments and blank lines above a key or table.
fn prefix(decor: &Decor) -> &str {
    decor
        .prefix()
        .and_then(|raw| raw.as_str())
        .unwrap_or_default()
}

/// Sets a value and keeps the comments around the old one.
fn set(table: &mut dyn toml_edit::TableLike, key: &str, new: toml_edit::Value) {
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = new;
            *old.decor_mut() = decor;
        }
        _ => {
            table.insert(key, Item::Value(new));
        }
    }
}

/// Longest wait for another `tanakoctl` that changes the file.
const LOCK_WITHIN: Duration = Duration::from_secs(5);

/// Reads the file, changes it and writes it back, alone. Nothing is written when `change` says that
/// nothing changed.
pub fn update<T>(
    change: impl FnOnce(&mut Config) -> Result<(bool, T), Failure>,
) -> Result<T, Failure> {
    update_at(&Config::path()?, LOCK_WITHIN, change)
}

fn update_at<T>(
    path: &Path,
    patience: Duration,
    change: impl FnOnce(&mut Config) -> Result<(bool, T), Failure>,
) -> Result<T, Failure> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)
        .map_err(|error| Failure::io(directory, "create the directory", &error))?;
    let lock_path = directory.join(".config.lock");
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|error| Failure::io(&lock_path, "open the lock file", &error))?;
    lock_within(&lock, patience).map_err(|error| {
        Failure::io(
            &lock_path,
            "get the lock (another tanakoctl holds it)",
            &error,
        )
    })?;
    let mut config = Config::load_from(path)?;
    let (changed, result) = change(&mut config)?;
    if changed {
        write_atomically(path, config.text().as_bytes(), 0o600)?;
    }
    Ok(result)
}

fn lock_within(file: &fs::File, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10 + fastrand::u64(..20)));
            }
            Err(fs::TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Writes a file so that it is there in full or not at all, also across a power loss. A symbolic link
/// keeps pointing to where it did. An existing file keeps its mode.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().unwrap_or(Path::new("."));
    let mode = fs::metadata(path).map_or(mode, |metadata| metadata.permissions().mode() & 0o777);
    let temporary = directory.join(format!(
        ".{}.{}.{}",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    ));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&temporary)?;
        io::Write::write_all(&mut file, content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        // Best effort: what failed is reported already.
        let _ = fs::remove_file(&temporary);
        Failure::io(path, "write the file", &error)
    })
}

/// `$variable`, or `~/below`. A relative path there is ignored, as the XDG rules want.
pub fn base(variable: &str, below: &str) -> Result<PathBuf, Failure> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute(variable)
        .or_else(|| absolute("HOME").map(|home| home.join(below)))
        .ok_or_else(|| {
            Failure::new(
                "environment",
                "HOME",
                "neither HOME nor the XDG directories are set",
            )
            .hint(format!("set HOME or {variable} to an absolute path"))
        })
}

/// Picks the agent: flags before the environment before the current context before the system's agent.
pub fn choose(socket: Option<&Path>, context: Option<&str>) -> Result<Choice, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let by_socket = |socket: &Path| Choice {
        context: None,
        way: Way::Socket(socket.to_owned()),
    };
    let by_context = |context: Context| Choice {
        way: context.way.clone(),
        context: Some(context),
    };
    if let Some(socket) = socket {
        return Ok(by_socket(socket));
    }
    if let Some(name) = context {
        return Config::load()?.get(name).map(by_context);
    }
    if let Some(socket) = variable("TANAKO_SOCKET_AGENT") {
        return Ok(by_socket(Path::new(&socket)));
    }
    if let Some(name) = variable("TANAKO_CONTEXT") {
        return Config::load()?.get(&name.to_string_lossy()).map(by_context);
    }
    // A service account may have no home; the system's agent is then all there is.
    let Ok(path) = Config::path() else {
        return Ok(by_socket(Path::new(SYSTEM_SOCKET)));
    };
    let config = Config::load_from(&path)?;
    match config.current() {
        Some(name) => config.get(name).map(by_context),
        None => Ok(by_socket(Path::new(SYSTEM_SOCKET))),
    }
}

/// Whether a text can name a context.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let good = !name.is_empty()
        && name.len() <= 40
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if good {
        return Ok(());
    }
    Err(Failure::usage(name, "this cannot name a context")
        .hint("use letters, digits, '-', '_' and '.', at most 40 of them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a busy machine a change takes a while, and others wait for it.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn context(name: &str, socket: &str) -> Context {
        Context {
            name: name.into(),
            way: Way::Socket(socket.into()),
            production: false,
        }
    }

    #[test]
    fn changes_keep_comments_and_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        let text = "# mine\ncurrent = \"b\" # for now\n\n# the second\n[contexts.b]\nsocket = \"/b\" # here\n";
        fs::write(&path, text).expect("written");
        update_at(&path, PATIENCE, |config| {
            assert!(config.put(&context("a", "/a")));
            assert!(!config.put(&context("b", "/b")), "nothing changes");
            assert!(config.put(&context("b", "/b2")));
            Ok((config.set_current(Some("a")), ()))
        })
        .expect("updated");
        let after = fs::read_to_string(&path).expect("read");
        assert_eq!(
            after,
            "# mine\ncurrent = \"a\" # for now\n\n# the second\n[contexts.b]\nsocket = \"/b2\" # here\nproduction = false\n\n[contexts.a]\nsocket = \"/a\"\nproduction = false\n"
        );
        update_at(&path, PATIENCE, |config| Ok((config.remove("a"), ()))).expect("removed");
        let config = Config::load_from(&path).expect("read");
        assert_eq!(config.current(), None);
        assert_eq!(config.contexts().expect("contexts").len(), 1);
        assert!(
            fs::read_to_string(&path)
                .expect("read")
                .contains("# the second")
        );
    }

    #[test]
    fn a_context_changes_from_a_socket_to_addresses_and_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        let remote = Context {
            name: "a".into(),
            way: Way::Fleet(Remote {
                addresses: vec![
                    "10.0.0.1:7400".parse().expect("an address"),
                    "[fd00::1]:7400".parse().expect("an address"),
                ],
                identity: "/i".into(),
            }),
            production: true,
        };
        let put = |context: &Context| {
            update_at(&path, PATIENCE, |config| {
                let changed = config.put(context);
                Ok((changed, changed))
            })
            .expect("updated")
        };
        assert!(put(&context("a", "/a")));
        assert!(put(&remote));
        assert!(!put(&remote), "nothing changes");
        let config = Config::load_from(&path).expect("read");
        assert_eq!(config.get("a").expect("there"), remote);
        let text = fs::read_to_string(&path).expect("read");
        assert!(!text.contains("socket"), "{text}");
        assert!(put(&context("a", "/a")));
        let config = Config::load_from(&path).expect("read");
        assert_eq!(config.get("a").expect("there"), context("a", "/a"));
    }

    #[test]
    fn the_comments_of_the_file_outlive_its_keys() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        let change = |change: fn(&mut Config) -> bool| {
            update_at(&path, PATIENCE, |config| Ok((change(config), ()))).expect("updated");
            fs::read_to_string(&path).expect("read")
        };
        fs::write(&path, "# mine\n").expect("written");
        let text =
            change(|config| config.put(&context("a", "/a")) && config.set_current(Some("a")));
        assert_eq!(
            text,
            "# mine\n\ncurrent = \"a\"\n\n[contexts.a]\nsocket = \"/a\"\nproduction = false\n"
        );
        assert_eq!(change(|config| config.remove("a")), "# mine\n\n");
        let text = change(|config| config.put(&context("a", "/a")));
        assert!(text.starts_with("# mine\n\n[contexts.a]"), "{text}");
        let text = change(|config| config.set_current(Some("a")));
        assert!(text.starts_with("# mine\n\ncurrent = \"a\"\n"), "{text}");
        fs::write(&path, "# mine\n\n# of a\n[contexts.a]\nsocket = \"/a\"\n").expect("written");
        assert_eq!(change(|config| config.remove("a")), "# mine\n\n");
    }

    #[test]
    fn concurrent_changes_are_all_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep").join("config.toml");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    update_at(path, PATIENCE, |config| {
                        Ok((config.put(&context(&format!("c{n}"), "/s")), ()))
                    })
                    .expect("updated");
                });
            }
        });
        let config = Config::load_from(&path).expect("read");
        assert_eq!(config.contexts().expect("contexts").len(), 8);
        assert_eq!(
            fs::metadata(&path).expect("metadata").permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn wrong_files_say_where_and_what() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        for (text, part) in [
            ("current = \"a\n", "config.toml:1"),
            ("[contexts.a]\nsocke = \"/a\"", "did you mean socket?"),
            ("[contexts.a]\n", "socket is missing"),
            ("[contexts.a]\nsocket = 3", "must be a path"),
            ("[contexts.a]\naddresses = [\"10.0.0.1\"]", "IP:PORT"),
            (
                "[contexts.a]\naddresses = [\"10.0.0.1:7400\"]",
                "identity is missing",
            ),
            (
                "[contexts.a]\nsocket = \"/a\"\nidentity = \"/i\"",
                "keep one",
            ),
            ("contexts = 3", "must be a table"),
            ("current = 3", "must be the name"),
            (
                "[contexts.a]\nsocket = \"/a\"\nproduction = \"yes\"",
                "must be true or false",
            ),
        ] {
            fs::write(&path, text).expect("written");
            let failure = Config::load_from(&path).expect_err(text);
            let said = failure.text(crate::paint::Paint::plain());
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn a_misspelt_context_gets_the_one_that_was_meant() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        fs::write(&path, "[contexts.production]\nsocket = \"/p\"").expect("written");
        let config = Config::load_from(&path).expect("read");
        let failure = config.get("prodution").expect_err("misspelt");
        assert_eq!(
            failure.problem.expect("a problem").hint,
            "did you mean production?"
        );
    }
}
