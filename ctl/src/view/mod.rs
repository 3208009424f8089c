//! What verbs print: the documented JSON on one side, the table for people on the other, both made from
//! the agent's answers. Fields are only ever added. Times are RFC 3339 in UTC, `null` when unknown.

pub mod advice;
pub mod backup;
pub mod broadcast;
pub mod doctor;
pub mod guild;
pub mod identify;
pub mod operation;
pub mod plan;
pub mod status;
pub mod stream;

use jiff::Timestamp;

pub use advice::AdviceView;
pub use operation::OperationView;
pub use plan::PlanView;
pub use status::StatusView;

use crate::units;

/// A time of the wire for the JSON.
fn time(ms: i64) -> Option<String> {
    units::timestamp(ms).map(|at| at.to_string())
}

/// A wire string that may be unset.
fn text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// `03:00:05`, or with the date when it is not today; `-` when unknown.
pub fn clock(ms: i64, now: i64) -> String {
    let (Some(at), Some(now)) = (units::timestamp(ms), units::timestamp(now)) else {
        return "-".into();
    };
    let full = Timestamp::from_second(at.as_second())
        .unwrap_or(at)
        .to_string();
    let (date, rest) = full.split_once('T').unwrap_or(("", &full));
    let clock = rest.trim_end_matches('Z');
    if now.to_string().starts_with(date) {
        clock.to_owned()
    } else {
        format!("{date} {clock}")
    }
}
