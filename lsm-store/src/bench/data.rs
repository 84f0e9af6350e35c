//! Keys and values, and the choice of keys.
//!
//! A value is `number u64 ‖ check u64 ‖ body`: the number of its key, the fold of the body mixed with the number, and
//! bytes out of a pool of 1 MiB of which every piece compresses to about half. So a check reads all of a value, costs
//! a few nanoseconds, and needs nothing but the value.

use crate::rng::SplitMix64;

/// Length of every key.
pub const KEY_BYTES: usize = 16;

/// A key: 16 decimal digits.
pub type Key = [u8; KEY_BYTES];

const POOL_BYTES: usize = 1 << 20;
const HEAD_BYTES: usize = 16;
/// A run of random bytes and one of the same length that repeats them are this long together.
const PIECE_BYTES: usize = 100;

/// The key of a number.
#[must_use]
#[inline]
pub fn key(number: u64) -> Key {
    let mut key = [b'0'; KEY_BYTES];
    let mut rest = number;
    for digit in key.iter_mut().rev() {
        if rest == 0 {
            break;
        }
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    key
}

/// Where values come from.
#[derive(Debug)]
pub struct Values {
    pool: Vec<u8>,
    value_bytes: usize,
}

impl Values {
    /// Values of this length, at least 16 bytes and below 1 MiB.
    #[must_use]
    pub fn new(value_bytes: usize, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let mut pool = Vec::with_capacity(POOL_BYTES + PIECE_BYTES);
        while pool.len() < POOL_BYTES {
            let half: Vec<u8> = std::iter::repeat_with(|| rng.next_u64().to_le_bytes())
                .flatten()
                .take(PIECE_BYTES / 2)
                .collect();
            pool.extend_from_slice(&half);
            pool.extend_from_slice(&half);
        }
        Self { pool, value_bytes: value_bytes.clamp(HEAD_BYTES, POOL_BYTES / 2) }
    }

    /// Appends a value for the key of a number to `out`.
    pub fn append(&self, number: u64, rng: &mut SplitMix64, out: &mut Vec<u8>) {
        let body_bytes = self.value_bytes - HEAD_BYTES;
        let room = (self.pool.len() - body_bytes) as u64;
        let from = usize::try_from(rng.below(room)).unwrap_or(0);
        let body = self.pool.get(from..from + body_bytes).unwrap_or_default();
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&check_word(number, body).to_le_bytes());
        out.extend_from_slice(body);
    }

    /// The number that a value was made for, if it is whole and has the right length.
    #[must_use]
    #[inline]
    pub fn verified(&self, value: &[u8]) -> Option<u64> {
        let (number, rest) = value.split_first_chunk::<8>()?;
        let (check, body) = rest.split_first_chunk::<8>()?;
        let number = u64::from_le_bytes(*number);
        let whole = value.len() == self.value_bytes
            && check_word(number, body) == u64::from_le_bytes(*check);
        whole.then_some(number)
    }

    /// The length of a value.
    #[must_use]
    pub const fn value_bytes(&self) -> usize {
        self.value_bytes
    }
}

/// Depends on every bit of the body and of the number.
#[inline]
fn check_word(number: u64, body: &[u8]) -> u64 {
    let (words, rest) = body.as_chunks::<8>();
    let mut fold = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for word in words {
        fold ^= u64::from_le_bytes(*word);
    }
    for (place, byte) in rest.iter().enumerate() {
        fold ^= u64::from(*byte) << (8 * place);
    }
    fold
}

/// All numbers below `count`, shuffled.
pub(crate) fn shuffled(count: u64, rng: &mut SplitMix64) -> Vec<u32> {
    let mut all: Vec<u32> = (0..u32::try_from(count).unwrap_or(u32::MAX)).collect();
    for last in (1..all.len()).rev() {
        let other = usize::try_from(rng.below(last as u64 + 1)).unwrap_or(0);
        all.swap(last, other);
    }
    all
}

/// Numbers below `count`, all as likely.
pub(crate) fn uniform(count: u64, how_many: u64, rng: &mut SplitMix64) -> Vec<u32> {
    (0..how_many).map(|_| u32::try_from(rng.below(count)).unwrap_or(u32::MAX)).collect()
}

/// Numbers below `count` by Zipf's law with exponent 0.99, as YCSB draws them (Gray and others, "Quickly generating
/// billion-record synthetic databases", 1994), the popular ones scattered by a hash.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ranks below 2^32, never negative, pass through f64 and back"
)]
pub(crate) fn skewed(count: u64, how_many: u64, rng: &mut SplitMix64) -> Vec<u32> {
    const THETA: f64 = 0.99;
    let zeta = |terms: u64| -> f64 { (1..=terms).map(|rank| (rank as f64).powf(-THETA)).sum() };
    let total = zeta(count);
    let alpha = 1.0 / (1.0 - THETA);
    let eta = (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / total);
    let mut draw = || {
        let uniform = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let scaled = uniform * total;
        let rank = if scaled < 1.0 {
            0
        } else if scaled < 1.0 + 0.5_f64.powf(THETA) {
            1
        } else {
            (count as f64 * (eta * uniform - eta + 1.0).powf(alpha)) as u64
        };
        let scattered = SplitMix64::new(rank).next_u64() % count;
        u32::try_from(scattered).unwrap_or(u32::MAX)
    };
    (0..how_many).map(|_| draw()).collect()
}
