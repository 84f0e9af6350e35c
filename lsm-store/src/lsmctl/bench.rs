//! `bench`: the workloads of [`crate::bench`] from the command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Format;
use crate::bench::{Bench, Config, LsmStore, Outcome, Row, Settings, Workload};

/// What is to be run.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Names of workloads, or the beginnings of names; all of them if none is given
    #[arg(value_parser = beginning)]
    workloads: Vec<String>,
    /// An empty directory for the store; removed at the end [default: a temporary one]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many keys, at least 1000
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1000..))]
    keys: u64,
    /// Length of the values in bytes, at least 16
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(16..))]
    value_bytes: u32,
    /// Block cache in MiB
    #[arg(long, default_value_t = 512)]
    cache_mib: usize,
    /// Longest time of a workload
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Compress with LZ4
    #[arg(long)]
    lz4: bool,
    /// Print the store's metrics at the end, too
    #[arg(long)]
    metrics: bool,
    /// How to print: a table, or an object a line
    #[arg(short, long, default_value = "plain")]
    output: Format,
}

fn matching(start: &str) -> impl Iterator<Item = Workload> {
    Workload::ALL.into_iter().filter(move |workload| workload.name().starts_with(start))
}

fn beginning(start: &str) -> Result<String, String> {
    if matching(start).next().is_some() {
        return Ok(start.to_owned());
    }
    let names: Vec<_> = Workload::ALL.into_iter().map(Workload::name).collect();
    Err(format!("no workload begins so; there are {}", names.join(", ")))
}

pub(super) fn run(asked: Asked) -> ExitCode {
    match measure(asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(3)
        }
    }
}

fn measure(asked: Asked) -> Outcome<()> {
    let process = std::process::id();
    let parent =
        asked.dir.unwrap_or_else(|| std::env::temp_dir().join(format!("lsmctl-{process}")));
    let ours = !parent.exists();
    let dir = parent.join("store");
    if dir.exists() {
        return Err(format!("{} is there already: it would be emptied", dir.display()).into());
    }
    std::fs::create_dir_all(&parent)?;
    let config = Config {
        dir: dir.clone(),
        keys: asked.keys,
        value_bytes: usize::try_from(asked.value_bytes)?,
        row_time_max: Duration::from_secs(asked.seconds),
        seed: 1,
        settings: Settings {
            cache_bytes: asked.cache_mib << 20,
            compressed: asked.lz4,
            ..Settings::default()
        },
    };
    let workloads: Vec<_> = if asked.workloads.is_empty() {
        Workload::ALL.to_vec()
    } else {
        asked.workloads.iter().flat_map(|start| matching(start)).collect()
    };
    let mut bench = Bench::<LsmStore>::new(config);
    if asked.output == Format::Plain {
        println!("{}", Row::HEADER);
    }
    for workload in workloads {
        let row = bench.run(workload)?;
        match asked.output {
            Format::Plain => println!("{}", row.line()),
            Format::Json => println!("{{{}}}", row.json_members()),
        }
    }
    if asked.metrics
        && let Some(engine) = bench.engine()
    {
        let metrics = engine.store().metrics();
        match asked.output {
            Format::Plain => print!("\n{metrics}"),
            Format::Json => println!("{}", serde_json::json!({ "metrics": metrics })),
        }
    }
    bench.close()?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    if ours {
        std::fs::remove_dir(&parent)?;
    }
    Ok(())
}
