//! The content of one simulated file: what reads see, and what would survive a crash.
//!
//! Pages are shared and copied on write, so that a synced page costs nothing twice and a world of
//! files is cloned cheaply. A page never written takes no memory.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::policy::DataLoss;
use crate::rng::SplitMix64;

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

type Page = Arc<[u8; PAGE_BYTES]>;

#[derive(Debug, Clone, Default)]
pub(super) struct FileData {
    /// What reads see.
    live: Vec<Option<Page>>,
    len: u64,
    /// What survives a crash for certain.
    durable: Vec<Option<Page>>,
    durable_len: u64,
    /// Pages that the next sync makes durable.
    dirty: BTreeSet<usize>,
    /// Pages that a failed sync dropped: they read back, but no later sync writes them.
    abandoned: BTreeSet<usize>,
}

/// Page number and position in the page.
fn place(offset: u64) -> io::Result<(usize, usize)> {
    let offset = usize::try_from(offset).map_err(io::Error::other)?;
    Ok((offset / PAGE_BYTES, offset % PAGE_BYTES))
}

fn page(pages: &[Option<Page>], number: usize) -> Option<&Page> {
    pages.get(number).and_then(Option::as_ref)
}

fn put_page(pages: &mut Vec<Option<Page>>, number: usize, page: Option<Page>) {
    if page.is_some() && pages.len() <= number {
        pages.resize(number + 1, None);
    }
    if let Some(slot) = pages.get_mut(number) {
        *slot = page;
    }
}

impl FileData {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether a crash could change what reads see.
    pub(super) fn is_durable(&self) -> bool {
        self.dirty.is_empty() && self.abandoned.is_empty() && self.len == self.durable_len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.saturating_add(buf.len() as u64) > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut number, mut start) = place(offset)?;
        let mut rest = buf;
        while !rest.is_empty() {
            let take = rest.len().min(PAGE_BYTES - start);
            let (head, tail) = rest.split_at_mut(take);
            match page(&self.live, number) {
                Some(page) => head.copy_from_slice(&page[start..start + take]),
                None => head.fill(0),
            }
            rest = tail;
            number += 1;
            start = 0;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut number, mut start) = place(offset)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let take = rest.len().min(PAGE_BYTES - start);
            let (head, tail) = rest.split_at(take);
            self.page_mut(number)[start..start + take].copy_from_slice(head);
            rest = tail;
            number += 1;
            start = 0;
        }
        self.len = self.len.max(offset.saturating_add(bytes.len() as u64));
        Ok(())
    }

    fn page_mut(&mut self, number: usize) -> &mut [u8; PAGE_BYTES] {
        if self.live.len() <= number {
            self.live.resize(number + 1, None);
        }
        self.dirty.insert(number);
        self.abandoned.remove(&number);
        Arc::make_mut(self.live[number].get_or_insert_with(|| Arc::new([0; PAGE_BYTES])))
    }

    pub(super) fn set_len(&mut self, len: u64) -> io::Result<()> {
        if len < self.len {
            let (number, start) = place(len)?;
            if start > 0 && page(&self.live, number).is_some() {
                self.page_mut(number)[start..].fill(0);
            }
            let first_gone = if start > 0 { number + 1 } else { number };
            self.dirty.extend(first_gone..self.live.len());
            self.live.truncate(first_gone);
        }
        self.len = len;
        Ok(())
    }

    pub(super) fn sync(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            put_page(&mut self.durable, number, page(&self.live, number).cloned());
        }
        self.durable_len = self.len;
    }

    /// A sync that failed: the kernel has marked the pages clean, their content is not on disk.
    pub(super) fn fail_sync(&mut self) {
        self.abandoned.append(&mut self.dirty);
    }

    /// Changes a byte in memory and on disk alike: damage that is not a matter of syncing.
    pub(super) fn damage(&mut self, offset: u64, mask: u8) -> io::Result<()> {
        if offset >= self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (number, start) = place(offset)?;
        for pages in [&mut self.live, &mut self.durable] {
            if pages.len() <= number {
                pages.resize(number + 1, None);
            }
            Arc::make_mut(pages[number].get_or_insert_with(|| Arc::new([0; PAGE_BYTES])))[start] ^=
                mask;
        }
        Ok(())
    }

    /// Replaces everything, durably.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        *self = Self::default();
        self.write(bytes, 0)?;
        self.sync();
        Ok(())
    }

    /// What is left after a crash.
    pub(super) fn crash(&mut self, loss: DataLoss, rng: &mut SplitMix64) {
        if self.is_durable() {
            return;
        }
        let unsynced: BTreeSet<usize> = self.dirty.union(&self.abandoned).copied().collect();
        let mut survivor = Survivor::draw(self, loss, rng);
        let mut pages = self.durable.clone();
        for number in unsynced {
            if loss == DataLoss::LoseAll
                || (loss == DataLoss::KeepAll && self.abandoned.contains(&number))
            {
                continue;
            }
            let new = page(&self.live, number);
            let old = page(&self.durable, number);
            if loss == DataLoss::KeepAll {
                put_page(&mut pages, number, new.cloned());
                continue;
            }
            const ZERO: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
            let (new, old) = (new.map_or(&ZERO, |page| &**page), old.map_or(&ZERO, |page| &**page));
            let mut mixed = *old;
            let sectors = mixed.chunks_mut(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES));
            for (index, (mixed, new)) in sectors.enumerate() {
                survivor.sector(
                    mixed,
                    new,
                    (number * PAGE_BYTES + index * SECTOR_BYTES) as u64,
                    rng,
                );
            }
            put_page(&mut pages, number, Some(Arc::new(mixed)));
        }
        let len = survivor.len;
        *self =
            Self { live: pages.clone(), len, durable: pages, durable_len: len, ..Self::default() };
        // Bytes beyond the length that survived must read as zero if the file grows again.
        let kept = self.len.min(len);
        if self.trim(kept).is_err() {
            *self = Self::default();
        }
    }

    fn trim(&mut self, len: u64) -> io::Result<()> {
        self.len = u64::MAX;
        self.set_len(len)?;
        self.sync();
        Ok(())
    }
}

