//! The tables. Speed first, with ours against the best of the others; then what it costs.

use std::collections::BTreeMap;
use std::fs;

use lsm_store::bench::Outcome;
use serde_json::Value;

use crate::Options;
use crate::sets::Set;

/// A row during which others used this share of the machine or more is marked.
const DISTURBED: f64 = 0.12;
/// Rows that are durations, not rates.
const DURATIONS: [&str; 3] = ["compact", "reopen", "recover"];
const OURS: &str = "lsm-store";

/// One measurement, or the median of several.
#[derive(Clone, Debug)]
struct Cell {
    members: BTreeMap<String, f64>,
}

impl Cell {
    fn get(&self, name: &str) -> f64 {
        self.members.get(name).copied().unwrap_or(0.0)
    }

    /// Seconds of an operation.
    fn cost(&self) -> f64 {
        self.get("seconds") / self.get("operations").max(1.0)
    }

    fn speed(&self, row: &str) -> String {
        let mark = if self.get("other_cpu") >= DISTURBED { "~" } else { "" };
        if self.get("lost") > 0.0 {
            return format!("lost {}{mark}", self.get("lost"));
        }
        if DURATIONS.contains(&row) {
            return format!("{:.1} ms{mark}", self.get("seconds") * 1e3);
        }
        let rate = self.get("operations_per_second");
        let rate = match rate {
            rate if rate >= 1e6 => format!("{:.2}M", rate / 1e6),
            rate if rate >= 1e5 => format!("{:.0}k", rate / 1e3),
            rate => format!("{:.1}k", rate / 1e3),
        };
        format!("{rate}{mark} (p99 {:.3})", Rounded(self.get("p99_us")))
    }
}

/// Three digits that matter.
struct Rounded(f64);

impl std::fmt::Display for Rounded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            value if value >= 100.0 => write!(f, "{value:.0}"),
            value if value >= 10.0 => write!(f, "{value:.1}"),
            value => write!(f, "{value:.2}"),
        }
    }
}

/// All measurements, by set, row and engine.
#[derive(Debug, Default)]
pub(crate) struct Results(BTreeMap<(String, String, String), Vec<Cell>>);

impl Results {
    pub(crate) fn add(&mut self, row: &Value) -> Outcome<()> {
        let text = |name: &str| row[name].as_str().map(str::to_owned).ok_or("a row without a name");
        let place = (text("set")?, text("workload")?, text("engine")?);
        let members = row.as_object().into_iter().flatten();
        let members =
            members.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
        self.0.entry(place).or_default().push(Cell { members });
        Ok(())
    }

    /// The median by time for an operation; of an even number the better one, which is the harder one to beat.
    fn median(&self, set: &str, row: &str, engine: &str) -> Option<Cell> {
        let place = (set.to_owned(), row.to_owned(), engine.to_owned());
        let mut cells = self.0.get(&place)?.clone();
        cells.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
        let middle = (cells.len() - 1) / 2;
        Some(cells.swap_remove(middle))
    }

    /// Ours against the best of the others that lost nothing: above 1 is faster.
    fn ratio(&self, set: &str, row: &str, engines: &[String]) -> Option<(f64, String)> {
        let ours = self.median(set, row, OURS)?;
        let best = engines
            .iter()
            .filter(|engine| *engine != OURS)
            .filter_map(|engine| Some((self.median(set, row, engine)?, engine.clone())))
            .filter(|(cell, _)| cell.get("lost") == 0.0)
            .min_by(|a, b| a.0.cost().total_cmp(&b.0.cost()))?;
        Some((best.0.cost() / ours.cost(), best.1))
    }

    pub(crate) fn print_set(&self, set: &Set, engines: &[String]) {
        let engines: Vec<String> =
            engines.iter().filter(|engine| set.has(engine)).cloned().collect();
        println!("\n### {}: {}\n", set.name, set.title);
        println!("operations a second (99th percentile in microseconds)\n");
        header(&engines, "ours / best other");
        for row in set.rows() {
            let cells = engines.iter().map(|engine| {
                self.median(set.name, row, engine).map_or("-".to_owned(), |cell| cell.speed(row))
            });
            let cells: Vec<String> = cells.collect();
            if cells.iter().all(|cell| cell == "-") {
                continue;
            }
            let ratio = self
                .ratio(set.name, row, &engines)
                .map_or("-".to_owned(), |(ratio, best)| format!("**{ratio:.2}** ({best})"));
            println!("| {row} | {} | {ratio} |", cells.join(" | "));
        }
        println!();
        header(&engines, "");
        for row in set.rows() {
            self.print_costs(set, row, &engines);
        }
    }

