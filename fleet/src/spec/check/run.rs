//! How processes run: environment, readiness, restarts, stopping, limits, logs. The same keys for
//! bots and for database nodes.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use serde_spanned::Spanned;

use super::{Checker, SpecProblem, raw};
use crate::{
    process::{Limits, LogPolicy, Probe, RestartPolicy, RestartWhen, StopPolicy},
    spec::Run,
};

/// Signals that ask a process to stop and that it can act on.
const STOP_SIGNALS: &[&str] = &["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"];

impl Checker {
    pub(super) fn run(&mut self, raw: raw::Run, worker: bool) -> Run {
        let mut env = BTreeMap::new();
        for (name, value) in raw.env {
            let variable = self.variable(&name);
            if variable.starts_with("TANAKO_") {
                self.refuse(
                    name.span(),
                    format!("{variable} is set by the agent"),
                    "names that start with TANAKO_ cannot be set here; use one of your own",
                );
            }
            let secret = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "API_KEY"]
                .iter()
                .any(|word| variable.to_ascii_uppercase().ends_with(word));
            if secret && !value.is_empty() {
                self.refuse(
                    name.span(),
                    format!("{variable} looks like a secret in clear"),
                    format!("put it into a file of mode 0600 and write secret_env = {{ {variable} = \"/path/of/the/file\" }}"),
                );
            }
            if value.contains('\0') {
                self.refuse(
                    name.span(),
                    format!("the value of {variable} holds a NUL byte"),
                    "remove it",
                );
            }
            env.insert(variable, value);
        }
        let secret_env = raw
            .secret_env
            .into_iter()
            .map(|(name, file)| (self.variable(&name), file.into_inner()))
            .collect();
        let (probe, ready_timeout) = self.ready(raw.ready.as_ref(), worker);
        let watchdog = match &raw.watchdog {
            Some(text) => {
                let silence = self.duration(Some(text), Duration::from_secs(30));
                if silence < Duration::from_secs(2) {
                    self.refuse(
                        text.span(),
                        "a watchdog below 2s would kill healthy processes",
                        "signs of life come once a second; give 10s or more",
                    );
                }
                Some(silence)
            }
            None => worker.then_some(Duration::from_secs(30)),
        };
        Run {
            directory: raw.directory.map(Spanned::into_inner),
            env,
            secret_env,
            probe,
            ready_timeout,
            watchdog,
            restart: self.restart(raw.restart.as_ref()),
            stop: self.stop(raw.stop.as_ref()),
            limits: self.limits(raw.limits.as_ref()),
            logs: self.logs(raw.logs.as_ref()),
        }
    }

    fn ready(&mut self, raw: Option<&Spanned<raw::Ready>>, worker: bool) -> (Probe, Duration) {
        let Some(spanned) = raw else {
            return if worker {
                // A cold bot waits for its turn to IDENTIFY: minutes at max_concurrency 1.
                (Probe::Worker, Duration::from_secs(600))
            } else {
                let after = Duration::from_secs(2);
                (Probe::Started { after }, Duration::from_secs(60))
            };
        };
        let ready = spanned.get_ref();
        let default = if worker { 600 } else { 60 };
        let timeout = self.duration(ready.timeout.as_ref(), Duration::from_secs(default));
        if timeout.is_zero() {
            self.refuse(
                spanned.span(),
                "a readiness timeout of 0 can never be met",
                "give 60s or more",
            );
        }
        let needs = |key: &str, value: Option<&raw::Text>, kind: &str| -> Option<SpecProblem> {
            value.is_some().then(|| {
                SpecProblem::new(
                    value.map_or(0..0, Spanned::span),
                    format!(
                        "`{key}` says nothing for ready.kind = {:?}",
                        ready.kind.get_ref()
                    ),
                    format!("remove it, or set kind = \"{kind}\""),
                )
            })
        };
        let kind = ready.kind.get_ref().as_str();
        let mut extra = Vec::new();
        if kind != "http" {
            extra.extend(needs("url", ready.url.as_ref(), "http"));
            extra.extend(needs("interval", ready.interval.as_ref(), "http"));
        }
        if kind != "log" {
            extra.extend(needs("pattern", ready.pattern.as_ref(), "log"));
        }
        if kind != "started" {
            extra.extend(needs("after", ready.after.as_ref(), "started"));
        }
        self.problems.extend(extra);
        let probe = match kind {
            "worker" => {
                if !worker {
                    self.refuse(
                        ready.kind.span(),
                        "ready.kind = \"worker\" needs a process that speaks the worker socket",
                        "set worker = true if it does, else use kind = \"started\", \"notify\", \"http\" or \"log\"",
                    );
                }
                Probe::Worker
            }
            "notify" => Probe::Notify,
            "http" => {
                let url = self.url(ready.url.as_ref(), &["http://"], "URL to probe");
                if url.is_none() {
                    self.refuse(
                        spanned.span(),
                        "ready.kind = \"http\" needs a url",
                        "add url = \"http://127.0.0.1:PORT/health\"",
                    );
                }
                let interval = self.duration(ready.interval.as_ref(), Duration::from_secs(1));
                Probe::Http {
                    url: url.unwrap_or_default(),
                    interval: interval.max(Duration::from_millis(50)),
                }
            }
            "log" => {
                let pattern = self.pattern(spanned.span(), ready.pattern.as_ref());
                Probe::Log { pattern }
            }
            "started" => {
                let after = self.duration(ready.after.as_ref(), Duration::from_secs(2));
                if after >= timeout {
                    self.refuse(
                        spanned.span(),
                        "ready.after is not shorter than ready.timeout, so it can never become ready",
                        "raise timeout or lower after",
                    );
                }
                Probe::Started { after }
            }
            other => {
                self.refuse(
                    ready.kind.span(),
                    format!("{other:?} is not a kind of readiness"),
                    "use worker, notify, http, log or started",
                );
                Probe::Worker
            }
        };
        (probe, timeout)
    }

    /// The regular expression of a log probe.
    fn pattern(&mut self, place: Range<usize>, pattern: Option<&raw::Text>) -> String {
        let Some(pattern) = pattern else {
            self.refuse(
                place,
                "ready.kind = \"log\" needs a pattern",
                "add pattern = \"Logged in as\"",
            );
            return String::new();
        };
        if let Err(error) = regex::Regex::new(pattern.get_ref()) {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default();
            self.refuse(
                pattern.span(),
                format!(
                    "the pattern is not a regular expression: {}",
                    reason.trim().trim_start_matches("error: ")
                ),
                "escape special characters with \\\\, as in \"ready\\\\.\"",
            );
        }
        pattern.get_ref().clone()
    }

    fn restart(&mut self, raw: Option<&Spanned<raw::Restart>>) -> RestartPolicy {
        let mut policy = RestartPolicy::default();
        let Some(spanned) = raw else { return policy };
        let raw = spanned.get_ref();
        if let Some(when) = &raw.when {
            policy.when = match when.get_ref().as_str() {
                "always" => RestartWhen::Always,
                "on-failure" => RestartWhen::OnFailure,
                "never" => RestartWhen::Never,
                other => {
                    self.refuse(
                        when.span(),
                        format!("{other:?} does not say when to restart"),
                        "use always, on-failure or never",
                    );
                    RestartWhen::Always
                }
            };
        }
        policy.backoff_min = self.duration(raw.backoff_min.as_ref(), policy.backoff_min);
        policy.backoff_max = self.duration(raw.backoff_max.as_ref(), policy.backoff_max);
        policy.reset_after = self.duration(raw.reset_after.as_ref(), policy.reset_after);
        policy.crash_loop_window =
            self.duration(raw.crash_loop_window.as_ref(), policy.crash_loop_window);
        policy.crash_loop_starts = self.at_least_one(
            "crash_loop_starts",
            raw.crash_loop_starts.as_ref(),
            policy.crash_loop_starts,
        );
        if policy.backoff_min > policy.backoff_max {
            self.refuse(
                spanned.span(),
                "restart.backoff_min is longer than restart.backoff_max",
                "swap them, or leave one out",
            );
        }
        policy
    }

    fn stop(&mut self, raw: Option<&raw::Stop>) -> StopPolicy {
        let mut policy = StopPolicy::default();
        let Some(raw) = raw else { return policy };
        if let Some(signal) = &raw.signal {
            let name = signal.get_ref().trim_start_matches("SIG").to_owned();
            if !STOP_SIGNALS.contains(&name.as_str()) {
                self.refuse(
                    signal.span(),
                    format!("{:?} is not a signal that asks to stop", signal.get_ref()),
                    format!(
                        "use one of {}; SIGKILL follows by itself after the grace",
                        STOP_SIGNALS.join(", ")
                    ),
                );
            }
            policy.signal = name;
        }
        policy.grace = self.duration(raw.grace.as_ref(), policy.grace);
        policy
    }

    fn limits(&mut self, raw: Option<&raw::Limits>) -> Limits {
        let Some(raw) = raw else {
            return Limits::default();
        };
        if let Some(cpus) = &raw.cpus
            && !(cpus.get_ref().is_finite() && *cpus.get_ref() >= 0.01)
        {
            self.refuse(
                cpus.span(),
                "cpus must be at least 0.01",
                "0.5 is half of one core, 2 is two cores",
            );
        }
        Limits {
            memory_bytes: raw.memory.as_ref().and_then(|text| {
                let bytes = self.bytes(text)?;
                if bytes < 1 << 20 {
                    self.refuse(
                        text.span(),
                        "no program runs in less than 1 MiB",
                        "give a size such as 512MiB",
                    );
                }
                Some(bytes)
            }),
            cpus: raw.cpus.as_ref().map(|cpus| *cpus.get_ref()),
            open_files: raw.open_files.as_ref().map(|files| {
                if *files.get_ref() < 16 {
                    self.refuse(
                        files.span(),
                        "no program runs with fewer than 16 open files",
                        "give 1024 or more",
                    );
                }
                *files.get_ref()
            }),
            tasks: raw
                .tasks
                .as_ref()
                .map(|_| self.at_least_one("tasks", raw.tasks.as_ref(), 1)),
        }
    }

    fn logs(&mut self, raw: Option<&raw::Logs>) -> LogPolicy {
        let mut policy = LogPolicy::default();
        let Some(raw) = raw else { return policy };
        if let Some(size) = &raw.max_size
            && let Some(bytes) = self.bytes(size)
        {
            if bytes < 64 << 10 {
                self.refuse(
                    size.span(),
                    "logs.max_size must be at least 64KiB",
                    "10MiB is the default",
                );
            }
            policy.max_bytes = bytes;
        }
        if let Some(keep) = &raw.keep {
            if *keep.get_ref() > 1_000 {
                self.refuse(
                    keep.span(),
                    "more than 1000 rotated files are not kept",
                    "raise max_size instead",
                );
            }
            policy.keep = *keep.get_ref();
        }
        policy
    }
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            when: RestartWhen::Always,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            reset_after: Duration::from_secs(60),
            crash_loop_starts: 5,
            crash_loop_window: Duration::from_secs(60),
        }
    }
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self {
            signal: "TERM".to_owned(),
            grace: Duration::from_secs(20),
        }
    }
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            keep: 5,
        }
    }
}
