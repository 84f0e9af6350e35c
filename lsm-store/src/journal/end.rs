//! Where a log ends: which of its segments are whole for certain, and what became of those that were being
//! written.
//!
//! A segment that was prepared is written before its predecessor is synced. So after a loss of power the
//! newest segments may both be torn, each anywhere. What is known:
//!
//! 1. A record that promises anything of its own segment says that all older ones are whole.
//! 2. A segment that was not prepared got its name when its predecessor was whole.
//!
//! The newest segment of which either holds, or else the oldest, is the *base*: older ones must be whole, or
//! something that was synced is gone. From the base on the log goes on as long as each segment reaches the
//! end that the next one's joint tells, with that last checksum. Where that breaks, the log ends; what is
//! newer was promised to nobody.

#![deny(clippy::indexing_slicing)]

use std::sync::Arc;

use super::record::kind;
use super::recovery::{OnDisk, TornTail};
use super::scan::{Scanner, Step, Tail, settle_tail};
use super::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, file_name};
use super::writer::JOINT_BYTES;
use crate::coding::Reader;
use crate::error::{Error, Result};

/// See the module.
pub(super) struct LogEnd<'a> {
    /// How each segment ends that is kept: the oldest ones found, as many as there are seals.
    pub(super) whole: Vec<Seal>,
    /// How the last of them ends; if none is kept, how the one before ended that is not there any more.
    pub(super) seal: Seal,
    pub(super) torn: Option<TornTail>,
    /// What was read but not promised, in order.
    pub(super) unpromised: Vec<Stretch<'a>>,
    /// How many records of the caller's those hold.
    pub(super) copied: u64,
}

/// Bytes of a segment.
pub(super) struct Stretch<'a> {
    pub(super) segment: &'a OnDisk,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl<'a> LogEnd<'a> {
    /// Finds the end of the log that consists of these segments, each of which names the one before as its
    /// predecessor.
    pub(super) fn find(found: &'a [OnDisk]) -> Result<Self> {
        let mut end = Self {
            whole: Vec::new(),
            seal: Seal::default(),
            torn: None,
            unpromised: Vec::new(),
            copied: 0,
        };
        let joints = found.iter().map(joint).collect::<Result<Vec<_>>>()?;
        let seal_by = |index: usize| -> Option<Seal> {
            let header = &found.get(index)?.header;
            if header.prepared {
                joints.get(index).copied().flatten()
            } else {
                Some(header.predecessor)
            }
        };
        let mut base = found.len().saturating_sub(1);
        while base > 0 {
            let Some(segment) = found.get(base) else { break };
            if !segment.header.prepared || promises(segment)? {
                if seal_by(base).is_some() {
                    break;
                }
                // It was read once, or it is damaged.
                settle(segment, None, None)?;
            }
            base -= 1;
        }
        found.iter().skip(base).try_for_each(check_length)?;
        for (index, segment) in found.iter().enumerate() {
            let next = seal_by(index + 1);
            if index < base {
                let Some(seal) = next else {
                    let newer = found.get(index + 1).map_or(&segment.path, |next| &next.path);
                    let detail = "the joint is damaged, though newer records were synced";
                    return Err(Error::corruption(newer, SEGMENT_HEADER_BYTES, detail));
                };
                if segment.len < seal.end {
                    let detail = format!("the file ends here, but it is sealed at {}", seal.end);
                    return Err(Error::corruption(&segment.path, segment.len, detail));
                }
                end.whole.push(seal);
                end.seal = seal;
                continue;
            }
            let successor = found.get(index + 1).map(|next| &next.header);
            let (tail, goes_on) = settle(segment, next, successor)?;
            end.take(segment, &tail, index == base, seal_by(index));
            if !goes_on {
                if tail.torn_to > tail.end {
                    end.torn = Some(TornTail {
                        segment: segment.header.number,
                        offset: tail.end,
                        bytes: tail.torn_to - tail.end,
                    });
                }
                break;
            }
        }
        Ok(end)
    }

    /// Adds a segment that was being written.
    fn take(&mut self, segment: &'a OnDisk, tail: &Tail, is_base: bool, before: Option<Seal>) {
        let nothing_promised = segment.header.prepared && tail.promised == SEGMENT_HEADER_BYTES;
        match before {
            // Its joint is not certain to be there: its predecessor is the last that is kept.
            Some(before) if is_base && nothing_promised => self.seal = before,
            _ if is_base => {
                self.seal = Seal {
                    segment: segment.header.number,
                    end: tail.promised,
                    last_checksum: tail.promised_checksum,
                };
                self.whole.push(self.seal);
            }
            _ => {}
        }
        self.copied += tail.unpromised_records;
        self.unpromised.push(Stretch { segment, from: tail.promised, to: tail.end });
    }
}

