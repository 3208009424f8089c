//! What `tanakoctl doctor` finds.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_proto::fleet::v1::Finding;

use super::text;
use crate::{
    paint::{Paint, clean},
    ui::Report,
};

/// `doctor -o json`.
#[derive(Debug, Serialize)]
pub struct DoctorView {
    healthy: bool,
    findings: Vec<FindingView>,
}

#[derive(Debug, Serialize)]
struct FindingView {
    scope: &'static str,
    /// The host it is about; null = this machine, the fleet, or its only host.
    host: Option<String>,
    severity: String,
    check: String,
    message: String,
    hint: String,
}

impl DoctorView {
    /// Findings about this machine and about the fleet.
    pub fn new(machine: Vec<Finding>, fleet: Vec<Finding>) -> Self {
        let of = |scope: &'static str, findings: Vec<Finding>| {
            findings.into_iter().map(move |finding| FindingView {
                scope,
                host: text(finding.host),
                severity: finding.severity,
                check: finding.check,
                message: finding.message,
                hint: finding.hint,
            })
        };
        let findings: Vec<FindingView> = of("machine", machine).chain(of("fleet", fleet)).collect();
        Self {
            healthy: !findings.iter().any(|finding| finding.severity == "error"),
            findings,
        }
    }

    /// Whether nothing is an error.
    pub fn healthy(&self) -> bool {
        self.healthy
    }
}

impl Report for DoctorView {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        let mut out = String::new();
        let mut heading = String::new();
        for finding in &self.findings {
            let of = match &finding.host {
                Some(host) => format!("host {}", clean(host, false)),
                None => finding.scope.to_owned(),
            };
            if of != heading {
                heading = of;
                let _ = writeln!(out, "{}", paint.strong(&heading));
            }
            let severity = match finding.severity.as_str() {
                "ok" => paint.good("ok     "),
                "warning" => paint.warn("warning"),
                _ => paint.bad("ERROR  "),
            };
            let _ = writeln!(
                out,
                "  {severity}  {:<14} {}",
                finding.check,
                clean(&finding.message, false)
            );
            if finding.severity != "ok" && !finding.hint.is_empty() {
                let _ = writeln!(out, "  {:<24} do: {}", "", clean(&finding.hint, false));
            }
        }
        let many = |severity: &str| {
            self.findings
                .iter()
                .filter(|finding| finding.severity == severity)
                .count()
        };
        let _ = writeln!(
            out,
            "{} ok, {} warnings, {} errors",
            many("ok"),
            many("warning"),
            many("error")
        );
        out
    }

    fn names(&self) -> Vec<String> {
        self.findings
            .iter()
            .filter(|finding| finding.severity != "ok")
            .map(|finding| finding.check.clone())
            .collect()
    }
}
