//! [`Metrics`] for eyes: a section for each question that is asked of a store, a line for each answer.
//!
//! The text is not an interface: whoever evaluates figures takes the fields, or what the feature `serde` makes of them.

use std::fmt;

use crate::cache::CacheLookups;
use crate::histogram::Distribution;
use crate::store::metrics::{LevelMetrics, Metrics, PartitionMetrics};

/// Bytes.
struct Size(u64);

impl fmt::Display for Size {
    #[expect(clippy::cast_precision_loss, reason = "for eyes")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| self.0 >> bits > 0) {
            Some((bits, unit)) => {
                f.pad(&format!("{:.1} {unit}", self.0 as f64 / (1_u64 << bits) as f64))
            }
            None => f.pad(&format!("{} B", self.0)),
        }
    }
}

/// Microseconds.
struct Time(u64);

impl fmt::Display for Time {
    #[expect(clippy::cast_precision_loss, reason = "for eyes")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000 => write!(f, "{} µs", self.0),
            1_000..1_000_000 => write!(f, "{:.1} ms", self.0 as f64 / 1e3),
            1_000_000.. => write!(f, "{:.1} s", self.0 as f64 / 1e6),
        }
    }
}

/// How long something took, each time.
struct Times(Distribution);

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Distribution { count, sum, p50, p99, p999, max } = self.0;
        if count == 0 {
            return f.write_str("none");
        }
        let (all, p50, p99, p999, max) = (Time(sum), Time(p50), Time(p99), Time(p999), Time(max));
        write!(f, "{count} in {all}: half within {p50}, 99 % {p99}, 99.9 % {p999}, longest {max}")
    }
}

/// One figure per another; nothing per nothing.
struct Ratio(f64);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_finite() { write!(f, "{:.2}", self.0) } else { f.write_str("-") }
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, what: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(f, "  {name:<14}{what}")
}

fn lookups(f: &mut fmt::Formatter<'_>, name: &str, lookups: CacheLookups) -> fmt::Result {
    row(f, name, format_args!("{} found, {} read from files", lookups.hits, lookups.misses))
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show_writes(f)?;
        self.show_work(f)?;
        for (id, partition) in self.partitions.iter().enumerate() {
            show_partition(f, id, partition)?;
        }
        self.show_reads(f)?;
        self.show_memory(f)?;
        self.show_files(f)
    }
}