/// A segment that was being written must not be shorter than it was from the beginning.
fn check_length(segment: &OnDisk) -> Result<()> {
    let OnDisk { path, len, header, .. } = segment;
    let detail = if *len < SEGMENT_HEADER_BYTES {
        "the file ends inside the header".to_owned()
    } else if *len < header.published_len {
        let before = header.published_len;
        format!("the file ends here, but it was {before} bytes long from the beginning")
    } else {
        return Ok(());
    };
    Err(Error::corruption(path, *len, detail))
}

/// How a segment that was being written ends, and whether the log goes on behind it. `next` is what its
/// successor's joint says, if there is one.
fn settle(
    segment: &OnDisk,
    next: Option<Seal>,
    successor: Option<&SegmentHeader>,
) -> Result<(Tail, bool)> {
    let OnDisk { path, file, header, len } = segment;
    let settle_to = |len| {
        settle_tail(file, path, header.epoch, SEGMENT_HEADER_BYTES, header.published_end, len)
    };
    if let Some(seal) = next.filter(|seal| seal.end <= *len)
        && reaches(segment, seal)?
    {
        return Ok((settle_to(seal.end)?, true));
    }
    let tail = settle_to(*len)?;
    if tail.has_seal && successor.is_none() {
        let missing = path.with_file_name(file_name(header.number + 1));
        let detail = format!("the segment is missing: segment {} was sealed for it", header.number);
        return Err(Error::corruption(&missing, 0, detail));
    }
    Ok((tail, false))
}

/// Whether a segment's records reach the end that is told of it, with that last checksum.
fn reaches(segment: &OnDisk, seal: Seal) -> Result<bool> {
    let mut scanner = scanner(segment, seal.end);
    let mut last_checksum = 0;
    loop {
        match scanner.step()? {
            Step::Record(found) => last_checksum = found.header.checksum,
            Step::Invalid(_) => return Ok(false),
            Step::End => return Ok(last_checksum == seal.last_checksum),
        }
    }
}

/// Whether a record of a segment, be it one behind damage, promises that everything older was synced.
fn promises(segment: &OnDisk) -> Result<bool> {
    let mut scanner = scanner(segment, segment.len);
    while let Step::Record(found) = scanner.step()? {
        if found.header.durable_to > 0 {
            return Ok(true);
        }
    }
    Ok(scanner.survey()?.0 > 0)
}

fn scanner(segment: &OnDisk, limit: u64) -> Scanner {
    let file = Arc::clone(&segment.file);
    Scanner::new(file, &segment.path, segment.header.epoch, SEGMENT_HEADER_BYTES, limit)
}

/// What a segment that was prepared says of its predecessor's end; `None` if that was not written, or is not
/// readable.
fn joint(segment: &OnDisk) -> Result<Option<Seal>> {
    if !segment.header.prepared {
        return Ok(None);
    }
    let mut scanner = scanner(segment, segment.len);
    let Step::Record(found) = scanner.step()? else { return Ok(None) };
    Ok(joint_seal(&segment.header, found.header.kind, found.payload))
}

/// What a segment's first record says of its predecessor's end, if it is a joint.
pub(crate) fn joint_seal(header: &SegmentHeader, kind: u8, payload: &[u8]) -> Option<Seal> {
    if kind != kind::JOINT || payload.len() as u64 != JOINT_BYTES {
        return None;
    }
    let mut reader = Reader::new(payload);
    let (end, last_checksum) = (reader.u64().ok()?, reader.u64().ok()?);
    Some(Seal { segment: header.predecessor.segment, end, last_checksum })
}
