//! `kv-server` for the integration tests: the same function the real binary calls. Built together with
//! the tests, so it is never a stale one.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_server::cli::main()
}