impl Metrics {
    fn show_writes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "writes")?;
        row(
            f,
            "runs",
            format_args!("{}, {} of keys and values", self.runs, Size(self.user_bytes)),
        )?;
        let (index, durable) = (self.visible_index, self.durable_index);
        row(f, "position", format_args!("{index}, in tables up to {durable}"))?;
        let (user, flushed) = (self.user_write_amplification(), self.write_amplification());
        let (user, flushed) = (Ratio(user), Ratio(flushed));
        row(
            f,
            "amplification",
            format_args!("{user} per byte written, {flushed} per byte flushed"),
        )?;
        row(f, "stood still", format_args!("{} times", self.stalls))?;
        for (name, waits) in [("  stalls", &self.stall_micros), ("  delays", &self.delay_micros)] {
            for (cause, of) in
                [("memtables", waits.memtables), ("level 0", waits.level0), ("debt", waits.debt)]
            {
                if of.count > 0 {
                    row(f, name, format_args!("for {cause}: {}", Times(of)))?;
                }
            }
        }
        let Some(log) = &self.log else { return Ok(()) };
        let (size, begun) = (Size(log.bytes), log.segments);
        let late = log.segments_late + log.reserved_late;
        row(f, "log", format_args!("{size}, {begun} segments begun, {late} waits for room"))?;
        row(f, "  syncs", format_args!("{}", Times(log.sync_micros)))?;
        let batches = log.batches_synced;
        row(f, "  a sync", format_args!("{} batches, most {}", batches.mean(), batches.max))
    }

    fn show_work(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "background work")?;
        let idle = self.idle_flushes;
        let (flushes, bytes) = (self.flushes, Size(self.flush_bytes));
        row(f, "flushes", format_args!("{flushes} of {bytes}, {idle} when idle"))?;
        row(f, "", format_args!("{}", Times(self.flush_micros)))?;
        let (merges, moves, now) = (self.compactions, self.trivial_moves, self.compactions_running);
        row(f, "compactions", format_args!("{merges} and {moves} moves, {now} under way"))?;
        row(f, "", format_args!("{}", Times(self.compaction_micros)))?;
        let (read, written) =
            (Size(self.compaction_bytes_read), Size(self.compaction_bytes_written));
        row(f, "", format_args!("{read} read, {written} written"))?;
        if self.compaction_rate > 0 {
            let (rate, waits) = (Size(self.compaction_rate), Times(self.throttle_micros));
            row(f, "  limit", format_args!("{rate} a second, waits: {waits}"))?;
        }
        row(f, "debt", format_args!("{}", Size(self.compaction_debt)))?;
        let (shadowed, deletes) = (self.shadowed_dropped, self.deletes_dropped);
        row(f, "dropped", format_args!("{shadowed} versions, {deletes} deletes"))?;
        let (scrubbed, passes) = (Size(self.scrub_bytes), self.scrub_passes);
        row(f, "scrubbed", format_args!("{scrubbed}, {passes} times all"))?;
        row(f, "failures", format_args!("{} {}", self.job_failures, self.last_job_failure))
    }

    fn show_reads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads = &self.reads;
        writeln!(f, "reads")?;
        let searched = Ratio(reads.read_amplification());
        row(f, "lookups", format_args!("{}, {searched} tables searched each", reads.gets))?;
        let (kept_out, wrong) = (reads.filter_excluded, reads.filter_false_positives);
        row(f, "filters", format_args!("kept out of {kept_out} tables, not out of {wrong}"))?;
        let (versions, deletes) = (reads.versions_skipped, reads.deletes_skipped);
        let seeks = reads.seeks;
        row(f, "seeks", format_args!("{seeks}, passed {versions} versions and {deletes} deletes"))?;
        lookups(f, "data", self.cache.data)?;
        lookups(f, "index", self.cache.index)?;
        lookups(f, "filter", self.cache.filter)?;
        row(f, "views", format_args!("{}", self.views))
    }

    fn show_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory")?;
        let (active, frozen) = (Size(self.active_memtable_bytes), Size(self.frozen_memtable_bytes));
        let sets = self.frozen_memtables;
        row(f, "memtables", format_args!("{active} active, {frozen} frozen in {sets} sets"))?;
        let (cached, held) = (Size(self.cache.cached_bytes), Size(self.cache.held_bytes));
        row(f, "cache", format_args!("{cached}, and {held} that tables hold of it"))?;
        row(f, "tables", format_args!("{}", Size(self.table_memory_bytes)))
    }

    fn show_files(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "files")?;
        let (open, damaged) = (self.open_tables, self.damaged_tables);
        row(f, "tables", format_args!("{open} open, {damaged} damaged"))?;
        let (gone, to_go, left) = (self.tables_removed, self.obsolete_files, self.files_left);
        row(
            f,
            "replaced",
            format_args!("{gone} removed, {to_go} to be removed, {left} left over"),
        )?;
        if let Some(free) = self.free_space_bytes {
            let refused = self.merges_refused;
            row(f, "space", format_args!("{} free, {refused} merges put off for it", Size(free)))?;
        }
        match &self.poisoned {
            Some(reason) => row(f, "NO WRITES", format_args!("{reason}")),
            None => Ok(()),
        }
    }
}

fn show_partition(
    f: &mut fmt::Formatter<'_>,
    id: usize,
    partition: &PartitionMetrics,
) -> fmt::Result {
    let PartitionMetrics { l0_runs, levels, floor, last_sequence, .. } = partition;
    writeln!(f, "partition {id}")?;
    row(f, "numbers", format_args!("{floor} to {last_sequence}"))?;
    if let Some(oldest) = partition.oldest_view {
        let age = partition.oldest_view_micros.map(|age| format!(" for {}", Time(age)));
        row(f, "oldest view", format_args!("at {oldest}{}", age.unwrap_or_default()))?;
    }
    row(f, "level 0", format_args!("{l0_runs} runs"))?;
    let names = ["tables", "bytes", "entries", "garbage", "read", "written", "moved"];
    write!(f, "  level")?;
    names.iter().try_for_each(|name| write!(f, " {name:>11}"))?;
    writeln!(f)?;
    for (level, of) in levels.iter().enumerate() {
        let idle = LevelMetrics::default() == *of;
        if !idle {
            write!(f, "  {level:>5} {:>11} {:>11}", of.tables, Size(of.bytes))?;
            write!(f, " {:>11} {:>11}", of.entries, of.garbage)?;
            let work = [of.bytes_read, of.bytes_written, of.bytes_moved];
            work.into_iter().try_for_each(|bytes| write!(f, " {:>11}", Size(bytes)))?;
            writeln!(f)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_ratios_are_short() {
        let sizes = [0, 1023, 1024, 1536, 5 << 20, 3 << 30, u64::MAX].map(|n| Size(n).to_string());
        let expected =
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 GiB", "16777216.0 TiB"];
        assert_eq!(sizes, expected);
        assert_eq!(format!("[{:>8}]", Size(7)), "[     7 B]", "in columns");
        let times = [999, 1000, 1_500_000].map(|n| Time(n).to_string());
        assert_eq!(times, ["999 µs", "1.0 ms", "1.5 s"]);
        assert_eq!(
            (Ratio(f64::NAN).to_string(), Ratio(1.0).to_string()),
            ("-".into(), "1.00".into())
        );
    }
}
