//! The server's binary. Everything is in [`kv_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_server::cli::main()
}
