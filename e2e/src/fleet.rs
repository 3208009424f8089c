//! A demo fleet of a test's own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{binaries, http, logs, processes, wait};

/// Seconds a fleet may take to become healthy on a busy machine with unoptimised binaries.
const HEALTHY_S: u64 = 180;

/// A demo fleet in a temporary directory, with a home of its own, so that tests neither see each other
/// nor the user's contexts.
pub struct Fleet {
    home: TempDir,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Fleet {
    /// A place for a fleet; nothing is started.
    pub fn new() -> Self {
        let home = tempfile::Builder::new()
            .prefix("tanako-e2e-")
            .tempdir()
            .expect("a temporary directory");
        Self { home }
    }

    /// A running, healthy demo fleet.
    pub fn up(arguments: &[&str]) -> Self {
        let fleet = Self::new();
        let mut all = vec!["demo", "up"];
        all.extend(arguments);
        let output = fleet.ctl(&all);
        assert!(
            output.status.success(),
            "demo up: {}\n{}",
            text(&output),
            fleet.logs()
        );
        fleet
    }

    /// The demo's data directory.
    pub fn dir(&self) -> PathBuf {
        self.home.path().join("demo")
    }

    /// The home that stands in for the user's.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// `tanakoctl` in this fleet's surroundings, ready to be given arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binaries::path("tanakoctl"));
        command
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("XDG_STATE_HOME", self.home.path().join("state"))
            .env("XDG_RUNTIME_DIR", self.home.path())
            .env("TANAKO_DEMO_DIR", self.dir())
            .env_remove("TANAKO_CONTEXT")
            .stdin(Stdio::null());
        command
    }

    /// Runs `tanakoctl` with these arguments.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.command()
            .args(arguments)
            .output()
            .expect("tanakoctl starts")
    }

    /// Runs `tanakoctl --context demo …`, which must succeed, and gives what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--context", "demo"];
        all.extend(arguments);
        let output = self.ctl(&all);
        assert!(
            output.status.success(),
            "tanakoctl {}: {}\n{}",
            all.join(" "),
            text(&output),
            self.logs()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`Self::ok`], read as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let printed = self.ok(&all);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// Runs `tanakoctl … -o json` as it stands, without a context, which must succeed.
    pub fn json_of(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let output = self.ctl(&all);
        assert!(
            output.status.success(),
            "tanakoctl {}: {}",
            all.join(" "),
            text(&output)
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
    }

    /// `tanakoctl demo info`.
    pub fn info(&self) -> Value {
        let output = self.ctl(&["demo", "info", "-o", "json"]);
        assert!(output.status.success(), "demo info: {}", text(&output));
        serde_json::from_slice(&output.stdout).expect("demo info prints JSON")
    }

    /// `tanakoctl status`, whether the fleet is healthy (exit 0) or not (exit 10).
    pub fn status(&self) -> Result<Value, String> {
        let output = self.ctl(&["--context", "demo", "status", "-o", "json"]);
        match output.status.code() {
            Some(0 | 10) => {
                serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
            }
            _ => Err(text(&output)),
        }
    }

    /// Waits until the fleet is healthy and gives its status.
    pub fn healthy(&self) -> Value {
        wait::until("a healthy fleet", HEALTHY_S, || {
            let status = self.status()?;
            if status["healthy"] == true {
                Ok(status)
            } else {
                Err(format!("{}\n{}", status["reasons"], self.logs()))
            }
        })
    }

    /// What the simulated Discord has counted.
    pub fn account(&self) -> Value {
        let simcord = self.info()["simcord"].as_str().expect("a URL").to_owned();
        http::get_json(&format!("{simcord}/_sim/account")).expect("an account")
    }

    /// A number of the account by its JSON pointer.
    pub fn counted(&self, pointer: &str) -> u64 {
        let account = self.account();
        account
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{pointer} in {account}"))
    }

    /// The last lines of every log below the data directory, for the message of a failed test.
    pub fn logs(&self) -> String {
        logs::tails(&self.dir(), 15)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // First as an operator would, so that a failing test still says what `demo down` thinks.
        if self.dir().exists() {
            let output = self.ctl(&["demo", "down"]);
            if !output.status.success() && !std::thread::panicking() {
                eprintln!("demo down: {}", text(&output));
            }
        }
        for (pid, command) in processes::of(self.home.path()) {
            eprintln!("left over: {pid} {command}");
            processes::kill(pid);
        }
    }
}

/// What a command printed and how it ended.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// pid and attempt of each process of a status, by name.
pub fn pids(status: &Value) -> std::collections::BTreeMap<String, (u64, u64)> {
    let processes = status["processes"].as_array().cloned().unwrap_or_default();
    processes
        .iter()
        .map(|process| {
            (
                process["name"].as_str().unwrap_or_default().to_owned(),
                (
                    process["pid"].as_u64().unwrap_or_default(),
                    process["attempt"].as_u64().unwrap_or_default(),
                ),
            )
        })
        .collect()
}
