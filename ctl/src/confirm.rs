//! Whether a change may go on: by how much it hurts, by what was given on the command line, and by
//! whether anybody is there to be asked.

use clap::Args;

use crate::{exit::Exit, failure::Failure, ui::Ui};

/// What was said on the command line about confirmations.
#[derive(Debug, Clone, Default, Args)]
pub struct Consent {
    /// Do not ask before a disruptive change
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Confirm a destructive or production change by the name it would ask for
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<String>,
}

/// How much a change hurts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nobody notices.
    Harmless,
    /// Something is down for a while: y/N.
    Disruptive,
    /// Data or state is gone for good: its name must be typed.
    Destructive,
}

/// A change to confirm.
#[derive(Debug)]
pub struct Change<'a> {
    /// How much it hurts.
    pub severity: Severity,
    /// What happens to what, and how far the damage reaches: a sentence without its full stop.
    pub blast: &'a str,
    /// The name to type when it is destructive.
    pub name: &'a str,
    /// Name of the fleet when that is a production fleet: a disruptive change then needs its name.
    pub production: Option<&'a str>,
}

#[derive(Debug, PartialEq)]
enum Decision {
    Go,
    AskYesNo,
    AskName(String),
    Refuse(Failure),
}

fn decide(change: &Change<'_>, consent: &Consent, asks: bool) -> Decision {
    let name = match (change.severity, change.production) {
        (Severity::Harmless, _) => return Decision::Go,
        (Severity::Disruptive, None) => {
            return if consent.yes || consent.confirm.as_deref() == Some(change.name) {
                Decision::Go
            } else if asks {
                Decision::AskYesNo
            } else {
                Decision::Refuse(refusal(change, "--yes"))
            };
        }
        (Severity::Disruptive, Some(fleet)) => fleet,
        (Severity::Destructive, _) => change.name,
    };
    match &consent.confirm {
        Some(given) if given == name => Decision::Go,
        Some(given) => Decision::Refuse(
            Failure::usage(
                name,
                format!("--confirm={given} does not name what would be changed"),
            )
            .hint(format!("if you are sure: --confirm={name}")),
        ),
        None if asks => Decision::AskName(name.to_owned()),
        None => Decision::Refuse(refusal(change, &format!("--confirm={name}"))),
    }
}

fn refusal(change: &Change<'_>, flag: &str) -> Failure {
    Failure::new(
        "confirmation-required",
        change.name,
        "this needs a confirmation, and there is no terminal to ask on",
    )
    .cause(format!("it {}", change.blast))
    .hint(format!(
        "add {flag} if that is what you want, or look first with --dry-run"
    ))
}

/// Goes on, asks, or refuses.
pub async fn confirm(ui: &Ui, consent: &Consent, change: &Change<'_>) -> Result<(), Failure> {
    let agreed = match decide(change, consent, ui.asks) {
        Decision::Go => true,
        Decision::Refuse(failure) => return Err(failure),
        Decision::AskYesNo => {
            let question = format!("This {}. Go on? [y/N]", change.blast);
            let answer = ui.ask(&question).await?;
            matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes")
        }
        Decision::AskName(name) => {
            let warning = match change.production {
                Some(_) => format!("{} This {}.", ui.err.bad("PRODUCTION."), change.blast),
                None => format!("This {}.", change.blast),
            };
            let question = format!("{warning} Type {} to go on:", ui.err.strong(&name));
            ui.ask(&question).await? == name
        }
    };
    if agreed {
        return Ok(());
    }
    let mut failure = Failure::new(
        "cancelled",
        change.name,
        "not confirmed; nothing was changed",
    );
    failure.exit = Exit::Cancelled;
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(severity: Severity, production: bool) -> Change<'static> {
        Change {
            severity,
            blast: "restarts 4 processes",
            name: "20261121",
            production: production.then_some("live"),
        }
    }

    fn consent(yes: bool, confirm: Option<&str>) -> Consent {
        Consent {
            yes,
            confirm: confirm.map(Into::into),
        }
    }

    fn refused(decision: Decision) -> String {
        match decision {
            Decision::Refuse(failure) => failure.problem.expect("a problem").hint,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn harmless_never_asks() {
        let decision = decide(
            &change(Severity::Harmless, true),
            &consent(false, None),
            true,
        );
        assert_eq!(decision, Decision::Go);
    }

    #[test]
    fn disruptive_asks_or_wants_yes() {
        let change = change(Severity::Disruptive, false);
        assert_eq!(decide(&change, &consent(true, None), false), Decision::Go);
        assert_eq!(
            decide(&change, &consent(false, None), true),
            Decision::AskYesNo
        );
        assert!(refused(decide(&change, &consent(false, None), false)).contains("--yes"));
    }

    #[test]
    fn destructive_wants_the_name_and_yes_is_not_enough() {
        let change = change(Severity::Destructive, false);
        assert_eq!(
            decide(&change, &consent(true, None), true),
            Decision::AskName("20261121".into())
        );
        assert!(
            refused(decide(&change, &consent(true, None), false)).contains("--confirm=20261121")
        );
        assert_eq!(
            decide(&change, &consent(false, Some("20261121")), false),
            Decision::Go
        );
        assert!(
            refused(decide(&change, &consent(true, Some("2026")), true))
                .contains("--confirm=20261121")
        );
    }

    #[test]
    fn production_wants_the_fleets_name_even_for_a_restart() {
        let change = change(Severity::Disruptive, true);
        assert_eq!(
            decide(&change, &consent(true, None), true),
            Decision::AskName("live".into())
        );
        assert!(refused(decide(&change, &consent(true, None), false)).contains("--confirm=live"));
        assert_eq!(
            decide(&change, &consent(false, Some("live")), false),
            Decision::Go
        );
    }
}