    /// Lines of the second table for a row.
    fn print_costs(&self, set: &Set, row: &str, engines: &[String]) {
        let line = |what: &str, member: &str, scale: f64, digits: usize| {
            let cells = engines.iter().map(|engine| match self.median(set.name, row, engine) {
                Some(cell) if cell.get(member) > 0.0 => {
                    format!("{:.digits$}", cell.get(member) / scale)
                }
                _ => "-".to_owned(),
            });
            let cells: Vec<String> = cells.collect();
            if cells.iter().any(|cell| cell != "-") {
                println!("| {row}: {what} | {} | |", cells.join(" | "));
            }
        };
        if !DURATIONS.contains(&row) {
            line("CPU µs/op, settled", "cpu_us_per_operation", 1.0, 2);
            line("p50 µs", "p50_us", 1.0, 2);
            line("p99.9 µs", "p999_us", 1.0, 1);
            line("max ms", "max_us", 1e3, 1);
        }
        line("bytes written / bytes given, settled", "write_amplification", 1.0, 2);
        line("peak memory MiB", "peak_memory_bytes", f64::from(1 << 20), 0);
        if row.starts_with("fill") || row == "compact" || row == "overwrite" {
            line("disk MB", "disk_bytes", 1e6, 0);
        }
        line("writes/s beside", "writes_per_second", 1.0, 0);
    }

    /// How many rows are level with the best of the others, ahead of it by 1.3, or behind.
    pub(crate) fn print_verdict(&self, sets: &[Set], engines: &[String]) {
        let mut behind = Vec::new();
        let (mut rows, mut level, mut ahead) = (0, 0, 0);
        for set in sets {
            for row in set.rows() {
                let Some((ratio, best)) = self.ratio(set.name, row, engines) else { continue };
                rows += 1;
                level += usize::from(ratio >= 1.0);
                ahead += usize::from(ratio >= 1.3);
                if ratio < 1.0 {
                    behind.push(format!("{}/{row} {ratio:.2} ({best})", set.name));
                }
            }
        }
        println!(
            "\n{rows} rows: {level} at least level with the best other engine, {ahead} of them ahead by 1.3 or more, \
             {} behind: {}",
            behind.len(),
            if behind.is_empty() { "none".to_owned() } else { behind.join(", ") }
        );
    }
}

fn header(engines: &[String], last: &str) {
    println!("| | {} | {last} |", engines.join(" | "));
    println!("|---|{}---|", "---|".repeat(engines.len()));
}

/// What was measured, and where.
pub(crate) fn environment(options: &Options) {
    let lock = include_str!("../../../Cargo.lock");
    let version = |name: &str| {
        let found = lock.split("[[package]]").find_map(|package| {
            let rest = package.trim_start().strip_prefix(&format!("name = \"{name}\"\n"))?;
            rest.lines().next()?.strip_prefix("version = ").map(|v| v.trim_matches('"').to_owned())
        });
        found.unwrap_or_default()
    };
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    println!(
        "{} cores,{}; Linux {}; huge pages for malloc: {}",
        std::thread::available_parallelism().map_or(1, usize::from),
        model.map_or("", |model| model.trim_start_matches([' ', '\t', ':'])),
        read("/proc/sys/kernel/osrelease").trim(),
        if options.thp { "yes" } else { "no" },
    );
    println!(
        "librocksdb-sys {}, fjall {}, leveldb-rs-binding {}, redb {}; runs {}, keys {}",
        version("librocksdb-sys"),
        version("fjall"),
        version("leveldb-rs-binding"),
        version("redb"),
        options.repeat,
        options.n.map_or("as each set says".to_owned(), |n| n.to_string()),
    );
}
