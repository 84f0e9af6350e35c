//! Names of the store's files, and the markers that say which manifest is in force.
//!
//! The value of a marker is in its name, so that no content can be torn or zero. A switch is: new
//! manifest complete and synced → directory synced → marker with the next iteration created → directory
//! synced → older markers and manifests unlinked. A crash anywhere leaves the old or the new one in force.

use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};
use crate::types::FileNumber;
use crate::vfs::Vfs;

/// The file that is locked while the store is open.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    dir.join("LOCK")
}

/// The directory of tables.
pub(crate) fn table_dir(dir: &Path) -> PathBuf {
    dir.join("sst")
}

pub(crate) fn table_path(dir: &Path, number: FileNumber) -> PathBuf {
    table_dir(dir).join(format!("{number}.sst"))
}

/// The number of a table's file, if the name is one the store would give.
pub(crate) fn parse_table(path: &Path) -> Option<FileNumber> {
    parse_number(path.file_name()?.to_str()?.strip_suffix(".sst")?)
}

pub(crate) fn manifest_path(dir: &Path, number: FileNumber) -> PathBuf {
    dir.join(format!("MANIFEST-{number}"))
}

pub(crate) fn marker_path(dir: &Path, iteration: u64, number: FileNumber) -> PathBuf {
    dir.join(format!("CURRENT.{iteration:016x}.{number}"))
}

/// The number of a manifest, if the path names one.
pub(crate) fn parse_manifest(path: &Path) -> Option<FileNumber> {
    parse_number(path.file_name()?.to_str()?.strip_prefix("MANIFEST-")?)
}

/// 16 lower-case hexadecimal digits and nothing else.
fn parse_number(text: &str) -> Option<FileNumber> {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if text.len() != 16 || !digits {
        return None;
    }
    u64::from_str_radix(text, 16).ok().map(FileNumber)
}

/// What a directory says about manifests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Listing {
    /// Markers found: iteration and manifest, ascending by iteration.
    pub(crate) markers: Vec<(u64, FileNumber)>,
    /// Manifests found, ascending.
    pub(crate) manifests: Vec<FileNumber>,
}

impl Listing {
    /// Reads the directory.
    pub(crate) fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Self> {
        let mut listing = Self::default();
        for path in vfs.list(dir).context("list", dir)? {
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            if let Some(number) = parse_manifest(&path) {
                listing.manifests.push(number);
            } else if let Some((iteration, number)) =
                name.strip_prefix("CURRENT.").and_then(|rest| rest.split_once('.'))
                && let (Some(iteration), Some(number)) =
                    (parse_number(iteration), parse_number(number))
            {
                listing.markers.push((iteration.0, number));
            }
        }
        listing.markers.sort_unstable();
        listing.manifests.sort_unstable();
        Ok(listing)
    }

    /// The manifest in force.
    pub(crate) fn current(&self) -> Option<(u64, FileNumber)> {
        self.markers.last().copied()
    }
}

/// Puts a complete and synced manifest in force and removes what it replaces. Returns what could not be
/// removed (left for the next open, which tries again).
///
/// # Errors
/// `Io`: it is unknown which manifest is in force.
pub(crate) fn switch(
    vfs: &dyn Vfs,
    dir: &Path,
    iteration: u64,
    number: FileNumber,
) -> Result<usize> {
    vfs.sync_dir(dir).context("sync", dir)?;
    let marker = marker_path(dir, iteration, number);
    vfs.create_new(&marker).context("create", &marker)?;
    vfs.sync_dir(dir).context("sync", dir)?;
    let listing = Listing::read(vfs, dir)?;
    let mut left = 0;
    for (old, manifest) in listing.markers.iter().filter(|(i, _)| *i < iteration) {
        left += usize::from(vfs.unlink(&marker_path(dir, *old, *manifest)).is_err());
    }
    // Markers go first and durably: a marker must never name a manifest that is gone.
    if left == 0 {
        vfs.sync_dir(dir).context("sync", dir)?;
        for manifest in listing.manifests.iter().filter(|n| **n != number) {
            left += usize::from(vfs.unlink(&manifest_path(dir, *manifest)).is_err());
        }
    }
    Ok(left)
}

/// Refuses a directory that has tables but no marker: somebody removed it, and starting anew would
/// remove the tables.
pub(crate) fn refuse_lost_marker(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    let tables = table_dir(dir);
    let orphan =
        vfs.list(&tables).context("list", &tables)?.into_iter().find(|p| parse_table(p).is_some());
    match orphan {
        None => Ok(()),
        Some(table) => Err(Error::corruption(
            &dir.join("CURRENT"),
            0,
            format!("no marker names a manifest, but there are tables such as {}", table.display()),
        )),
    }
}
