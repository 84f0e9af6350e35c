//! Larger reads for whoever reads a table from front to back past the cache.
//!
//! A walk that misses the cache block after block reads a stretch at once and takes the next blocks from
//! it; each block is checked by itself, as if it had been read alone. If the stretch cannot be read, the block
//! alone is: an unreadable place further on is no error of this one.

#![deny(clippy::indexing_slicing)]

use std::io;

use crate::iter::reading::Purpose;
use crate::vfs::VfsFile;

/// A walk has missed so many blocks, each beginning where the one before ended, before more than one is read.
const MISSES_BEFORE: u32 = 2;
/// Stretch that is read first, in bytes; each further one doubles, up to the longest.
const STRETCH_MIN: usize = 64 * 1024;
const STRETCH_MAX: usize = 256 * 1024;
/// A job reads all of a table, so it begins with this.
const STRETCH_OF_JOB: usize = 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    purpose: Purpose,
    /// Bytes of the file from `offset` on.
    stretch: Vec<u8>,
    offset: u64,
    /// Where the last block that was read ended.
    expected: u64,
    misses: u32,
    next_len: usize,
}

impl ReadAhead {
    pub(crate) const fn new(purpose: Purpose) -> Self {
        let next_len = match purpose {
            Purpose::Reader => STRETCH_MIN,
            Purpose::Compaction => STRETCH_OF_JOB,
        };
        Self { purpose, stretch: Vec::new(), offset: 0, expected: u64::MAX, misses: 0, next_len }
    }

    /// Forgets what was read: another file is next.
    pub(crate) fn reset(&mut self) {
        let stretch = std::mem::take(&mut self.stretch);
        *self = Self { stretch, ..Self::new(self.purpose) };
        self.stretch.clear();
    }

    /// Fills `buf` from `offset`, perhaps with a read of more; never beyond `end`.
    pub(crate) fn read(
        &mut self,
        file: &dyn VfsFile,
        end: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<()> {
        let follows = offset == self.expected;
        self.expected = offset.saturating_add(buf.len() as u64);
        if self.copy(buf, offset) {
            return Ok(());
        }
        self.misses = if follows { self.misses.saturating_add(1) } else { 0 };
        let enough = match self.purpose {
            Purpose::Reader => self.misses >= MISSES_BEFORE,
            Purpose::Compaction => true,
        };
        if !follows && self.purpose == Purpose::Reader {
            self.next_len = STRETCH_MIN;
        }
        let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = self.next_len.min(left);
        if !enough || len <= buf.len() {
            return file.read_exact_at(buf, offset);
        }
        self.stretch.resize(len, 0);
        self.offset = offset;
        if file.read_exact_at(&mut self.stretch, offset).is_err() {
            self.stretch.clear();
            return file.read_exact_at(buf, offset);
        }
        self.next_len = (self.next_len * 2).min(STRETCH_MAX.max(self.next_len));
        if self.copy(buf, offset) {
            return Ok(());
        }
        file.read_exact_at(buf, offset)
    }

    /// Whether all of it was in the stretch.
    fn copy(&self, buf: &mut [u8], offset: u64) -> bool {
        let Some(from) = offset.checked_sub(self.offset).and_then(|f| usize::try_from(f).ok())
        else {
            return false;
        };
        let there = self.stretch.get(from..).and_then(|rest| rest.get(..buf.len()));
        if let Some(there) = there {
            buf.copy_from_slice(there);
        }
        there.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::vfs::{MemVfs, Vfs};

    const BLOCK: u64 = 1000;

    fn byte(offset: u64) -> u8 {
        u8::try_from(offset / 7 % 251).expect("below 251")
    }

    fn file(len: u64) -> (Arc<MemVfs>, Arc<dyn VfsFile>) {
        let vfs = Arc::new(MemVfs::new(1));
        let file = vfs.create_new(Path::new("/t.sst")).expect("a new name");
        let content: Vec<u8> = (0..len).map(byte).collect();
        file.write_all_at(&content, 0).expect("writes");
        (vfs, file)
    }

    /// Reads blocks one after the other; returns how many calls of the file system each took.
    fn walk(
        ahead: &mut ReadAhead,
        (vfs, file): &(Arc<MemVfs>, Arc<dyn VfsFile>),
        blocks: std::ops::Range<u64>,
        end: u64,
    ) -> Vec<u64> {
        blocks
            .map(|block| {
                let before = vfs.calls();
                let mut buf = vec![0; usize::try_from(BLOCK).expect("small")];
                ahead.read(&**file, end, &mut buf, block * BLOCK).expect("reads");
                let expected = (block * BLOCK..).take(buf.len()).map(byte);
                assert!(buf.iter().copied().eq(expected), "the bytes of block {block}");
                vfs.calls() - before
            })
            .collect()
    }

    #[test]
    fn a_reader_reads_ahead_after_two_misses_in_a_row_and_ever_more() {
        let disk = file(1_000_000);
        let mut ahead = ReadAhead::new(Purpose::Reader);
        let calls = walk(&mut ahead, &disk, 0..1000, 1_000_000);
        let read_at: Vec<usize> = (0..1000).filter(|i| calls[*i] > 0).collect();
        assert_eq!(&read_at[..5], &[0, 1, 2, 67, 198], "blocks alone, then 64, 128 and 256 KiB");
        assert!(read_at.len() < 9, "and 256 KiB from then on: {read_at:?}");
        assert!(calls.iter().all(|c| *c <= 1), "one call each");
        let calls = walk(&mut ahead, &disk, 500..502, 1_000_000);
        assert_eq!(calls, [1, 1], "elsewhere it begins anew");
    }

    #[test]
    fn a_job_reads_ahead_from_the_beginning_and_never_beyond_the_data() {
        let disk = file(500_000);
        let mut ahead = ReadAhead::new(Purpose::Compaction);
        // The file ends where the data does: a longer read would fail.
        let calls = walk(&mut ahead, &disk, 0..500, 500_000);
        assert_eq!(calls.iter().sum::<u64>(), 1, "one read of all of it");
        ahead.reset();
        let calls = walk(&mut ahead, &disk, 3..4, 500_000);
        assert_eq!(calls, [1], "another file is not the one before");
    }

    #[test]
    fn what_cannot_be_read_further_on_is_no_error_of_a_block_that_can() {
        let disk = file(100_000);
        let mut ahead = ReadAhead::new(Purpose::Compaction);
        // The data is said to go on beyond the end of the file.
        walk(&mut ahead, &disk, 0..100, 300_000);
        let mut buf = [0; 8];
        let beyond = ahead.read(&*disk.1, 300_000, &mut buf, 150_000);
        assert!(beyond.is_err(), "what is not there is an error of its own");
    }
}
