//! `stats`: what the manifest says of a store.

use std::collections::BTreeMap;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{Closed, Format, Outcome, names};
use crate::error::Result;
use crate::manifest::state::ManifestState;
use crate::options::Keep;
use crate::vfs::Vfs;
use crate::wal;

/// What is summed over the tables of a level.
#[derive(Clone, Copy, Default, Debug)]
struct Sum {
    runs: usize,
    tables: usize,
    bytes: u64,
    entries: u64,
    deletes: u64,
    /// Entries that may go now that the floor is where it is.
    garbage: u64,
}

/// Per partition, and per level that has tables.
fn levels(state: &ManifestState) -> BTreeMap<u8, BTreeMap<usize, Sum>> {
    let mut sums: BTreeMap<u8, BTreeMap<usize, Sum>> = BTreeMap::new();
    let mut epochs: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
    for table in state.tables.values() {
        let meta = &table.meta;
        let floor = state.floors.get(usize::from(meta.partition)).copied().unwrap_or(0);
        let sum = sums.entry(meta.partition).or_default().entry(table.level).or_default();
        sum.tables += 1;
        sum.bytes += meta.len;
        sum.entries += meta.entries;
        sum.deletes += meta.deletes;
        sum.garbage += meta.garbage_at(floor);
        let seen = epochs.entry(meta.partition).or_default();
        if table.level > 0 {
            sum.runs = 1;
        } else if !seen.contains(&table.l0_epoch) {
            seen.push(table.l0_epoch);
            sum.runs += 1;
        }
    }
    sums
}

pub(super) fn run(vfs: &dyn Vfs, dir: &Path, output: Format) -> Result<Outcome> {
    let store = Closed::read(vfs, dir)?;
    let log = names(vfs, &wal::directory(dir))?;
    let segments = log.iter().filter(|path| path.extension().is_some_and(|e| e == "wal")).count();
    match output {
        Format::Json => println!("{}", as_json(&store, segments)),
        Format::Plain => print(&store, segments),
    }
    Ok(Outcome::Sound)
}

fn keep(keep: Keep) -> &'static str {
    match keep {
        Keep::All => "all",
        Keep::NewestOnly => "newest",
    }
}

fn as_json(store: &Closed, segments: usize) -> Value {
    let sums = levels(&store.state);
    let partitions: Vec<_> = (0_u8..)
        .zip(&store.state.partitions)
        .map(|(id, partition)| {
            let slot = usize::from(id);
            let levels: Vec<_> = sums
                .get(&id)
                .into_iter()
                .flatten()
                .map(|(level, sum)| {
                    json!({
                        "level": level, "runs": sum.runs, "tables": sum.tables, "bytes": sum.bytes,
                        "entries": sum.entries, "deletes": sum.deletes, "garbage": sum.garbage,
                    })
                })
                .collect();
            json!({
                "id": id, "name": partition.name, "keep": keep(partition.keep),
                "floor": store.state.floors.get(slot), "sequence": store.state.sequences.get(slot),
                "levels": levels,
            })
        })
        .collect();
    json!({
        "store_id": format!("{:032x}", store.header.store_id),
        "manifest": store.manifest.file_name().map(|name| name.to_string_lossy()),
        "position": { "index": store.state.position.index, "term": store.state.position.term },
        "next_file": store.state.next_file.0, "log_segments": segments, "partitions": partitions,
    })
}

fn print(store: &Closed, segments: usize) {
    let state = &store.state;
    println!("store      {:032x}", store.header.store_id);
    println!("manifest   {}", store.manifest.display());
    println!("position   index {} term {}", state.position.index, state.position.term);
    println!("log        {segments} segments");
    let sums = levels(state);
    for (id, partition) in (0_u8..).zip(&state.partitions) {
        let slot = usize::from(id);
        println!(
            "\npartition {id} {:?}: keeps {}, floor {}, sequence {}",
            partition.name,
            keep(partition.keep),
            state.floors.get(slot).copied().unwrap_or(0),
            state.sequences.get(slot).copied().unwrap_or(0),
        );
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["level", "runs", "tables", "bytes", "entries", "deletes", "garbage"]);
        for (level, sum) in sums.get(&id).into_iter().flatten() {
            table.add_row([
                level.to_string(),
                sum.runs.to_string(),
                sum.tables.to_string(),
                sum.bytes.to_string(),
                sum.entries.to_string(),
                sum.deletes.to_string(),
                sum.garbage.to_string(),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
    }
}
