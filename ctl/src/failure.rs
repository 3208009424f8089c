//! What is said when a verb fails: a stable code, the object, what happened, why, and what to do; as
//! text, or as one JSON object on stderr with `-o json`.

use std::{fmt::Write as _, io};

use serde::Serialize;
use tanako_proto::fleet::v1::Problem;

use crate::{exit::Exit, paint::Paint};

/// A verb that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What is said; nothing when unset (the reader of stdout went away).
    pub problem: Option<Box<Problem>>,
    /// How the run ends.
    pub exit: Exit,
    /// The same for people with more to look at, such as the lines of a file; replaces the text.
    pub picture: Option<String>,
}

/// How a verb ended.
pub type Outcome = Result<Exit, Failure>;

impl Failure {
    /// A failure with its stable code, the object it is about, and what happened.
    pub fn new(code: &str, object: impl Into<String>, message: impl Into<String>) -> Self {
        Problem::new(code, object, message).into()
    }

    /// A command line that cannot be right.
    pub fn usage(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new("usage", object, message)
    }

    /// A file or directory that could not be used.
    pub fn io(path: impl AsRef<std::path::Path>, doing: &str, error: &io::Error) -> Self {
        let failure = Self::new(
            "io",
            path.as_ref().display().to_string(),
            format!("cannot {doing}"),
        )
        .cause(error.to_string());
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self {
                exit: Exit::Denied,
                ..failure.hint("check owner and mode of the path, or choose another")
            },
            io::ErrorKind::StorageFull => failure.hint("free some space there, then try again"),
            _ => failure,
        }
    }

    /// Ends the run without a word.
    pub fn silent(exit: Exit) -> Self {
        Self {
            problem: None,
            exit,
            picture: None,
        }
    }

    /// Adds why it happened.
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        if let Some(problem) = &mut self.problem {
            problem.cause = cause.into();
        }
        self
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(problem) = &mut self.problem {
            problem.hint = hint.into();
        }
        self
    }

    /// With another exit code than the problem's code leads to.
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Adds a picture that is shown to people instead of the text.
    pub fn picture(mut self, picture: String) -> Self {
        self.picture = Some(picture);
        self
    }

    /// The problem's stable code; empty when silent.
    pub fn code(&self) -> &str {
        self.problem.as_ref().map_or("", |problem| &problem.code)
    }

    /// The text for people, several lines.
    pub fn text(&self, paint: Paint) -> String {
        let Some(problem) = &self.problem else {
            return String::new();
        };
        if let Some(picture) = &self.picture {
            return picture.clone();
        }
        let mut text = paint.bad(&format!("error[{}]", problem.code));
        if problem.object.is_empty() {
            text.push(':');
        } else {
            let _ = write!(text, " {}:", paint.strong(&problem.object));
        }
        let _ = writeln!(text, " {}", problem.message);
        for (label, part) in [("cause", &problem.cause), ("hint", &problem.hint)] {
            for (n, line) in part.lines().enumerate() {
                let label = if n == 0 {
                    format!("{label}:")
                } else {
                    String::new()
                };
                let _ = writeln!(text, "  {label:<6} {line}");
            }
        }
        text
    }

    /// The JSON for scripts, one line.
    pub fn json(&self) -> String {
        self.problem.as_ref().map_or_else(String::new, |problem| {
            let body = ErrorBody {
                error: ProblemView::from(&**problem),
            };
            serde_json::to_string(&body).unwrap_or_default() + "\n"
        })
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self {
            exit: Exit::of(&problem.code),
            problem: Some(Box::new(problem)),
            picture: None,
        }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ProblemView<'a>,
}

/// A problem in the JSON output.
#[derive(Debug, Clone, Serialize)]
pub struct ProblemView<'a> {
    code: &'a str,
    object: &'a str,
    message: &'a str,
    cause: &'a str,
    hint: &'a str,
    retryable: bool,
}

impl<'a> From<&'a Problem> for ProblemView<'a> {
    fn from(problem: &'a Problem) -> Self {
        Self {
            code: &problem.code,
            object: &problem.object,
            message: &problem.message,
            cause: &problem.cause,
            hint: &problem.hint,
            retryable: problem.retryable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_carry_every_part() {
        let failure = Failure::new("conflict", "tanako/3", "another operation runs")
            .cause("restart 17 holds it")
            .hint("wait for it\nor abort it");
        assert_eq!(failure.exit, Exit::Locked);
        assert_eq!(
            failure.text(Paint::plain()),
            "error[conflict] tanako/3: another operation runs\n  cause: restart 17 holds it\n  hint:  wait for it\n         or abort it\n"
        );
        assert_eq!(
            failure.json(),
            "{\"error\":{\"code\":\"conflict\",\"object\":\"tanako/3\",\"message\":\"another operation runs\",\"cause\":\"restart 17 holds it\",\"hint\":\"wait for it\\nor abort it\",\"retryable\":false}}\n"
        );
    }
}
