//! What is wrong with a spec: every problem with its place, its reason and what to do.

use std::{fmt, ops::Range};

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecProblem {
    /// Bytes of the text it is about.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl SpecProblem {
    pub(super) fn new(
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            span,
            message: message.into(),
            hint: hint.into(),
        }
    }

    pub(super) fn from_toml(error: &toml::de::Error) -> Self {
        let mut message = error.message().trim().replace('\n', "; ");
        let hint = did_you_mean(&message).unwrap_or_else(|| {
            "the keys and their values are described in the README, section fleet.toml".to_owned()
        });
        // The list of everything that could have stood there buries the reason.
        if let Some(list) = message.find(", expected one of ") {
            message.truncate(list);
        }
        Self::new(error.span().unwrap_or(0..0), message, hint)
    }
}

/// The known key nearest to the unknown one in serde's message.
fn did_you_mean(message: &str) -> Option<String> {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    let best = quoted
        .map(|known| (strsim::damerau_levenshtein(wrong, known), known))
        .min()?;
    Some(if best.0 <= 1 + wrong.len() / 3 {
        format!("did you mean `{}`?", best.1)
    } else {
        "remove it, or see the README, section fleet.toml, for the keys that exist".to_owned()
    })
}

/// Why a `fleet.toml` is refused. Shows as `file:line:column: reason` lines, or, through miette, with
/// the source beside it.
#[derive(Debug)]
pub struct SpecError {
    source_text: NamedSource<String>,
    problems: Vec<SpecProblem>,
}

impl SpecError {
    pub(super) fn new(text: &str, file_name: &str, mut problems: Vec<SpecProblem>) -> Self {
        // A span at the very end of the text has nothing to point at; miette would drop its label.
        for problem in &mut problems {
            problem.span.end = problem.span.end.min(text.len());
            problem.span.start = problem.span.start.min(problem.span.end);
        }
        problems.sort_by_key(|problem| problem.span.start);
        Self {
            source_text: NamedSource::new(file_name, text.to_owned()).with_language("toml"),
            problems,
        }
    }

    /// Everything that is wrong, in the order of the text.
    pub fn problems(&self) -> &[SpecProblem] {
        &self.problems
    }

    /// Line and column (both from 1) of a problem.
    pub fn place(&self, problem: &SpecProblem) -> (usize, usize) {
        let before = &self.source_text.inner().as_bytes()[..problem.span.start];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let start = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        (line, before.len() - start + 1)
    }

    /// The first problem's hint, for places that show only one.
    pub fn hint(&self) -> &str {
        self.problems.first().map_or("", |problem| &problem.hint)
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let (line, column) = self.place(problem);
            if index > 0 {
                writeln!(f)?;
            }
            write!(
                f,
                "{}:{line}:{column}: {}",
                self.source_text.name(),
                problem.message
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecError {}

impl Diagnostic for SpecError {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new("invalid-spec"))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let mut hints: Vec<&str> = Vec::new();
        for problem in &self.problems {
            if !hints.contains(&problem.hint.as_str()) {
                hints.push(&problem.hint);
            }
        }
        Some(Box::new(hints.join("\n")))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source_text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.problems.iter().map(|problem| {
            LabeledSpan::new_with_span(Some(problem.message.clone()), problem.span.clone())
        })))
    }
}
