//! The binary of `kvctl`. Everything is in [`kv_client::kvctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_client::kvctl::main()
}
