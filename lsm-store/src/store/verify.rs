//! Checks everything on disk against everything else.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, IoContext, Result};
use crate::manifest::current::table_path;
use crate::manifest::version::{Levels, Version};
use crate::sstable::verify::verify_table;
use crate::store::inner::Inner;

/// What [`Store::verify`](crate::Store::verify) looked at; all of it is sound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    /// Tables read in full.
    pub tables: usize,
    /// Data, index and filter blocks read.
    pub blocks: u64,
    /// Entries seen: versions, deletes included.
    pub entries: u64,
    /// Bytes of tables read.
    pub bytes: u64,
}

impl Inner {
    pub(crate) fn verify(&self) -> Result<VerifyReport> {
        let (manifest, version) = self.check_manifest()?;
        let mut report = VerifyReport::default();
        for table in version.tables() {
            let verified = verify_table(table);
            if let Err(e) = &verified {
                self.report_table(table, e);
                self.settle_damage()?;
            }
            report.blocks += verified?;
            report.tables += 1;
            report.entries += table.meta().entries;
            report.bytes += table.meta().len;
        }
        for levels in &version.partitions {
            if let Some(detail) = age_problem(levels) {
                return Err(Error::corruption(&manifest, 0, detail));
            }
        }
        Ok(report)
    }

    pub(crate) fn verify_quick(&self) -> Result<()> {
        let (_, version) = self.check_manifest()?;
        version.tables().try_for_each(|table| table.check_ends(&*self.vfs))
    }

    /// Compares the manifest with what is in use, and with the names of files.
    fn check_manifest(&self) -> Result<(PathBuf, Arc<Version>)> {
        // A superversion keeps its files while they are read; the manifest is compared under its lock.
        let catalog = self.catalog.lock();
        if catalog.reread()? != *catalog.state() {
            return Err(Error::corruption(
                catalog.path(),
                0,
                "the manifest does not say what is in force",
            ));
        }
        let version = self.superversion.load_full();
        let listed: Vec<_> = catalog.state().tables.keys().copied().collect();
        let mut open: Vec<_> = version.version.tables().map(|t| t.meta().number).collect();
        open.sort_unstable();
        if listed != open {
            return Err(Error::corruption(
                catalog.path(),
                0,
                "the manifest lists other tables than are in use",
            ));
        }
        // No table leaves the manifest while its lock is held, so each must be there under its name.
        for number in listed {
            let path = table_path(&self.dir, number);
            if !self.vfs.exists(&path).context("look for", &path)? {
                return Err(Error::corruption(
                    &path,
                    0,
                    "the table is in use, but its file is gone",
                ));
            }
        }
        let manifest = catalog.path().to_path_buf();
        drop(catalog);
        Ok((manifest, Arc::clone(&version.version)))
    }
}

/// A newer run of level 0 holds only newer writes than an older one.
fn age_problem(levels: &Levels) -> Option<String> {
    for (newer, older) in levels.runs.iter().zip(levels.runs.iter().skip(1)) {
        let oldest_of_newer = newer.tables.iter().map(|t| t.meta().min_sequence).min();
        let newest_of_older = older.tables.iter().map(|t| t.meta().max_sequence).max();
        if newer.epoch <= older.epoch || oldest_of_newer <= newest_of_older {
            return Some(format!(
                "runs {} and {} of level 0 are out of order",
                newer.epoch, older.epoch
            ));
        }
    }
    None
}
