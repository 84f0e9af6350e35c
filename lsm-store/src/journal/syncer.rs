//! Syncing one segment's file, from any thread, and what has to be durable before it.
//!
//! A segment is synced by one thread at a time, because the kernel tells of a failure only once. The first
//! failure ends the journal.
//!
//! A segment that was prepared is written before its predecessor is synced and its own name is durable
//! ([`Handover`]). Until both are, nothing in it is promised to anybody: [`Syncer::synced`] is 0.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::record::{self, Meta, Place, kind, record_bytes};
use super::recovery::TMP_DIR;
use crate::error::{Error, IoContext, Result};
use crate::perf::{self, Count};
use crate::vfs::{Vfs, VfsFile};

/// Syncs one segment's file.
#[derive(Debug)]
pub(super) struct Syncer {
    pub(super) file: Arc<dyn VfsFile>,
    pub(super) path: PathBuf,
    /// What is durable together with everything in older segments: bytes below.
    synced: AtomicU64,
    /// What comes first. Locked by whoever syncs.
    before: Mutex<Option<Handover>>,
    poison: Arc<OnceLock<String>>,
}

/// The end of a segment, when its successor is written already.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) vfs: Arc<dyn Vfs>,
    /// The journal's directory.
    pub(super) dir: PathBuf,
    pub(super) old: Arc<Syncer>,
    pub(super) epoch: u64,
    /// The end of its last record.
    pub(super) end: u64,
    pub(super) last_sequence: u64,
    /// Bytes that the successor had, durably, when it was given its name.
    pub(super) published_end: u64,
    /// The old segment's file stays at least this long.
    pub(super) min_len: u64,
}

impl Handover {
    /// Makes the successor's name durable, then the old segment, and notes behind its end that the
    /// successor is there: should the newest segment ever be missing, its predecessor says so. That note
    /// is not synced; the log does not depend on it. Space reserved behind it is given back.
    fn settle(&self) -> Result<()> {
        sync_names(&*self.vfs, &self.dir)?;
        self.old.sync(self.end)?;
        let mut note = Vec::new();
        let place = Place { epoch: self.epoch, offset: self.end };
        let meta = Meta { kind: kind::SEAL, sequence: self.last_sequence, durable_to: self.end };
        record::encode(&mut note, place, meta, &[]);
        let Syncer { file, path, .. } = &*self.old;
        file.write_all_at(&note, self.end).context("write", path)?;
        let keep = (self.end + record_bytes(0)).max(self.min_len);
        if file.len().context("read the length of", path)? > keep {
            file.set_len(keep).context("shorten", path)?;
        }
        Ok(())
    }
}

/// Makes names durable: first the new one, then the removal of the old one. In between there may be both,
/// never none.
pub(super) fn sync_names(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    vfs.sync_dir(dir).context("sync", dir)?;
    let tmp_dir = dir.join(TMP_DIR);
    vfs.sync_dir(&tmp_dir).context("sync", &tmp_dir)
}

impl Syncer {
    /// Of a file of which the bytes below `synced` are durable, unless something comes `before`.
    pub(super) fn new(
        file: Arc<dyn VfsFile>,
        path: PathBuf,
        synced: u64,
        before: Option<Handover>,
        poison: Arc<OnceLock<String>>,
    ) -> Self {
        let synced = AtomicU64::new(if before.is_some() { 0 } else { synced });
        Self { file, path, synced, before: Mutex::new(before), poison }
    }

    /// What a record may promise: bytes below are durable, and all older segments are.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Makes the bytes below `upto` durable, which were handed to the file before, and whatever is older.
    pub(super) fn sync(&self, upto: u64) -> Result<()> {
        let mut before = self.before.lock();
        self.settle(&mut before)?;
        if self.synced() < upto {
            let synced = perf::time(Count::SyncNanos, || self.file.sync_data());
            self.remember(synced.context("sync", &self.path))?;
            self.synced.store(upto, Ordering::Release);
        }
        Ok(())
    }

    /// Makes durable what is older.
    pub(super) fn settle_before(&self) -> Result<()> {
        self.settle(&mut self.before.lock())
    }

    /// Whether [`Syncer::settle_before`] has nothing to do.
    pub(super) fn is_settled(&self) -> bool {
        self.synced() > 0
    }

    fn settle(&self, before: &mut Option<Handover>) -> Result<()> {
        check_alive(&self.poison)?;
        if let Some(handover) = before {
            self.remember(handover.settle())?;
            self.synced.fetch_max(handover.published_end, Ordering::AcqRel);
            *before = None;
        }
        Ok(())
    }

    /// Remembers a failure for good, before anybody else may try: a second sync would find nothing to do,
    /// and succeed.
    fn remember<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.poison.get_or_init(|| error.to_string());
        }
        result
    }
}

pub(super) fn check_alive(poison: &OnceLock<String>) -> Result<()> {
    match poison.get() {
        None => Ok(()),
        Some(reason) => Err(Error::Poisoned { reason: reason.clone() }),
    }
}

/// A sync that is to be done: from any thread, beside the writer.
#[derive(Debug)]
pub struct PendingSync {
    pub(super) syncer: Arc<Syncer>,
    pub(super) upto: u64,
}

impl PendingSync {
    /// Syncs. What the journal appends from then on says that it did.
    ///
    /// # Errors
    /// `Io` ends the journal; `Poisoned`.
    pub fn run(&self) -> Result<()> {
        self.syncer.sync(self.upto)
    }
}
