//! What the fleet should have.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_proto::fleet::v1::{Advice, Proposal};

use super::time;
use crate::{
    paint::{Paint, clean},
    ui::Report,
};

/// `advise -o json`.
#[derive(Debug, Clone, Serialize)]
pub struct AdviceView {
    proposals: Vec<ProposalView>,
    notes: Vec<String>,
    unknown: Vec<String>,
    may_act: Vec<String>,
    acted_at: Option<String>,
    at: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct ProposalView {
    kind: String,
    object: String,
    from: u32,
    to: u32,
    urgency: String,
    summary: String,
    reasons: Vec<String>,
    command: String,
}

impl From<Proposal> for ProposalView {
    fn from(proposal: Proposal) -> Self {
        let Proposal {
            kind,
            object,
            from,
            to,
            urgency,
            summary,
            reasons,
            command,
        } = proposal;
        Self {
            kind,
            object,
            from,
            to,
            urgency,
            summary,
            reasons,
            command,
        }
    }
}

impl From<Advice> for AdviceView {
    fn from(advice: Advice) -> Self {
        Self {
            proposals: advice.proposals.into_iter().map(Into::into).collect(),
            notes: advice.notes,
            unknown: advice.unknown,
            may_act: advice.may_act,
            acted_at: time(advice.acted_at),
            at: time(advice.at),
        }
    }
}

impl AdviceView {
    /// Whether nothing is proposed.
    pub fn is_empty(&self) -> bool {
        self.proposals.is_empty()
    }
}

impl Report for AdviceView {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        let mut text = String::new();
        if self.is_empty() {
            text.push_str("nothing to change\n");
        }
        for proposal in &self.proposals {
            let urgency = match proposal.urgency.as_str() {
                "now" => paint.bad("now"),
                "soon" => paint.warn("soon"),
                other => paint.dim(other),
            };
            let pad = " ".repeat(6_usize.saturating_sub(proposal.urgency.len()));
            let summary = clean(&proposal.summary, false);
            let _ = writeln!(text, "{urgency}{pad}{summary}");
            for reason in &proposal.reasons {
                let _ = writeln!(text, "      - {}", clean(reason, false));
            }
            let _ = writeln!(text, "      $ {}", clean(&proposal.command, false));
        }
        for (title, lines) in [("Besides", &self.notes), ("Not known", &self.unknown)] {
            if lines.is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n{title}:");
            for line in lines {
                let _ = writeln!(text, "  - {}", clean(line, false));
            }
        }
        if !self.may_act.is_empty() {
            let acts = self.may_act.join(" and ");
            let last = self
                .acted_at
                .as_ref()
                .map_or_else(String::new, |at| format!("; it last did at {at}"));
            let _ = writeln!(text, "\nThe fleet may {acts} by itself{last}.");
        }
        text
    }

    fn names(&self) -> Vec<String> {
        let all = self.proposals.iter();
        all.map(|proposal| proposal.kind.clone()).collect()
    }
}
