//! This store and other engines, in one run and by the same workloads (`lsm_store::bench`).
//!
//! `cargo bench -p tests --features peers --bench engines [-- OPTIONS]`; `--help` has the options.
//!
//! * Equal settings: memtable 64 MiB, blocks of 4 KiB, 10 bits of Bloom filter per key, two background threads, the
//!   same cache, the same durability, compression off (except in set `lz4`). What an engine does not have, its file
//!   here says.
//! * Each group of rows runs in a process of its own: this program, started again. So memory, processor time and
//!   bytes written are one engine's alone. Groups take turns: one group on all engines, then the next group.
//! * Every value read is verified in full; a wrong or missing one ends the run.
//! * A row disturbed by other processes, which used 12 % of the machine or more meanwhile, is marked `~`.
//!
//! `sets` says what is measured, `child` measures, `report` prints, the rest are the engines.

mod child;
mod fjall_db;
mod level;
mod redb_db;
mod report;
mod rocks;
mod sets;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;
use lsm_store::bench::Outcome;
use serde_json::Value;

use crate::child::Task;
use crate::report::Results;
use crate::sets::{Group, SETS, Set};

/// All engines, ours first.
const ENGINES: [&str; 5] = ["lsm-store", "rocksdb", "fjall", "leveldb", "redb"];

/// Compares lsm-store with RocksDB, fjall, LevelDB and redb.
#[derive(Parser, Debug)]
pub(crate) struct Options {
    /// Engines to run.
    #[arg(long, value_delimiter = ',', default_values = ENGINES)]
    engines: Vec<String>,
    /// Sets of rows to run: main, kib, c64, lz4, big.
    #[arg(long, value_delimiter = ',', default_values = SETS.map(|set| set.name))]
    sets: Vec<String>,
    /// Rows to run, by name; all of a set if none is given.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Keys of a set with small values; a set of large values gets a fifth. Each set has its own number otherwise.
    #[arg(long)]
    n: Option<u64>,
    /// Runs of everything; the table shows medians.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Longest time of a row in seconds; loading is never cut.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Directory for the stores: on the disk to be measured.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// File for one JSON object per result; they go to the standard output otherwise.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Huge pages for all memory that malloc gives out, for every engine alike.
    #[arg(long)]
    thp: bool,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
    /// What a process of its own is to do.
    #[arg(long, hide = true)]
    child: Option<String>,
}

fn main() -> Outcome<()> {
    let options = Options::parse();
    if let Some(task) = &options.child {
        return child::run(&Task::decode(task)?);
    }
    for engine in &options.engines {
        if !ENGINES.contains(&engine.as_str()) {
            return Err(format!("no engine {engine:?}: there are {}", ENGINES.join(", ")).into());
        }
    }
    let sets: Vec<Set> = options
        .sets
        .iter()
        .map(|name| {
            let found = SETS.into_iter().find(|set| set.name == name);
            found.ok_or_else(|| format!("no set {name:?}").into())
        })
        .collect::<Outcome<_>>()?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&parent)?;
    let directory = tempfile::Builder::new().prefix("engines-").tempdir_in(parent)?;
    let mut run = Run {
        json: options.json.as_ref().map(File::create).transpose()?,
        results: Results::default(),
        directory: directory.path().to_owned(),
        options,
    };
    report::environment(&run.options);
    for set in &sets {
        for round in 0..run.options.repeat {
            run.set(set, round)?;
        }
        run.results.print_set(set, &run.options.engines);
    }
    run.results.print_verdict(&sets, &run.options.engines);
    Ok(())
}

/// A run of everything asked for.
struct Run {
    options: Options,
    json: Option<File>,
    results: Results,
    directory: PathBuf,
}

impl Run {
    fn set(&mut self, set: &Set, round: usize) -> Outcome<()> {
        let groups = set.groups(&self.options.rows);
        let mut engines = self.options.engines.clone();
        // No engine always runs first.
        engines.rotate_left(round % self.options.engines.len());
        for group in &groups {
            for engine in engines.iter().filter(|engine| set.has(engine)) {
                let directory = self.directory.join(format!("{}-{engine}", set.name));
                fs::create_dir_all(&directory)?;
                self.group(set, group, engine, &directory, round)?;
            }
        }
        for engine in &engines {
            let directory = self.directory.join(format!("{}-{engine}", set.name));
            if directory.exists() {
                fs::remove_dir_all(directory)?;
            }
        }
        Ok(())
    }

    fn group(
        &mut self,
        set: &Set,
        group: &Group,
        engine: &str,
        directory: &Path,
        round: usize,
    ) -> Outcome<()> {
        let task = Task {
            engine: engine.to_owned(),
            set: set.name.to_owned(),
            keys: set.keys(self.options.n),
            seconds: self.options.seconds,
            directory: directory.to_owned(),
            group: group.clone(),
            written: 0,
        };
        if !group.recover {
            return self.process(&task, round);
        }
        // The first process ends itself the hard way.
        let task = Task { written: 0, ..task };
        let ended = self.command(&task)?.stderr(Stdio::inherit()).output()?;
        let written = String::from_utf8(ended.stdout)?.trim().parse()?;
        self.process(&Task { written, ..task }, round)
    }

    /// Runs a task in a process of its own and takes its rows.
    fn process(&mut self, task: &Task, round: usize) -> Outcome<()> {
        let mut command = self.command(task)?;
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("the child has no output")?).lines();
        for line in lines {
            let mut row: Value = serde_json::from_str(&line?)?;
            let Some(members) = row.as_object_mut() else { continue };
            let workload = members.get("workload").and_then(Value::as_str).unwrap_or_default();
            if !task.group.shows(workload) {
                continue;
            }
            members.insert("engine".to_owned(), task.engine.clone().into());
            members.insert("set".to_owned(), task.set.clone().into());
            members.insert("round".to_owned(), round.into());
            members.insert("thp".to_owned(), self.options.thp.into());
            match &mut self.json {
                Some(file) => writeln!(file, "{row}")?,
                None => println!("{row}"),
            }
            self.results.add(&row)?;
        }
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("{} in set {}: {status}", task.engine, task.set).into());
        }
        Ok(())
    }

    fn command(&self, task: &Task) -> Outcome<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--child", &task.encode()]);
        if self.options.thp {
            command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
        }
        Ok(command)
    }
}
