//! `repair`: what is left of a damaged store, as a new one.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{Closed, Format, Outcome, readable};
use crate::error::Result;
use crate::options::{Mode, Options};
use crate::store::Store;
use crate::vfs::Vfs;
use crate::wal;

pub(super) fn run(
    vfs: Arc<dyn Vfs>,
    dir: &Path,
    to: &Path,
    keys: bool,
    output: Format,
) -> Result<Outcome> {
    let closed = Closed::read(&*vfs, dir)?;
    let mut options = Options::new(closed.header.store_id, closed.state.partitions.clone());
    options.mode = if wal::is_there(&*vfs, dir)? { Mode::Wal } else { Mode::External };
    // The lock is taken again by what follows.
    drop(closed);
    let salvaged = Store::salvage(vfs, dir, &options, to)?;
    let bounds = |damage: &crate::Damage| {
        keys.then(|| (readable(&damage.smallest), readable(&damage.largest)))
    };
    if output == Format::Json {
        let lost: Vec<_> = salvaged
            .lost
            .iter()
            .map(|damage| {
                let bounds = bounds(damage);
                json!({
                    "partition": damage.partition.0, "file": damage.file, "detail": damage.detail,
                    "smallest": bounds.as_ref().map(|b| &b.0), "largest": bounds.as_ref().map(|b| &b.1),
                })
            })
            .collect();
        println!(
            "{}",
            json!({
                "tables_whole": salvaged.tables_whole, "tables_in_part": salvaged.tables_in_part,
                "tables_lost": salvaged.tables_lost, "entries": salvaged.entries, "lost": lost,
            })
        );
    } else {
        for damage in &salvaged.lost {
            let range =
                bounds(damage).map_or_else(String::new, |(a, b)| format!(" from {a} to {b}"));
            println!(
                "lost: {}{range}: {} ({})",
                damage.partition,
                damage.detail,
                damage.file.display()
            );
        }
        println!(
            "{} tables whole, {} in part, {} lost; {} entries kept in {}",
            salvaged.tables_whole,
            salvaged.tables_in_part,
            salvaged.tables_lost,
            salvaged.entries,
            to.display()
        );
    }
    Ok(if salvaged.lost.is_empty() { Outcome::Sound } else { Outcome::Damaged })
}
