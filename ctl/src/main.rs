//! `tanakoctl`: see the library for everything.

use std::process::ExitCode;

fn main() -> ExitCode {
    tanakoctl::run(std::env::args_os())
}
