//! The workloads known as `db_bench` on this store, on a real directory.
//!
//! `cargo bench -p lsm-store --bench db_bench [-- [--keys N] [--value-bytes N] [--cache-mib N] [--seconds N]
//! [--lz4] [--dir DIR] [--json] [WORKLOAD…]]`, where a workload is a name or the beginning of one. Without any, all
//! of them run. `lsm_store::bench` says what each does.

#![expect(clippy::print_stdout, reason = "prints its results")]

use std::path::PathBuf;
use std::time::Duration;

use lsm_store::bench::{Bench, Config, LsmStore, Outcome, Row, Settings, Workload};

fn main() -> Outcome<()> {
    let asked = Asked::from_arguments(std::env::args().skip(1))?;
    let temporary = tempfile::tempdir()?;
    let dir = asked.dir.clone().unwrap_or_else(|| temporary.path().to_owned()).join("store");
    let config = Config { dir, ..asked.config.clone() };
    let mut bench = Bench::<LsmStore>::new(config);
    if !asked.json {
        println!("{}", Row::HEADER);
    }
    for workload in asked.workloads {
        let row = bench.run(workload)?;
        if asked.json {
            println!("{{{}}}", row.json_members());
        } else {
            println!("{}", row.line());
        }
    }
    bench.close()
}

/// The command line.
struct Asked {
    config: Config,
    dir: Option<PathBuf>,
    json: bool,
    workloads: Vec<Workload>,
}

impl Asked {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut asked = Self {
            config: Config {
                dir: PathBuf::new(),
                keys: 200_000,
                value_bytes: 100,
                row_time_max: Duration::from_secs(10),
                seed: 1,
                settings: Settings::default(),
            },
            dir: None,
            json: false,
            workloads: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{argument} needs a value after it"));
            match argument.as_str() {
                "--keys" => asked.config.keys = value()?.parse()?,
                "--value-bytes" => asked.config.value_bytes = value()?.parse()?,
                "--cache-mib" => {
                    asked.config.settings.cache_bytes = value()?.parse::<usize>()? << 20
                }
                "--seconds" => asked.config.row_time_max = Duration::from_secs(value()?.parse()?),
                "--lz4" => asked.config.settings.compressed = true,
                "--dir" => asked.dir = Some(value()?.into()),
                "--json" => asked.json = true,
                // Cargo adds it.
                "--bench" => {}
                name => {
                    let found = Workload::ALL.into_iter().filter(|w| w.name().starts_with(name));
                    let before = asked.workloads.len();
                    asked.workloads.extend(found);
                    if asked.workloads.len() == before {
                        return Err(format!("no workload begins with {name:?}").into());
                    }
                }
            }
        }
        if asked.workloads.is_empty() {
            asked.workloads = Workload::ALL.to_vec();
        }
        Ok(asked)
    }
}