/// The draws that a crash makes for one file.
struct Survivor {
    loss: DataLoss,
    len: u64,
    /// For `Sectors`: kept in so many of eight cases.
    eighths: u64,
    /// For `Prefix` and `Garbage`: the first byte that is lost.
    cut: u64,
}

impl Survivor {
    fn draw(file: &FileData, loss: DataLoss, rng: &mut SplitMix64) -> Self {
        let (new, old) = (file.len, file.durable_len);
        let first = file.dirty.first().into_iter().chain(file.abandoned.first()).min();
        let last = file.dirty.last().into_iter().chain(file.abandoned.last()).max();
        let from = first.map_or(old, |page| (page * PAGE_BYTES) as u64);
        let to =
            last.map_or(new, |page| ((page + 1) * PAGE_BYTES) as u64).min(new.max(old)).max(from);
        let cut = from + rng.below(to - from + 1);
        let eighths = 1 + rng.below(7);
        let either = if rng.chance(1, 2) { new } else { old };
        let len = match loss {
            DataLoss::LoseAll => old,
            DataLoss::KeepAll | DataLoss::Zeroed => new,
            DataLoss::Sectors => either,
            DataLoss::Prefix | DataLoss::Garbage if new > old => either.max(cut.min(new)),
            DataLoss::Prefix | DataLoss::Garbage => either,
        };
        Self { loss, len, eighths, cut }
    }

    /// Turns the durable sector `mixed` into what survives, where `new` was written over it.
    fn sector(&mut self, mixed: &mut [u8], new: &[u8], offset: u64, rng: &mut SplitMix64) {
        match self.loss {
            DataLoss::LoseAll => {}
            DataLoss::KeepAll => mixed.copy_from_slice(new),
            DataLoss::Sectors => {
                if rng.chance(self.eighths, 8) {
                    mixed.copy_from_slice(new);
                }
            }
            DataLoss::Zeroed => {
                for (mixed, new) in mixed.iter_mut().zip(new) {
                    if mixed != new {
                        *mixed = 0;
                    }
                }
            }
            DataLoss::Prefix | DataLoss::Garbage => {
                let kept = usize::try_from(self.cut.saturating_sub(offset))
                    .unwrap_or(usize::MAX)
                    .min(mixed.len());
                let torn = self.loss == DataLoss::Garbage && kept > 0 && kept < mixed.len();
                for (index, (mixed, new)) in mixed.iter_mut().zip(new).enumerate() {
                    if index < kept {
                        *mixed = *new;
                    } else if torn && mixed != new {
                        *mixed = rng.next_u64().to_le_bytes()[0];
                    }
                }
            }
        }
    }
}
