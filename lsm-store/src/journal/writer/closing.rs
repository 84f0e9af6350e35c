//! The end of a journal's life in this process: what was appended is durable and proven, nothing is left over.

use super::{Journal, PAGE_BYTES, Tail};
use crate::error::{IoContext, Result};
use crate::journal::record::{kind, record_bytes};
use crate::journal::recovery;
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Seal};

impl Journal {
    /// Syncs, notes that it did, and syncs the note, which stands in a page of its own: damage to the page
    /// of the last records must not take the proof that they were there.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn close(mut self) -> Result<()> {
        self.sync()?;
        if let Some(Tail { end, last_sequence, .. }) =
            self.tail.as_ref().filter(|tail| tail.unpromised)
        {
            let (sequence, after) = (*last_sequence, end.saturating_add(record_bytes(0)));
            let padding = after.next_multiple_of(PAGE_BYTES) - after;
            let padding = vec![0; usize::try_from(padding).unwrap_or(0)];
            self.encode(kind::SYNC_NOTE, sequence, &[&padding])?;
            self.encode(kind::SYNC_NOTE, sequence, &[])?;
        }
        self.sync()?;
        self.clear_up()
    }

    /// Removes what waits for it, the file that was prepared, and the space that was reserved in vain. Whether
    /// the last two last does not matter.
    fn clear_up(&mut self) -> Result<()> {
        self.end_upkeep()?;
        let Some(tail) = &self.tail else { return Ok(()) };
        let keep = tail.end.max(tail.published_len);
        let trimmed = recovery::trim(&*self.vfs, &tail.syncer.path, keep);
        self.guard(trimmed)
    }

    /// Ends the helper and does what it left, but for a next segment, of which nothing stays.
    fn end_upkeep(&mut self) -> Result<()> {
        self.stop_helper();
        let unprepared = self.upkeep.claim().map_or(Ok(()), |prepared| {
            self.vfs.unlink(&prepared.draft.tmp).context("remove", &prepared.draft.tmp)
        });
        let done = unprepared.and_then(|()| self.upkeep.catch_up());
        self.guard(done)
    }

    pub(super) fn stop_helper(&mut self) {
        self.upkeep.end();
        if let Some(helper) = self.helper.take() {
            // A panic of it has ended the journal.
            let _poisoned = helper.join().is_err();
        }
    }

    /// As [`Journal::close`], of a journal whose records are all needed no more: what stays is one segment
    /// without records, its head as of `head`, so that there is next to nothing to read at the next opening.
    /// `sequence` is the number of the record that would come next. Without room for it on the disk, everything stays.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn close_spent(mut self, sequence: u64, head: &mut dyn FnMut(&mut Vec<u8>)) -> Result<()> {
        self.check_alive()?;
        let mut payload = Vec::new();
        head(&mut payload);
        self.check_size(payload.len() as u64)?;
        let (end, reserved) = self.tail.as_ref().map_or((self.sealed.end, 0), |t| (t.end, t.len));
        let spent = SEGMENT_HEADER_BYTES + record_bytes(payload.len() as u64);
        if end <= spent && reserved <= spent {
            return self.close();
        }
        self.sync()?;
        // Before there is another segment of the number that one may have been prepared for.
        self.end_upkeep()?;
        let before = self.tail.take();
        if let Some(tail) = &before {
            let (segment, end, last_checksum) = (tail.number, tail.end, tail.last_checksum);
            self.sealed = Seal { segment, end, last_checksum };
        }
        self.options.preallocate = false;
        if let Err(error) = self.begin_segment(sequence, &payload, 0) {
            self.tail = before;
            return if self.is_poisoned() { Err(error) } else { self.close() };
        }
        self.remove_segments_below(self.newest_segment())?;
        self.clear_up()
    }
}
