//! Durations and sizes as people write them: `50ms`, `1m30s`, `64MiB`.
//!
//! A duration without a unit is an error: what `300` means differs between programs, and a wrong
//! guess of an election timeout is an outage. A size without a unit is bytes.

use std::{fmt::Write as _, time::Duration};

/// Units of durations, longest first, in nanoseconds.
const DURATION_UNITS: [(&str, u64); 7] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

/// Units of sizes in bytes.
const SIZE_UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads a duration: whole numbers, each with a unit (`h`, `m`, `s`, `ms`, `us`, `ns`), as `1m30s`.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("a duration is empty, expected one as `300ms`".to_owned());
    }
    let mut total_ns: u64 = 0;
    while !rest.is_empty() {
        let (digits, unit, after) = split_number(rest);
        let number: u64 = digits.parse().map_err(|error| {
            format!("`{text}` is no duration: `{digits}` is no whole number ({error}), expected one as `300ms`")
        })?;
        if unit.is_empty() {
            return Err(format!(
                "`{text}` has no unit, expected one as `{number}ms` or `{number}s`"
            ));
        }
        let factor = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, factor)| *factor)
            .ok_or_else(|| {
                format!("`{text}` has the unknown unit `{unit}`, expected h, m, s, ms, us or ns")
            })?;
        total_ns = number
            .checked_mul(factor)
            .and_then(|part| total_ns.checked_add(part))
            .ok_or_else(|| format!("`{text}` is longer than a duration can be"))?;
        rest = after.trim_start();
    }
    Ok(Duration::from_nanos(total_ns))
}

/// Reads a size: a whole number with `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB` or `GB`; bytes if there is none.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit, after) = split_number(text.trim());
    if !after.trim().is_empty() || digits.is_empty() {
        return Err(format!("`{text}` is no size, expected one as `64MiB`"));
    }
    let number: u64 = digits
        .parse()
        .map_err(|error| format!("`{text}` is no size ({error}), expected one as `64MiB`"))?;
    let factor = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor)
        .ok_or_else(|| {
            format!(
                "`{text}` has the unknown unit `{unit}`, expected B, KiB, MiB, GiB, kB, MB or GB"
            )
        })?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is larger than a size can be"))
}

/// The shortest text that [`parse_duration`] reads as `duration`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, factor) in DURATION_UNITS {
        if unit != "µs" && rest >= factor {
            // Writing into a string cannot fail.
            if write!(text, "{}{unit}", rest / factor).is_ok() {
                rest %= factor;
            }
        }
    }
    text
}

/// A size as [`parse_size`] reads it, in the largest binary unit that divides it.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// Splits `text` into its leading digits, the letters after them, and the rest.
fn split_number(text: &str) -> (&str, &str, &str) {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(digits_end);
    let rest = rest.trim_start();
    let unit_end =
        rest.find(|c: char| c.is_ascii_digit() || c.is_whitespace()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(unit_end);
    (digits, unit, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, nanos) in [
            ("50ms", 50_000_000),
            ("1m30s", 90_000_000_000),
            ("1m 30s", 90_000_000_000),
            ("2h", 7_200_000_000_000),
            ("0s", 0),
            ("7us", 7_000),
            ("7µs", 7_000),
            ("3ns", 3),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_and_says_how_to_write_it() {
        let error = parse_duration("300").unwrap_err();
        assert!(error.contains("300ms") && error.contains("no unit"), "{error}");
        assert!(parse_duration("1m30").unwrap_err().contains("no unit"));
    }

    #[test]
    fn nonsense_durations_are_refused() {
        for text in ["", " ", "ms", "-1s", "1.5s", "1 fortnight", "99999999999999h", "1s!"] {
            assert!(parse_duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1KiB", 1024),
            ("1kB", 1000),
            ("64 MiB", 64 << 20),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1Mib", "1MiB2", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for nanos in [0, 1, 1_000, 50_000_000, 90_000_000_000, 3_600_000_000_001] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }
        for bytes in [0, 1, 1023, 1024, 1 << 20, (1 << 20) + 1, 3 << 30] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
    }
}
