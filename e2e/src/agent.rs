//! An agent of a test's own, with a `fleet.toml` of the test's own.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{binaries, fleet::text, processes, wait};

/// What every `tanakoctl` of a test is told: a busy machine's agent may answer late.
pub(crate) const PATIENT: [&str; 2] = ["--request-timeout", "60s"];

/// A directory with a `fleet.toml`, and the agent that runs it.
#[derive(Debug)]
pub struct Agent {
    home: TempDir,
    child: Option<Child>,
    nice: i32,
}

impl Agent {
    /// A place for an agent; nothing runs yet. `TANAKO_E2E_KEEP=1` keeps it for a look at its logs.
    pub fn new() -> Self {
        let home = tempfile::Builder::new()
            .prefix("tanako-agent-")
            .disable_cleanup(std::env::var_os("TANAKO_E2E_KEEP").is_some())
            .tempdir()
            .expect("a temporary directory");
        Self {
            home,
            child: None,
            nice: 0,
        }
    }

    /// How the agent, and all that it starts, stand against what else the machine does: -20 first,
    /// 19 last. Where the user may not ask for that, nothing changes.
    pub fn nice(&mut self, nice: i32) {
        self.nice = nice;
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file into the directory and gives its path.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a file in a temporary directory");
        path
    }

    /// The agent's command line, on the given spec.
    pub fn command(&self) -> Command {
        let mut command = Command::new("nice");
        command
            .args(["-n", &self.nice.to_string()])
            .arg(binaries::path("tanako-agent"))
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--spec")
            .arg(self.path("fleet.toml"))
            .args(["--http", "127.0.0.1:0"])
            .env("HOME", self.home.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))
            .expect("a log");
        let child = self.command().stderr(log).stdout(Stdio::null()).spawn();
        self.child = Some(child.expect("the agent starts"));
        wait::until("the agent's answer", 60, || {
            let output = self.ctl(&["status", "-o", "json"]);
            match output.status.code() {
                Some(0 | 10) => Ok(()),
                _ => Err(format!("{}\n{}", text(&output), self.log())),
            }
        });
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// kill -9 of the agent.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `tanakoctl` for this agent.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        Command::new(binaries::path("tanakoctl"))
            .arg("--socket")
            .arg(self.path("run/agent.sock"))
            .args(PATIENT)
            .args(arguments)
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdin(Stdio::null())
            .output()
            .expect("tanakoctl starts")
    }

    /// One process of `status`.
    pub fn process(&self, name: &str) -> Value {
        let [process] = self.processes([name]);
        process
    }

    /// Several processes of one `status`; null where there is none of the name.
    pub fn processes<const N: usize>(&self, names: [&str; N]) -> [Value; N] {
        let output = self.ctl(&["status", "-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let all = status["processes"].as_array().cloned().unwrap_or_default();
        names.map(|name| {
            let found = all.iter().find(|process| process["name"] == name);
            found.cloned().unwrap_or_default()
        })
    }

    /// Waits until a process is in a state, and gives it.
    pub fn until_state(&self, name: &str, state: &str) -> Value {
        wait::until(&format!("{name} to be {state}"), 60, || {
            let process = self.process(name);
            if process["state"] == state {
                Ok(process)
            } else {
                Err(format!("{process}\n{}", self.log()))
            }
        })
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        for (pid, _) in processes::of(self.home.path()) {
            processes::kill(pid);
        }
    }
}
