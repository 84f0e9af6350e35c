//! What the jobs under way hold: their input tables, and the key ranges they will write into a level.
//!
//! Two jobs never share a table and never write overlapping ranges into one level below level 0. Either
//! would let one of them bring back what the other has replaced.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::FileNumber;

/// What one job holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub(crate) partition: u8,
    pub(crate) tables: Vec<FileNumber>,
    pub(crate) output_level: usize,
    /// The first and the last user key that the outputs may have.
    pub(crate) smallest: Vec<u8>,
    pub(crate) largest: Vec<u8>,
}

/// Names a job under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ClaimId(u64);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    running: BTreeMap<ClaimId, Claim>,
    tables: BTreeSet<FileNumber>,
    given_out: u64,
}

impl Claims {
    /// Whether a job under way reads the table.
    pub(crate) fn holds(&self, table: FileNumber) -> bool {
        self.tables.contains(&table)
    }

    /// Whether a job under way will write into the range of a level. Level 0 takes overlapping runs, so
    /// nobody is in the way there.
    pub(crate) fn writes(
        &self,
        partition: u8,
        level: usize,
        smallest: &[u8],
        largest: &[u8],
    ) -> bool {
        let overlaps = |c: &Claim| {
            c.partition == partition
                && c.output_level == level
                && c.smallest.as_slice() <= largest
                && smallest <= c.largest.as_slice()
        };
        level > 0 && self.running.values().any(overlaps)
    }

    /// Enters a job.
    ///
    /// # Panics
    /// If it conflicts with one under way, which whoever picks it excludes.
    pub(crate) fn take(&mut self, claim: Claim) -> ClaimId {
        let Claim { partition, output_level, .. } = claim;
        let shared = claim.tables.iter().find(|t| self.holds(**t));
        assert_eq!(shared, None, "table claimed by two jobs, one into level {output_level}");
        assert!(
            !self.writes(partition, output_level, &claim.smallest, &claim.largest),
            "two jobs write overlapping ranges into level {output_level} of partition {partition}"
        );
        self.given_out += 1;
        let id = ClaimId(self.given_out);
        self.tables.extend(claim.tables.iter().copied());
        self.running.insert(id, claim);
        id
    }

    /// Ends a job, whose outputs are installed or removed.
    pub(crate) fn release(&mut self, id: ClaimId) {
        if let Some(claim) = self.running.remove(&id) {
            claim.tables.iter().for_each(|t| {
                self.tables.remove(t);
            });
        }
    }

    /// Jobs under way.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(tables: &[u64], output_level: usize, smallest: &[u8], largest: &[u8]) -> Claim {
        Claim {
            partition: 0,
            tables: tables.iter().map(|n| FileNumber(*n)).collect(),
            output_level,
            smallest: smallest.to_vec(),
            largest: largest.to_vec(),
        }
    }

    #[test]
    fn what_a_job_holds_is_free_again_when_it_ends() {
        let mut claims = Claims::default();
        let id = claims.take(claim(&[1, 2], 3, b"d", b"m"));
        assert!(claims.holds(FileNumber(2)) && !claims.holds(FileNumber(3)), "its tables");
        assert!(claims.writes(0, 3, b"m", b"z") && claims.writes(0, 3, b"a", b"d"), "both ends");
        assert!(!claims.writes(0, 3, b"n", b"z") && !claims.writes(0, 3, b"a", b"c"), "beside it");
        assert!(!claims.writes(0, 4, b"a", b"z") && !claims.writes(1, 3, b"a", b"z"), "elsewhere");
        claims.release(id);
        assert!(!claims.holds(FileNumber(2)) && !claims.writes(0, 3, b"a", b"z"), "free");
        assert_eq!(claims.len(), 0, "none under way");
    }

    #[test]
    fn level_0_takes_overlapping_outputs() {
        let mut claims = Claims::default();
        claims.take(claim(&[1], 0, b"a", b"z"));
        claims.take(claim(&[2], 0, b"a", b"z"));
        assert_eq!(claims.len(), 2, "both");
    }
}
