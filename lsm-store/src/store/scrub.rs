//! Scrubbing: reads every table again and again, slowly, so that damage is found while there are whole
//! copies elsewhere.
//!
//! A pass goes through the tables in the order of their numbers and compares the digest of each file with
//! the manifest's. It reads past the block cache and asks the operating system to forget its copy first, so
//! that it is the medium that is read. A difference is looked for block by block and reported as damage.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::checksum::Digester;
use crate::error::{Error, IoContext, Result};
use crate::events::Event;
use crate::sstable::reader::Table;
use crate::store::inner::Inner;
use crate::types::FileNumber;
use crate::vfs::Advice;

/// Read at once.
const CHUNK_BYTES: u64 = 256 * 1024;

/// From the end of a pass in the background to the beginning of the next.
const REST: Duration = Duration::from_secs(24 * 3600);

/// What one call of [`Store::scrub_step`](crate::Store::scrub_step) did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ScrubProgress {
    /// Bytes read.
    pub bytes: u64,
    /// Whether the last table of the pass was reached; the next call begins a new pass.
    pub pass_ended: bool,
}

/// Where a pass is.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// Tables up to this one are done.
    done: Option<FileNumber>,
    table: Option<Reading>,
    chunk: Vec<u8>,
}

#[derive(Debug)]
struct Reading {
    table: Arc<Table>,
    offset: u64,
    digester: Digester,
}

impl Inner {
    /// Reads about `budget` bytes further. What is found is reported as damage and is no error.
    ///
    /// # Errors
    /// `Io`: the next call goes on with the next table. That of the record of damage.
    pub(crate) fn scrub_step(&self, budget: u64) -> Result<ScrubProgress> {
        let mut cursor = self.scrub.lock();
        let mut progress = ScrubProgress::default();
        while progress.bytes < budget.max(1) {
            let version = Arc::clone(&self.superversion.load().version);
            let Cursor { done, table, chunk } = &mut *cursor;
            if table.is_none() {
                let next = version
                    .tables()
                    .filter(|t| t.check_open().is_ok() && Some(t.meta().number) > *done)
                    .min_by_key(|t| t.meta().number);
                let Some(next) = next else {
                    *done = None;
                    progress.pass_ended = true;
                    self.counters.scrub_passes.add(1);
                    break;
                };
                *done = Some(next.meta().number);
                let (next, digester) = (Arc::clone(next), Digester::new());
                *table = Some(Reading { table: next, offset: 0, digester });
            }
            let Some(reading) = table else { continue };
            let number = reading.table.meta().number;
            if !version.tables().any(|t| t.meta().number == number) {
                // Compacted away meanwhile.
                *table = None;
                continue;
            }
            match reading.step(chunk) {
                Ok(read) => {
                    progress.bytes += read;
                    self.counters.scrub_bytes.add(read);
                }
                Err(e) => {
                    *table = None;
                    return Err(e);
                }
            }
            let meta = reading.table.meta();
            if reading.offset >= meta.len {
                let intact = reading.digester.finish() == meta.digest;
                let read = table.take();
                if let (false, Some(Reading { table, .. })) = (intact, read) {
                    let differs = "digest of the file differs from what the manifest says";
                    self.report_table(&table, &Error::corruption(table.path(), 0, differs));
                }
            }
        }
        drop(cursor);
        self.settle_damage()?;
        Ok(progress)
    }
}

impl Reading {
    fn step(&mut self, chunk: &mut Vec<u8>) -> Result<u64> {
        let len = CHUNK_BYTES.min(self.table.meta().len - self.offset);
        chunk.resize(usize::try_from(len).unwrap_or(0), 0);
        let file = self.table.file();
        file.advise(self.offset, len, Advice::DontNeed);
        match file.read_exact_at(chunk, self.offset) {
            Ok(()) => self.digester.update(chunk),
            // A file that ends early is damaged, whatever is read of the rest.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => self.digester.update(&[0]),
            Err(e) => return Err(e).context("read", self.table.path()),
        }
        self.offset += len;
        Ok(len)
    }
}

/// The life of the thread that records damage when the bell rings and scrubs in between.
pub(crate) fn tend(inner: &Inner, bell: &Receiver<()>) {
    let rate = inner.options.scrub_bytes_per_second;
    let pause = |bytes: u64| {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    };
    let mut wait = pause(CHUNK_BYTES);
    loop {
        let rung = if rate == 0 {
            bell.recv().map_err(|_closed| RecvTimeoutError::Disconnected)
        } else {
            bell.recv_timeout(wait)
        };
        if inner.state.lock().closing {
            return;
        }
        match rung {
            Ok(()) => {
                let _poisoned = inner.settle_damage().is_err();
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => match inner.scrub_step(CHUNK_BYTES) {
                Ok(progress) if progress.pass_ended => wait = REST,
                Ok(progress) => wait = pause(progress.bytes),
                Err(e) => {
                    let event = || Event::JobFailed { job: "scrub", error: e.to_string() };
                    inner.options.events.emit(event);
                    wait = pause(CHUNK_BYTES);
                }
            },
        }
    }
}
