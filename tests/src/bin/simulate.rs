//! Runs the simulation of the whole cluster: as many seeds as asked, or one again.
//!
//! `simulate --seeds 1000` runs the seeds 0 to 999 on all cores, prints what happened in them and ends
//! with the line `seeds=… violations=… seeds_per_s=…`. A seed that fails is made small first: decisions
//! it can do without are taken back. It is printed with what did not hold, the end of its trace and the
//! command that shows it again; the exit code is then 1. `simulate --seed 42 --trace` prints everything
//! that happens in one run.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::sim::coverage::Coverage;
use tests::sim::decisions::Withheld;
use tests::sim::reduce::reduce;
use tests::sim::{self, Failure, Options, Report};

/// How often progress is printed.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Failures that are made small; further ones are only counted.
const REDUCED_MAX: u64 = 3;

/// Runs the seeded simulation of the whole cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0, conflicts_with = "seed")]
    from: u64,
    /// Run this seed alone
    #[arg(long)]
    seed: Option<u64>,
    /// Take back these decisions of the seed, as the report of a failure says
    #[arg(long, requires = "seed", default_value_t = Withheld::default())]
    without: Withheld,
    /// Print everything that happens
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Go on after a seed that fails
    #[arg(long)]
    keep_going: bool,
    /// Put known bugs back into the core, one after the other, and say who notices each
    #[arg(long, conflicts_with_all = ["seed", "seeds", "from"])]
    mutants: bool,
    /// Threads; as many as there are cores if not given
    #[arg(long)]
    jobs: Option<usize>,
}

type Outcome = (u64, Result<Report, Box<Failure>>);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // What panics is reported with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let done = if arguments.mutants { mutants(&arguments) } else { simulate(&arguments) };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        // Nobody reads any more: that is no failure of a seed, and there is nowhere to say it.
        Err(_closed) => ExitCode::from(2),
    }
}

/// Threads to run on.
fn jobs(arguments: &Arguments) -> usize {
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    arguments.jobs.unwrap_or_else(cores).max(1)
}

/// Hunts all known bugs; returns how many nobody notices.
#[cfg(feature = "mutants")]
fn mutants(arguments: &Arguments) -> io::Result<u64> {
    use raft_core::mutants::Mutant;
    use tests::sim::mutation::{Killer, hunt};

    let out = &mut io::stdout();
    let mut alive = 0;
    for mutant in Mutant::ALL {
        let killer = hunt(mutant, jobs(arguments));
        alive += u64::from(killer == Killer::Nobody);
        writeln!(out, "{:<30}{killer}", format!("{mutant:?}"))?;
    }
    writeln!(out, "mutants={} alive={alive}", Mutant::ALL.len())?;
    Ok(alive)
}

/// Builds this program with the bugs, in a directory of its own, and runs that.
#[cfg(not(feature = "mutants"))]
fn mutants(arguments: &Arguments) -> io::Result<u64> {
    let jobs = jobs(arguments).to_string();
    let status = std::process::Command::new(env!("CARGO"))
        .args(["run", "--release", "-p", "tests", "--bin", "simulate", "--features", "mutants"])
        .args(["--target-dir", "target/mutants", "--", "--mutants", "--jobs", &jobs])
        .status()?;
    Ok(u64::from(!status.success()))
}

/// Runs what was asked; returns how many seeds failed.
fn simulate(arguments: &Arguments) -> io::Result<u64> {
    let (first, count) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.from, arguments.seeds),
    };
    let options = Options {
        withheld: arguments.without.clone(),
        lines: arguments.trace,
        print: arguments.trace,
        ..Options::default()
    };
    let jobs = jobs(arguments);
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let end = first.saturating_add(count);
    // Room for one result of each thread: a slow reader holds the runs back.
    let (results, received) = mpsc::sync_channel::<Outcome>(jobs);
    thread::scope(|scope| {
        for _ in 0..jobs {
            let results = results.clone();
            scope.spawn(|| work(&next, end, &stop, &options, results));
        }
        drop(results);
        let violations = collect(arguments, count, &options, &received);
        stop.store(true, Ordering::Relaxed);
        // Whoever still has a result to hand over is let go.
        drop(received);
        violations
    })
}

fn work(
    next: &AtomicU64,
    end: u64,
    stop: &AtomicBool,
    options: &Options,
    results: mpsc::SyncSender<Outcome>,
) {
    while !stop.load(Ordering::Relaxed) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || results.send((seed, sim::run(seed, options))).is_err() {
            break;
        }
    }
}

/// Takes the results of all runs and prints what they say; returns how many failed.
fn collect(
    arguments: &Arguments,
    count: u64,
    options: &Options,
    received: &mpsc::Receiver<Outcome>,
) -> io::Result<u64> {
    let out = &mut io::stdout();
    let begin = Instant::now();
    let mut printed = begin;
    let (mut coverage, mut violations) = (Coverage::default(), 0);
    let mut running = Duration::ZERO;
    for (seed, result) in received {
        match result {
            Ok(report) => {
                coverage.add(&report);
                if count == 1 {
                    writeln!(out, "seed {seed}: trace hash {:016x}", report.trace_hash)?;
                }
            }
            Err(failure) => {
                violations += 1;
                running = begin.elapsed();
                print_failure(out, &failure, options, violations)?;
                if !arguments.keep_going {
                    break;
                }
            }
        }
        running = begin.elapsed().max(running);
        if printed.elapsed() >= PROGRESS_EVERY {
            printed = Instant::now();
            let done = coverage.passed + violations;
            writeln!(out, "{done} of {count} seeds, {violations} violations, {running:.0?}")?;
        }
    }
    write!(out, "{coverage}")?;
    let done = coverage.passed + violations;
    let per_second = done as f64 / running.as_secs_f64().max(0.001);
    writeln!(out, "seeds={done} violations={violations} seeds_per_s={per_second:.1}")?;
    Ok(violations)
}

fn print_failure(
    out: &mut impl Write,
    failure: &Failure,
    options: &Options,
    number: u64,
) -> io::Result<()> {
    if number > REDUCED_MAX || options.print {
        return writeln!(out, "seed {} fails: {}\n", failure.seed, failure.what);
    }
    writeln!(out, "seed {} fails: {}; it is made small", failure.seed, failure.what)?;
    let reduced = reduce(failure, options);
    let [faults, operations, features] = reduced.left;
    writeln!(
        out,
        "after {} runs it needs {faults} faults, {operations} operations and {features} features\n{}\n",
        reduced.runs, reduced.failure
    )
}
