//! Exit codes of `kv-server`; scripts and supervisors hold us to them.

use std::process::ExitCode;

/// How a program of this crate ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Code(pub u8);

/// Stopped as asked, or done.
pub const DONE: Code = Code(0);
/// Refused to start; for the demo: a step failed.
pub const REFUSED: Code = Code(1);
/// Wrong usage, or a wrong configuration.
pub const USAGE: Code = Code(2);
/// Stopped itself: a sync, the disk or the storage failed.
pub const FAILED: Code = Code(3);

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.0)
    }
}
