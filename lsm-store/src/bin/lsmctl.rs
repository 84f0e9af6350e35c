//! The command-line tool; see `lsm_store::lsmctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lsm_store::lsmctl::main()
}
