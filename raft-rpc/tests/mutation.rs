//! Decoders against damaged frames: whatever bytes come, they answer with a message, an error or "more".
//!
//! A seeded mutator flips, cuts, inserts and overwrites bytes of real frames. `SEED=n` runs one seed.

mod messages;

use messages::{LIMIT, Sample, rewrite, samples};

const SEEDS: u64 = 300;
const MUTANTS_PER_SAMPLE: u64 = 8;

#[test]
fn damaged_frames_never_panic_and_what_is_read_can_be_written_again() {
    let samples = samples();
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("SEED is a number");
            seed..seed + 1
        }
        Err(_unset) => 1..1 + SEEDS,
    };
    let (mut read, mut refused, mut waiting) = (0_u64, 0_u64, 0_u64);
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for sample in &samples {
            for _ in 0..MUTANTS_PER_SAMPLE {
                let bytes = random.mutant(sample);
                let outcome = std::panic::catch_unwind(|| rewrite(sample.side, &bytes))
                    .unwrap_or_else(|_| {
                        panic!("seed {seed}: {} panics on {bytes:02x?}", sample.name)
                    });
                match outcome {
                    Ok(Some(again)) => {
                        read += 1;
                        assert!(again.len() <= 4 + LIMIT, "seed {seed}: {}", sample.name);
                    }
                    Ok(None) => waiting += 1,
                    Err(reason) => {
                        refused += 1;
                        assert!(
                            !reason.is_empty(),
                            "seed {seed}: {} refused without a reason",
                            sample.name
                        );
                    }
                }
            }
        }
    }
    if std::env::var_os("SEED").is_none() {
        assert!(
            read > 1_000 && refused > 1_000 && waiting > 1_000,
            "the mutator reaches all outcomes: {read} read, {refused} refused, {waiting} waiting"
        );
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below.max(1) as u64).expect("below a usize")
    }

    fn mutant(&mut self, sample: &Sample) -> Vec<u8> {
        let mut bytes = sample.bytes.clone();
        for _ in 0..=self.next(3) {
            let at = self.next(bytes.len());
            match self.next(5) {
                0 => bytes[at] ^= 1 << self.next(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.next(5)],
                2 => bytes.truncate(at.max(1)),
                3 => bytes.insert(at, 0xff),
                _ => {
                    bytes.remove(at);
                    if bytes.is_empty() {
                        bytes.push(0);
                    }
                }
            }
        }
        // Half of the mutants keep a true length, so that the damage reaches the message.
        if bytes.len() > 4 && self.next(2) == 0 {
            let length = u32::try_from(bytes.len() - 4).expect("small");
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        bytes
    }
}
