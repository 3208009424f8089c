//! What is asked of a fleet of hosts, and how.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;
use tanako_pki::{Authority, Role, Subject};

use super::{AGENT_PORT, HTTP_PORT, Hosts, LIFE};
use crate::{agent::PATIENT, binaries, fleet::text, http, rig, wait};

impl Hosts {
    fn tool(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries::path("tanakoctl"));
        let home = self.lan.directory();
        command
            .arg("--socket")
            .arg(self.run_dir(host).join("agent.sock"))
            .args(PATIENT)
            .args(arguments)
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", home.join("config"))
            .stdin(Stdio::null());
        command
    }

    /// `tanakoctl`, asked of the agent of one host.
    pub fn ctl(&self, host: &str, arguments: &[&str]) -> Output {
        let output = self.tool(host, arguments).output();
        output.expect("tanakoctl starts")
    }

    /// The same, left running.
    pub fn spawn(&self, host: &str, arguments: &[&str]) -> Child {
        let mut command = self.tool(host, arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("tanakoctl starts")
    }

    /// The identity of somebody with this role, in a directory.
    pub fn person(&self, name: &str, role: Role) -> PathBuf {
        let home = self.lan.directory_of(self.issuer()).join("identity");
        let authority = Authority::load(&home).expect("an authority");
        let authority = authority.expect("the first host has its key");
        let directory = self.lan.directory().join(format!("person-{name}"));
        let issued = authority.issue_to(&directory, &Subject::user(name, role), LIFE);
        issued.expect("a certificate");
        directory
    }

    /// `tanakoctl` of that somebody, who has this identity and knows the agent of one host: over the network, from
    /// that host.
    pub fn ctl_as(&self, person: &Path, host: &str, arguments: &[&str]) -> Output {
        let run = |arguments: &[&str]| {
            let mut command = self.lan.host(host).command(binaries::path("tanakoctl"));
            command
                .args(arguments)
                .env("HOME", person)
                .env("XDG_CONFIG_HOME", person)
                .stdin(Stdio::null());
            command.output().expect("tanakoctl starts")
        };
        let address = format!("{}:{AGENT_PORT}", self.lan.address(host));
        let identity = person.to_string_lossy();
        let added = run(&[
            "context",
            "add",
            host,
            "--address",
            &address,
            "--identity",
            &identity,
        ]);
        // Exit 3: it is there already.
        assert!(
            matches!(added.status.code(), Some(0 | 3)),
            "{}",
            text(&added)
        );
        let mut all = vec!["--context", host];
        all.extend(arguments);
        run(&all)
    }

    /// A number among the metrics of a host's agent.
    pub fn metric(&self, host: &str, name: &str) -> Result<f64, String> {
        let url = format!("http://127.0.0.1:{HTTP_PORT}/metrics");
        let page = self.lan.host(host).within(|| http::get(&url));
        let (_, page) = page.map_err(|error| error.to_string())?;
        let mut lines = page.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(of, _)| *of == name);
        let (_, value) = found.ok_or_else(|| format!("no {name} in {page}"))?;
        value.parse().map_err(|_| value.to_owned())
    }

    /// Runs `tanakoctl … -o json` on a host, which must succeed, and gives what it printed.
    pub fn json(&self, host: &str, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let output = self.ctl(host, &all);
        assert!(
            output.status.success(),
            "tanakoctl {} on {host}: {}\n{}",
            all.join(" "),
            text(&output),
            self.story()
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
    }

    /// The fleet as the agent of a host sees it, healthy or not.
    pub fn status_of(&self, host: &str) -> Result<Value, String> {
        let output = self.ctl(host, &["status", "-o", "json"]);
        match output.status.code() {
            Some(0 | 10) => {
                serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
            }
            _ => Err(text(&output)),
        }
    }

    /// The fleet as the first agent sees it that answers.
    pub fn status(&self) -> Result<Value, String> {
        let mut why = "no host runs".to_owned();
        for host in self.living() {
            match self.status_of(&host) {
                Ok(status) => return Ok(status),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Which host each of the bot's processes is on.
    pub fn places(&self) -> BTreeMap<String, String> {
        places(&self.status().expect("a status"))
    }

    /// The shards of the processes on a host.
    pub fn shards_on(&self, host: &str) -> BTreeSet<u64> {
        let status = self.status().expect("a status");
        rig::bots(&status)
            .filter(|process| process["host"] == host)
            .flat_map(|process| process["shards"].as_array().into_iter().flatten())
            .filter_map(|shard| shard["id"].as_u64())
            .collect()
    }

    /// The newest operation of this kind as a host tells it, once it is there and `wanted` of it.
    pub fn operation(
        &self,
        kind: &str,
        what: &str,
        seconds: u64,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        wait::until(&format!("{kind}: {what}"), seconds, || {
            let host = self.living().into_iter().next().expect("a host that runs");
            let operation = rig::newest(kind, |arguments| self.ctl(&host, arguments))?;
            if wanted(&operation) {
                Ok(operation)
            } else {
                Err(format!("{operation:#}\n{}", self.story()))
            }
        })
    }

    /// The newest operation of this kind, once it has ended.
    pub fn ended(&self, kind: &str, seconds: u64) -> Value {
        self.operation(kind, "its end", seconds, rig::has_ended)
    }

    /// Waits until the newest operation of this kind has done what was asked for.
    pub fn until_succeeded(&self, kind: &str, seconds: u64) {
        let operation = self.ended(kind, seconds);
        let story = self.story();
        assert_eq!(operation["state"], "succeeded", "{operation:#}\n{story}");
    }

    /// Waits until a `tanakoctl` that was started with [`Self::spawn`] says that it is done.
    pub fn until_done(&self, command: Child) {
        self.demand_success(&command.wait_with_output().expect("its end"));
    }

    /// `tanakoctl`, which must do what it is asked for.
    pub fn demand(&self, host: &str, arguments: &[&str]) {
        self.demand_success(&self.ctl(host, arguments));
    }

    fn demand_success(&self, output: &Output) {
        let said = text(output);
        assert!(output.status.success(), "{said}\n{}", self.story());
    }
}

/// Which host each of the bot's processes is on, by a status.
pub fn places(status: &Value) -> BTreeMap<String, String> {
    rig::bots(status)
        .map(|process| {
            let text = |field: &str| process[field].as_str().unwrap_or_default().to_owned();
            (text("name"), text("host"))
        })
        .collect()
}
