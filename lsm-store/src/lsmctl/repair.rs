//! `repair`: what is left of a damaged store, as a new one.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::{Format, Outcome, first_bytes, readable};
use crate::error::{Error, IoContext, Result};
use crate::journal::scan::{Scanner, Step};
use crate::manifest::current::{Listing, manifest_path};
use crate::manifest::edit::{self, Item};
use crate::manifest::file::{FIRST_RECORD, Header};
use crate::options::{Keep, Mode, Options, PartitionOptions};
use crate::store::Store;
use crate::vfs::Vfs;
use crate::wal;

pub(super) fn run(
    vfs: Arc<dyn Vfs>,
    (dir, to): (&Path, &Path),
    said: Option<(u128, Vec<String>)>,
    keys: bool,
    output: Format,
) -> Result<Outcome> {
    let (store_id, partitions) = match said {
        Some((id, names)) => (id, names.iter().map(|name| partition(name)).collect()),
        None => identity(&*vfs, dir)?,
    };
    let mut options = Options::new(store_id, partitions);
    options.mode = if wal::is_there(&*vfs, dir)? { Mode::Wal } else { Mode::External };
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
                "manifest": salvaged.manifest, "repeated": salvaged.repeated,
            })
        );
    } else {
        if let Some(why) = &salvaged.manifest {
            println!("lost: the manifest: {why}");
            println!(
                "      made from the tables alone: keys that were deleted may be back, history is not kept, and \
                 the position is that of the store's own log, or 0"
            );
            println!("      {} entries were in more than one table", salvaged.repeated);
        }
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
    let whole = salvaged.lost.is_empty() && salvaged.manifest.is_none();
    Ok(if whole { Outcome::Sound } else { Outcome::Damaged })
}

/// The store's id and partitions, by its newest manifest that says them.
fn identity(vfs: &dyn Vfs, dir: &Path) -> Result<(u128, Vec<PartitionOptions>)> {
    for number in Listing::read(vfs, dir)?.manifests.into_iter().rev() {
        match said_by(vfs, &manifest_path(dir, number)) {
            Ok((store_id, partitions)) if !partitions.is_empty() => {
                return Ok((store_id, partitions));
            }
            Ok(_) | Err(Error::Corruption { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let detail = format!(
        "no manifest in {} says whose store it is and what partitions it has: say it by --store-id and --partition",
        dir.display()
    );
    Err(Error::InvalidArgument(detail))
}

/// What a manifest, which may be damaged further on, says first; no partitions if it does not say them.
fn said_by(vfs: &dyn Vfs, path: &Path) -> Result<(u128, Vec<PartitionOptions>)> {
    let header = Header::read(&first_bytes(vfs, path, FIRST_RECORD)?, path)?;
    let file = vfs.open_read(path).context("open", path)?;
    let len = file.len().context("measure", path)?;
    let mut scanner = Scanner::new(file, path, header.epoch, FIRST_RECORD, len);
    let items = match scanner.step()? {
        Step::Record(found) => edit::decode(found.payload).unwrap_or_default(),
        Step::Invalid(_) | Step::End => Vec::new(),
    };
    let partition = |item| {
        let Item::Partition { name, keep, .. } = item else { return None };
        Some(PartitionOptions { name, keep })
    };
    Ok((header.store_id, items.into_iter().filter_map(partition).collect()))
}

/// As named by an operator.
fn partition(said: &str) -> PartitionOptions {
    match said.strip_suffix(":newest") {
        Some(name) => PartitionOptions { name: name.to_owned(), keep: Keep::NewestOnly },
        None => PartitionOptions { name: said.to_owned(), keep: Keep::All },
    }
}
