//! Where a demo keeps its things.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{context, exit::Exit, failure::Failure, session::Session};

/// Longest run directory: a unix socket's path has at most 107 bytes, and the agent puts sockets with
/// names of up to 40 bytes below it.
const RUN_DIR_BYTES_MAX: usize = 60;

/// Another `demo up` or `demo down` on the same directory is waited for so long.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A demo's directory and name.
#[derive(Debug, Clone)]
pub struct Place {
    /// Everything is below it.
    pub data_dir: PathBuf,
    /// Name of its context.
    pub context: String,
    /// Whether the name was given, and not taken for granted.
    pub named: bool,
    /// Whether the directory was given.
    pub elsewhere: bool,
}

impl Place {
    /// By `--data-dir` and `--context`; each demo of another name has its own directory.
    pub fn find(session: &Session, data_dir: Option<PathBuf>) -> Result<Self, Failure> {
        let named = session.global.context.clone();
        let context = named.clone().unwrap_or_else(|| "demo".into());
        context::check_name(&context)?;
        let data_dir = data_dir.filter(|path| !path.as_os_str().is_empty());
        let elsewhere = data_dir.is_some();
        let data_dir = if let Some(path) = data_dir {
            std::path::absolute(&path)
                .map_err(|error| Failure::io(&path, "use the data directory", &error))?
        } else {
            let folder = if context == "demo" {
                context.clone()
            } else {
                format!("demo-{context}")
            };
            context::base("XDG_STATE_HOME", ".local/state")?
                .join("tanako")
                .join(folder)
        };
        let data_dir = real(&data_dir);
        Ok(Self {
            data_dir,
            context,
            named: named.is_some(),
            elsewhere,
        })
    }

    /// What to type to do something with this demo.
    pub fn command(&self, verb: &str) -> String {
        let context = if self.named {
            format!(" --context {}", self.context)
        } else {
            String::new()
        };
        let directory = if self.elsewhere {
            format!(" --data-dir {}", self.data_dir.display())
        } else {
            String::new()
        };
        format!("tanakoctl{context} demo {verb}{directory}")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }

    /// What was started.
    pub fn record(&self) -> PathBuf {
        self.at("demo.json")
    }

    /// The fleet's spec.
    pub fn spec(&self) -> PathBuf {
        self.at("fleet.toml")
    }

    /// The bot's token.
    pub fn discord_token(&self) -> PathBuf {
        self.at("discord.token")
    }

    /// The database's token.
    pub fn db_token(&self) -> PathBuf {
        self.at("db.token")
    }

    /// What simcord says about itself.
    pub fn simcord_info(&self) -> PathBuf {
        self.at("simcord.json")
    }

    /// What the agent says about itself.
    pub fn agent_info(&self) -> PathBuf {
        self.at("agent.json")
    }

    /// Output of simcord.
    pub fn simcord_log(&self) -> PathBuf {
        self.at("logs").join("simcord.log")
    }

    /// Output of the agent.
    pub fn agent_log(&self) -> PathBuf {
        self.at("logs").join("agent.log")
    }

    /// The agent's own directory.
    pub fn agent_dir(&self) -> PathBuf {
        self.at("agent")
    }

    /// Backups of the demo's database.
    pub fn backups(&self) -> PathBuf {
        self.at("backups")
    }

    /// Everything of one host of several.
    pub fn host_dir(&self, name: &str) -> PathBuf {
        self.at("hosts").join(name)
    }

    /// Certificate and key with which `tanakoctl` goes to several hosts.
    pub fn admin_identity(&self) -> PathBuf {
        self.at("admin")
    }

    /// Output of a daemon.
    pub fn log(&self, name: &str) -> PathBuf {
        self.at("logs").join(format!("{name}.log"))
    }

    /// Everything a demo makes in its directory, for `down --purge`.
    pub fn contents(&self) -> Vec<PathBuf> {
        let mut contents = vec![
            self.at("hosts"),
            self.admin_identity(),
            self.spec(),
            self.discord_token(),
            self.db_token(),
            self.simcord_info(),
            self.agent_info(),
            self.agent_dir(),
            self.backups(),
            self.at("logs"),
            self.at("run"),
        ];
        // Last: while it is there, an interrupted purge can be repeated.
        contents.push(self.record());
        contents.push(self.at(".lock"));
        contents
    }

