//! A home directory of its own for each test, and the real binary in it.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::fake::{Fake, State, fleet};

/// Far above what any run takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub fake: Fake,
    pub directory: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Everything in one text, for a snapshot.
    pub fn all(&self) -> String {
        format!(
            "exit {}\n--- stdout\n{}--- stderr\n{}",
            self.code
                .map_or_else(|| "by signal".into(), |code| code.to_string()),
            self.stdout,
            self.stderr
        )
    }

    /// The JSON on stdout.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.all()))
    }

    /// The error's JSON on stderr: its last line.
    pub fn error(&self) -> serde_json::Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", self.all()));
        value["error"].clone()
    }
}

impl World {
    /// With a healthy small fleet behind the current context `test`.
    pub fn new() -> Self {
        let world = Self::empty();
        *world.fake.state() = State {
            status: fleet(),
            ..State::default()
        };
        world.fake.serve(&world.socket());
        let socket = world.socket().display().to_string();
        world.config(&format!(
            "current = \"test\"

[contexts.test]
socket = {socket:?}
"
        ));
        world
    }

    /// Without an agent and without a configuration.
    pub fn empty() -> Self {
        Self {
            fake: Fake::default(),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("config/tanako/config.toml")
    }

    pub fn config(&self, text: &str) {
        let path = self.config_path();
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("written");
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let directory = self.directory.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tanakoctl"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", directory)
            .env("XDG_CONFIG_HOME", directory.join("config"))
            .env("XDG_STATE_HOME", directory.join("state"))
            .env("XDG_RUNTIME_DIR", directory)
            .env("TERM", "xterm-256color")
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it off a terminal, to its end.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        finish(self.command(arguments), self.directory.path()).await
    }

    /// The same with one more variable.
    pub async fn run_with(&self, variable: (&str, &str), arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        command.env(variable.0, variable.1);
        finish(command, self.directory.path()).await
    }
}

/// Runs a command to its end; paths of this test are replaced by `DIR`.
pub async fn finish(mut command: Command, directory: &Path) -> Ran {
    let directory = directory.display().to_string();
    tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("a process");
        let read = |mut from: Box<dyn std::io::Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                from.read_to_end(&mut bytes).expect("read");
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let out = read(Box::new(child.stdout.take().expect("piped")));
        let err = read(Box::new(child.stderr.take().expect("piped")));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait().expect("waited") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill().expect("killed");
                    child.wait().expect("reaped");
                    panic!(
                        "it did not end: {:?}\n{}\n{}",
                        command,
                        out.join().expect("out"),
                        err.join().expect("err")
                    );
                }
                None => std::thread::park_timeout(Duration::from_millis(2)),
            }
        };
        Ran {
            code: status.code(),
            stdout: out.join().expect("out").replace(&directory, "DIR"),
            stderr: err.join().expect("err").replace(&directory, "DIR"),
        }
    })
    .await
    .expect("no panic")
}
