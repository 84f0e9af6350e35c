//! Whether the store still holds what it acknowledged: a sample of the keys is read back.

use crate::{Client, Error};
use futures::StreamExt as _;

use super::worker::{Keys, Tally, write_of};

/// Keys read back at most.
const SAMPLE: usize = 1000;
/// Reads under way.
const CONCURRENCY: usize = 64;

/// Why the sample does not prove anything good.
pub(super) enum Unverified {
    /// A key does not hold what it must.
    Mismatch(String),
    /// The keys could not be read.
    Failed(Error),
}

/// Reads a sample of acknowledged writes back and says how many hold. With `preloaded`, every key
/// was written once, as write 0, before the measurement.
///
/// # Errors
/// The first key that does not hold its last acknowledged write, or that can't be read.
pub(super) async fn read_back(
    kv: &Client,
    keys: &Keys,
    tally: &Tally,
    preloaded: bool,
) -> Result<u64, Unverified> {
    let certain: Vec<(u64, u64, u64)> = tally
        .written
        .iter()
        .flat_map(|(caller, written)| {
            (0_u64..).zip(written).map(move |(number, last)| (*caller, number, last))
        })
        .filter(|(_, _, last)| (preloaded || last.acknowledged > 0) && !last.uncertain)
        .map(|(caller, number, last)| (caller, number, last.acknowledged))
        .collect();
    let step = certain.len().div_ceil(SAMPLE).max(1);
    let mut reads = futures::stream::iter(certain.into_iter().step_by(step))
        .map(|(caller, number, write)| async move {
            let key = keys.key(caller, number);
            let found = kv.get(&key).await.map_err(Unverified::Failed)?;
            let holds = found.as_ref().and_then(|found| write_of(&found.value));
            if holds == Some((caller, write)) {
                return Ok(());
            }
            let holds = match holds {
                Some((caller, write)) => format!("write {write} of caller {caller}"),
                None => "nothing of this run".to_owned(),
            };
            Err(Unverified::Mismatch(format!(
                "key {} holds {holds}, but write {write} of caller {caller} was acknowledged last",
                String::from_utf8_lossy(&key)
            )))
        })
        .buffer_unordered(CONCURRENCY);
    let mut verified = 0;
    while let Some(read) = reads.next().await {
        read?;
        verified += 1;
    }
    Ok(verified)
}