    /// Makes the directories, for this user alone.
    pub fn create(&self) -> Result<(), Failure> {
        for directory in [
            &self.data_dir,
            &self.at("logs"),
            &self.agent_dir(),
            &self.backups(),
        ] {
            private_directory(directory)?;
        }
        Ok(())
    }

    /// Lets one `demo up` or `demo down` at a time change something.
    pub async fn lock(&self) -> Result<fs::File, Failure> {
        let path = self.at(".lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| Failure::io(&path, "open the lock file", &error))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(fs::TryLockError::WouldBlock) => {
                    let mut failure = Failure::new(
                        "locked",
                        self.data_dir.display().to_string(),
                        "another `demo up` or `demo down` is at work there",
                    )
                    .hint("wait for it, then try again");
                    failure.exit = Exit::Locked;
                    return Err(failure);
                }
                Err(fs::TryLockError::Error(error)) => {
                    return Err(Failure::io(&path, "lock the file", &error));
                }
            }
        }
    }

    /// Directory for the sockets: below the data directory, or a short one when that is too long.
    pub fn run_dir(&self) -> Result<PathBuf, Failure> {
        let near = self.at("run");
        if near.as_os_str().len() <= RUN_DIR_BYTES_MAX {
            return Ok(near);
        }
        let name = format!("tanako-{:016x}", fingerprint(&self.data_dir));
        let runtime = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute() && path.is_dir())
            .map(|path| path.join(&name))
            .filter(|path| path.as_os_str().len() <= RUN_DIR_BYTES_MAX);
        Ok(runtime.unwrap_or_else(|| {
            Path::new("/tmp").join(format!("{name}-{}", rustix::process::geteuid().as_raw()))
        }))
    }
}

/// The path without symbolic links, also while its last parts do not exist: the same directory must
/// always have the same name, since it is compared with that of processes.
fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(ancestor), path.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            };
        }
    }
    path.to_owned()
}

/// FNV-1a: the same directory gives the same number in every version.
pub fn fingerprint(path: &Path) -> u64 {
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// A directory of mode 0700 that belongs to this user. In a place like /tmp somebody else may have made
/// it first; then it is refused.
pub fn private_directory(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|error| Failure::io(path, "create the directory", &error))?;
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| Failure::io(path, "look at the directory", &error))?;
    if !metadata.is_dir()
        || metadata.uid() != rustix::process::geteuid().as_raw()
        || metadata.mode() & 0o022 != 0
    {
        return Err(Failure::io(
            path,
            "use the directory: it is not this user's own, or others may write to it",
            &io::ErrorKind::PermissionDenied.into(),
        )
        .hint("remove it, or choose another with --data-dir"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn place(data_dir: impl Into<PathBuf>) -> Place {
        Place {
            data_dir: data_dir.into(),
            context: "demo".into(),
            named: false,
            elsewhere: false,
        }
    }

    #[test]
    fn long_directories_get_short_sockets() {
        let short = place("/var/lib/tanako/demo");
        assert_eq!(
            short.run_dir().expect("a directory"),
            short.data_dir.join("run")
        );
        let long = place(format!("/home/{}/demo", "x".repeat(120)));
        let run = long.run_dir().expect("a directory");
        assert!(
            run.as_os_str().len() <= RUN_DIR_BYTES_MAX,
            "{}",
            run.display()
        );
        let other = place(format!("/home/{}/demo", "y".repeat(120)));
        assert_ne!(run, other.run_dir().expect("a directory"));
    }

    #[test]
    fn a_directory_has_one_name_before_and_after_it_is_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let base = fs::canonicalize(directory.path()).expect("a real path");
        fs::create_dir(base.join("there")).expect("made");
        std::os::unix::fs::symlink(base.join("there"), base.join("link")).expect("linked");
        let wanted = base.join("there").join("a").join("b");
        assert_eq!(real(&base.join("link/a/b")), wanted);
        fs::create_dir_all(&wanted).expect("made");
        assert_eq!(real(&base.join("link/a/b")), wanted);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run");
        private_directory(&path).expect("made");
        private_directory(&path).expect("found");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("opened up");
        assert!(private_directory(&path).is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).expect("linked");
        assert!(private_directory(&link).is_err());
    }
}
