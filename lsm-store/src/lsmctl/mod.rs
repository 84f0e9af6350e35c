//! `lsmctl`: a store's files from a terminal or a script.
//!
//! * `stats` and `dump` say what is in a store, a manifest, a table or a log segment; `verify` checks all of it. They
//!   only read, but for the lock that keeps others from changing the store meanwhile.
//! * `bench` runs the workloads known as `db_bench`; `repair` saves what is left of a damaged store into a new one.
//!
//! It is a module of the library, behind the feature `lsmctl`, because it looks at formats that the public API does
//! not show; the binary is a call of [`main`]. Keys and values are shown only where they are asked for.
//!
//! Exit codes: 0 done, 1 damage found or data lost, 2 wrong usage, 3 the operation failed (no such store, locked, I/O).

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program's module: it prints")]

mod bench;
mod dump;
mod repair;
mod stats;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};

use crate::error::{Error, IoContext, Result};
use crate::manifest::current::{Listing, manifest_path};
use crate::manifest::file::{self, FIRST_RECORD, Header};
use crate::manifest::state::ManifestState;
use crate::store::recovery::lock;
use crate::vfs::{RealVfs, Vfs, VfsLock};

/// Looks at, checks, measures and saves stores of `lsm-store`.
#[derive(Debug, Parser)]
#[command(name = "lsmctl", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a store consists of: partitions, levels, sizes, floors, position
    Stats {
        /// The store's directory
        dir: PathBuf,
        /// How to print
        #[arg(short, long, default_value = "plain")]
        output: Format,
    },
    /// The content of one file: a manifest, a table (.sst) or a log segment (.wal)
    Dump {
        /// The file; of a directory, the manifest in force
        path: PathBuf,
        /// Show keys too, values too, or neither
        #[arg(long, default_value = "none")]
        show: Show,
        /// Stop after this many entries or records
        #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
        limit: u64,
    },
    /// Check every byte of a store that is not open: checksums, order, bounds, counts, filters, levels, log
    ///
    /// Prints a line per finding and goes on. Exit code 1 if there is any.
    Verify {
        /// The store's directory
        dir: PathBuf,
        /// How to print
        #[arg(short, long, default_value = "plain")]
        output: Format,
    },
    /// Run the workloads known as `db_bench` on a store of their own, and print a line each
    Bench(bench::Asked),
    /// Save what can be read of a damaged store into a new one, and say what is lost
    ///
    /// The damaged store is not changed. In the ranges reported as lost, newer values and deletes are
    /// missing, so older values may come back there: another copy of the store is always better.
    /// Without a readable manifest the tables tell what the store was, and keys that were deleted may be back.
    /// Exit code 1 if anything is lost.
    Repair {
        /// The damaged store's directory
        dir: PathBuf,
        /// Where the new store goes: a directory that is not there, or empty
        to: PathBuf,
        /// Says that losses are acceptable; nothing is done without it
        #[arg(long, required = true)]
        accept_loss: bool,
        /// The store's id, if no manifest says it
        #[arg(long, value_name = "ID", requires = "partition")]
        store_id: Option<u128>,
        /// A partition of the store, if no manifest says them; once for each, in their order. NAME keeps all
        /// versions, NAME:newest only the newest
        #[arg(long, value_name = "NAME", requires = "store_id")]
        partition: Vec<String>,
        /// Show the keys that bound what is lost
        #[arg(long)]
        keys: bool,
        /// How to print
        #[arg(short, long, default_value = "plain")]
        output: Format,
    },
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// For eyes
    Plain,
    /// One JSON object
    Json,
}

/// What of an entry is shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
enum Show {
    /// Sequence numbers, kinds and sizes
    None,
    /// Keys too
    Keys,
    /// Keys and values
    Values,
}

/// How a command ended, when nothing failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Sound,
    Damaged,
}

/// Runs the program with the process's own arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let vfs: Arc<dyn Vfs> = Arc::new(RealVfs::new());
    let ended = match cli.command {
        Command::Stats { dir, output } => stats::run(&*vfs, &dir, output),
        Command::Dump { path, show, limit } => dump::run(&*vfs, &path, show, limit),
        Command::Verify { dir, output } => verify::run(&vfs, &dir, output),
        Command::Bench(asked) => return bench::run(asked),
        Command::Repair { dir, to, accept_loss: _, store_id, partition, keys, output } => {
            repair::run(vfs, (&dir, &to), store_id.map(|id| (id, partition)), keys, output)
        }
    };
    match ended {
        Ok(Outcome::Sound) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(1),
        Err(error @ Error::Corruption { .. }) => {
            eprintln!("damaged: {error}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(3)
        }
    }
}

/// A store that nobody has open, and what its manifest says.
#[derive(Debug)]
struct Closed {
    dir: PathBuf,
    manifest: PathBuf,
    header: Header,
    state: ManifestState,
    /// Held as long as the store is looked at.
    _lock: Box<dyn VfsLock>,
}

impl Closed {
    /// Locks the store in `dir` and reads its manifest.
    fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Self> {
        let listing = Listing::read(vfs, dir)?;
        let Some((_, number)) = listing.current() else {
            let detail =
                format!("there is no store in {}: no CURRENT.* names a manifest", dir.display());
            return Err(Error::InvalidArgument(detail));
        };
        let guard = lock(vfs, dir)?;
        let manifest = manifest_path(dir, number);
        let header = Header::read(&first_bytes(vfs, &manifest, FIRST_RECORD)?, &manifest)?;
        let state = file::read(vfs, &manifest, header.store_id, number)?;
        Ok(Self { dir: dir.to_path_buf(), manifest, header, state, _lock: guard })
    }
}

/// The first bytes of a file, as far as it has them.
fn first_bytes(vfs: &dyn Vfs, path: &Path, bytes: u64) -> Result<Vec<u8>> {
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let mut head = vec![0; usize::try_from(len.min(bytes)).unwrap_or(0)];
    file.read_exact_at(&mut head, 0).context("read", path)?;
    Ok(head)
}

/// Bytes for eyes: as text where that is possible, with the rest escaped.
fn readable(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// The names in a directory, sorted; none if it is not there.
fn names(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<PathBuf>> {
    if !vfs.exists(dir).context("look for", dir)? {
        return Ok(Vec::new());
    }
    let mut names = vfs.list(dir).context("list", dir)?;
    names.sort();
    Ok(names)
}
