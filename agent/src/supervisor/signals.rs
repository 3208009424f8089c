//! Names of signals.

use rustix::process::Signal;

/// Signals that may be named in a spec or a command.
const KNOWN: [(&str, Signal); 9] = [
    ("TERM", Signal::TERM),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("HUP", Signal::HUP),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("KILL", Signal::KILL),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
];

/// Signals that end processes, besides those above.
const FATAL: [(&str, Signal); 10] = [
    ("ABRT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("ILL", Signal::ILL),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("SEGV", Signal::SEGV),
    ("SYS", Signal::SYS),
    ("TRAP", Signal::TRAP),
    ("XCPU", Signal::XCPU),
];

/// The signal of this name, with or without `SIG`.
pub(super) fn parse(name: &str) -> Option<Signal> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    KNOWN
        .iter()
        .find(|(known, _)| *known == bare)
        .map(|(_, signal)| *signal)
}

/// The name of a signal's number, without `SIG`.
pub(super) fn name(number: i32) -> Option<&'static str> {
    KNOWN
        .iter()
        .chain(&FATAL)
        .find(|(_, signal)| signal.as_raw() == number)
        .map(|(name, _)| *name)
}
