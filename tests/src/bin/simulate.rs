//! Runs the simulation of the whole cluster: as many seeds as asked, or one again.
//!
//! `simulate --seeds 1000` runs the seeds 0 to 999 and prints what happened in them, in sum. A seed that
//! fails is printed with what did not hold, the end of its trace and the command that shows it again; the
//! exit code is then 1. `simulate --seed 42 --trace` prints everything that happens in one run.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::sim::{self, Failure, Options, Report};

/// How often progress is printed.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Runs the seeded simulation of the whole cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0, conflicts_with = "seed")]
    first: u64,
    /// Run this seed alone
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Go on after a seed that fails
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match simulate(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        // Nobody reads any more: that is no failure of a seed, and there is nowhere to say it.
        Err(_closed) => ExitCode::from(2),
    }
}

/// Runs what was asked; returns how many seeds failed.
fn simulate(arguments: &Arguments) -> io::Result<u64> {
    let out = &mut io::stdout();
    let (first, count) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.first, arguments.seeds),
    };
    let options = Options { lines: arguments.trace, print: arguments.trace, ..Options::default() };
    let begin = Instant::now();
    let mut printed = begin;
    let mut totals = Totals::default();
    for seed in first..first.saturating_add(count) {
        match sim::run(seed, &options) {
            Ok(report) => totals.add(&report),
            Err(failure) => {
                totals.failed += 1;
                print_failure(out, &failure)?;
                if !arguments.keep_going {
                    break;
                }
            }
        }
        if printed.elapsed() >= PROGRESS_EVERY {
            printed = Instant::now();
            writeln!(
                out,
                "{} of {count} seeds, {} failed, {:.0?}",
                totals.passed + totals.failed,
                totals.failed,
                begin.elapsed()
            )?;
        }
    }
    totals.print(out, begin.elapsed())?;
    Ok(totals.failed)
}

fn print_failure(out: &mut impl Write, failure: &Failure) -> io::Result<()> {
    writeln!(out, "{failure}\n")
}

/// What happened in all runs.
#[derive(Debug, Default)]
struct Totals {
    passed: u64,
    failed: u64,
    last_hash: u64,
    events: u64,
    simulated: u64,
    messages: u64,
    messages_lost: u64,
    committed: u64,
    terms_led: u64,
    truncations: u64,
    crashes: u64,
    crashes_in_write: u64,
    failed_syncs: u64,
    pauses: u64,
    cuts: u64,
    other_faults: u64,
    restarts: u64,
    answered: u64,
    no_effect: u64,
    unknown: u64,
    retries: u64,
    forwarded: u64,
    fetches: u64,
    overloaded: u64,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        let counts = &report.counts;
        self.passed += 1;
        self.last_hash = report.trace_hash;
        self.events += report.events;
        self.simulated += report.simulated;
        self.messages += report.messages.0;
        self.messages_lost += report.messages.1;
        self.committed += report.committed;
        self.terms_led += report.terms_led;
        self.truncations += report.truncations;
        self.crashes += counts.crashes;
        self.crashes_in_write += counts.crashes_in_write;
        self.failed_syncs += counts.failed_syncs;
        self.pauses += counts.pauses;
        self.cuts += counts.cuts;
        self.other_faults += counts.other_faults;
        self.restarts += counts.restarts;
        self.answered += counts.answered;
        self.no_effect += counts.no_effect;
        self.unknown += counts.unknown;
        self.retries += counts.retries;
        self.forwarded += counts.forwarded;
        self.fetches += counts.fetches;
        self.overloaded += counts.overloaded;
    }

    fn print(&self, out: &mut impl Write, took: Duration) -> io::Result<()> {
        let Self { passed, failed, .. } = self;
        writeln!(out, "{passed} seeds passed, {failed} failed, in {took:.1?}")?;
        writeln!(
            out,
            "  time simulated {} s, events {}, entries committed {}, terms led {}, logs cut {}",
            self.simulated / 1_000_000,
            self.events,
            self.committed,
            self.terms_led,
            self.truncations
        )?;
        writeln!(
            out,
            "  messages {}, lost {}; links cut {}; slow disks and odd clocks {}",
            self.messages, self.messages_lost, self.cuts, self.other_faults
        )?;
        writeln!(
            out,
            "  crashes {}, of them in a write {}; failed syncs {}; restarts {}; pauses {}",
            self.crashes, self.crashes_in_write, self.failed_syncs, self.restarts, self.pauses
        )?;
        writeln!(
            out,
            "  operations answered {}, without effect {}, unknown {}; repeated {}, forwarded {}, \
             refused for overload {}; fetches {}",
            self.answered,
            self.no_effect,
            self.unknown,
            self.retries,
            self.forwarded,
            self.overloaded,
            self.fetches
        )?;
        writeln!(out, "  trace hash of the last {:016x}", self.last_hash)
    }
}
