//! Lines on standard output and standard error.
//!
//! Whoever read them may be gone (a closed pipe, a closed terminal). That is no reason for a server to
//! die, so a failed write is given up without a word; there is nobody left to tell.

use std::io::{self, Write as _};

/// Writes a line for scripts and flushes it, so that a reader of a pipe sees it at once.
pub(super) fn out(line: &str) {
    let mut stdout = io::stdout().lock();
    if writeln!(stdout, "{line}").is_ok() {
        drop(stdout.flush());
    }
}

/// Writes a line for people.
pub(super) fn narrate(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}
