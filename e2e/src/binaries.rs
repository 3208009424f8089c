//! Where the binaries under test are.

use std::path::PathBuf;

/// A binary of the workspace, built in the same profile as this test or program.
///
/// Cargo does not build other packages' binaries for a test; `./test.sh` builds them first, and a
/// missing one says so.
pub fn path(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows where it is");
    // Programs live in <profile>, tests in <profile>/deps.
    let own = test.parent().expect("a program is in a folder");
    let folder = if own.ends_with("deps") {
        own.parent().expect("<profile> is above")
    } else {
        own
    };
    let binary = folder.join(name);
    assert!(
        binary.exists(),
        "{} is not built: run `cargo build --workspace --bins` first",
        binary.display()
    );
    binary
}
