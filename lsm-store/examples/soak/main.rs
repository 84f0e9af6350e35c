//! Kills a store under load again and again, and checks each time that nothing is lost that was
//! acknowledged.
//!
//! ```text
//! cargo run --release -p lsm-store --example soak -- --seconds 3600 --seed 7 --dir /mnt/scratch
//! ```
//!
//! Without `--dir` a temporary directory is used, which is removed at the end. One line per cycle, and a
//! summary; the first thing that is wrong ends it with a message and leaves the directory as it is.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a program with output")]

mod cycle;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cycle::{Soak, child};

/// Named by the first argument, a process is the one that is to be killed.
const CHILD: &str = "--child";

struct Arguments {
    seconds: u64,
    seed: u64,
    dir: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments { seconds: 60, seed: 1, dir: None };
    let mut words = std::env::args().skip(1);
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse().map_err(|e| format!("{name} {value}: {e}"));
        match name.as_str() {
            "--seconds" => arguments.seconds = number()?,
            "--seed" => arguments.seed = number()?,
            "--dir" => arguments.dir = Some(PathBuf::from(&value)),
            _ => return Err(format!("{name} is unknown; there are --seconds, --seed and --dir")),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, name, dir, seed] = words.as_slice()
        && name == CHILD
    {
        child(dir.as_ref(), seed.parse().unwrap_or(0));
        return ExitCode::FAILURE;
    }
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    };
    let temporary = tempfile::tempdir();
    let (Ok(program), Ok(temporary)) = (std::env::current_exe(), temporary) else {
        eprintln!("cannot make a temporary directory, or find this program");
        return ExitCode::FAILURE;
    };
    let dir = arguments.dir.unwrap_or_else(|| temporary.path().to_owned());
    let again = format!("--seed {}, in {}", arguments.seed, dir.display());
    println!("{again}");
    let start = |dir: &std::path::Path, seed: u64| {
        let mut command = Command::new(&program);
        command.arg(CHILD).arg(dir).arg(seed.to_string());
        command
    };
    let mut soak = Soak::new(dir, arguments.seed);
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    while Instant::now() < end {
        println!("{}", soak.cycle(&start));
    }
    println!("{}", soak.summary());
    ExitCode::SUCCESS
}
