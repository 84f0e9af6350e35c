//! Which versions of a key may go: one pure rule for flushes and compactions.
//!
//! `bound` is the smaller of the retention floor and the oldest view in use, frozen when the job starts.
//! Of one user key, from the newest version to the oldest:
//! * above the bound: kept;
//! * the newest at or below the bound: kept if it is a value; if it is a delete, kept unless nothing older
//!   of the key can be anywhere outside the job;
//! * all older ones: dropped, since every permitted read finds a newer one first.
//!
//! A sequence number is never changed and two versions are never made one.

use crate::internal_key::Kind;

/// What happens to one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Keep,
    /// A newer version at or below the bound hides it from every permitted read.
    Shadowed,
    /// A delete with nothing left to hide.
    SpentDelete,
}

/// Decides for the versions of one user key, newest first; a new one for each key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyFate {
    bound: u64,
    /// Whether a version at or below the bound was met.
    found: bool,
}

impl KeyFate {
    pub(crate) const fn new(bound: u64) -> Self {
        Self { bound, found: false }
    }

    /// Decides for the next older version. `older_elsewhere` says whether an older version may be in a
    /// source that is not part of the job; it is asked for deletes only.
    pub(crate) fn next(
        &mut self,
        sequence: u64,
        kind: Kind,
        older_elsewhere: impl FnOnce() -> bool,
    ) -> Fate {
        if sequence > self.bound {
            return Fate::Keep;
        }
        if self.found {
            return Fate::Shadowed;
        }
        self.found = true;
        match kind {
            Kind::Value => Fate::Keep,
            Kind::Delete if older_elsewhere() => Fate::Keep,
            Kind::Delete => Fate::SpentDelete,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Versions = Vec<(u64, Kind)>;

    /// What a read at `at` finds among versions, newest first.
    fn read(versions: &[(u64, Kind)], at: u64) -> Option<u64> {
        let newest = versions.iter().find(|v| v.0 <= at)?;
        (newest.1 == Kind::Value).then_some(newest.0)
    }

    fn survivors(inputs: &[(u64, Kind)], bound: u64, older_elsewhere: bool) -> Versions {
        let mut fate = KeyFate::new(bound);
        inputs
            .iter()
            .copied()
            .filter(|(s, k)| fate.next(*s, *k, || older_elsewhere) == Fate::Keep)
            .collect()
    }

    fn versions() -> impl Strategy<Value = Versions> {
        proptest::collection::btree_map(1..40_u64, any::<bool>(), 0..12).prop_map(|map| {
            map.into_iter()
                .rev()
                .map(|(s, delete)| (s, if delete { Kind::Delete } else { Kind::Value }))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_permitted_read_changes_whatever_lies_below_the_job(
            all in versions(), split in 0..13_usize, bound in 0..45_u64,
        ) {
            // The job has the newer part; the older part stays where it is.
            let (inputs, below) = all.split_at(split.min(all.len()));
            let kept = survivors(inputs, bound, !below.is_empty());
            let after: Versions = kept.iter().chain(below).copied().collect();
            for at in bound..50 {
                prop_assert_eq!(read(&after, at), read(&all, at), "at {} of {:?}", at, all);
            }
        }

        #[test]
        fn with_nothing_below_at_most_one_version_at_or_below_the_bound_stays(all in versions(), bound in 0..45_u64) {
            let kept = survivors(&all, bound, false);
            let below: Vec<_> = kept.iter().filter(|v| v.0 <= bound).collect();
            prop_assert!(below.len() <= 1, "{:?}", below);
            prop_assert!(below.iter().all(|v| v.1 == Kind::Value), "a delete stays: {:?}", below);
        }
    }
}
