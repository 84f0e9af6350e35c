//! Measures a row, and the row itself.
//!
//! The clock runs over the workload's own operations. Processor time and bytes written are taken after the
//! background work that the workload caused has come to rest as well, so that no engine can put it off.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::bench::{Outcome, system};

/// Longest time that background work is waited for.
const REST_MAX: Duration = Duration::from_secs(120);
/// The process is at rest when it used less than [`REST_WORK`] of processor time in so long.
const REST_WINDOW: Duration = Duration::from_millis(150);
const REST_WORK: Duration = Duration::from_micros(1500);

/// Share of all cores that others may use before a row is marked as disturbed.
const DISTURBED: f64 = 0.12;

/// One result. Times in microseconds, sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The workload's name.
    pub workload: String,
    /// Operations done; entries for scans, keys for batches.
    pub operations: u64,
    /// What they took.
    pub seconds: f64,
    /// Latencies of single operations. Of a scan, of 1000 entries; of a batch, of the whole batch.
    pub latencies: Latencies,
    /// Processor time of the process per operation, background work to its end included.
    pub cpu_per_operation: f64,
    /// Bytes written to files for each byte of keys and values given, background work to its end included; 0 for reads.
    pub write_amplification: f64,
    /// What the store takes on disk at the end.
    pub disk_bytes: u64,
    /// Most resident memory during the row, less the benchmark's own buffers.
    pub peak_memory_bytes: u64,
    /// Share of all cores that other processes used during the timed part, 0 to 1.
    pub other_cpu: f64,
    /// Of a workload that reads and writes: writes a second.
    pub writes_per_second: f64,
    /// After a crash: writes that are gone.
    pub lost: u64,
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Latencies {
    /// Median.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Row {
    /// Operations per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.operations as f64 / self.seconds } else { 0.0 }
    }

    /// What the columns of [`line`](Row::line) are.
    pub const HEADER: &str = "workload                ops/s    p50 us    p99 us  p99.9 us     max us   cpu us    wamp  disk MB  mem MiB";

    /// Its numbers as a line of a table. `~` says that others used the machine meanwhile.
    #[must_use]
    pub fn line(&self) -> String {
        // One operation is a duration; many are a rate.
        let speed = if self.operations == 1 {
            format!("{:.2} ms", self.seconds * 1e3)
        } else {
            format!("{:.0}", self.rate())
        };
        let disturbed = if self.other_cpu >= DISTURBED { "~" } else { "" };
        let Latencies { p50, p99, p999, max } = self.latencies;
        format!(
            "{:<17} {speed:>11}{disturbed:1}{p50:>8.2} {p99:>9.2} {p999:>9.2} {max:>10.1} {:>8.3} {:>7.2} {:>8.1} {:>8.1}",
            self.workload,
            self.cpu_per_operation,
            self.write_amplification,
            self.disk_bytes as f64 / 1e6,
            self.peak_memory_bytes as f64 / f64::from(1 << 20),
        )
    }

    /// Its numbers as members of a JSON object, without the braces.
    #[must_use]
    pub fn json_members(&self) -> String {
        let mut out = String::new();
        let mut number = |name: &str, value: f64| {
            let separator = if out.is_empty() { "" } else { "," };
            // A string takes whatever is written to it.
            let _always = write!(out, "{separator}\"{name}\":{value:.4}").is_ok();
        };
        number("operations", self.operations as f64);
        number("seconds", self.seconds);
        number("operations_per_second", self.rate());
        number("p50_us", self.latencies.p50);
        number("p99_us", self.latencies.p99);
        number("p999_us", self.latencies.p999);
        number("max_us", self.latencies.max);
        number("cpu_us_per_operation", self.cpu_per_operation);
        number("write_amplification", self.write_amplification);
        number("disk_bytes", self.disk_bytes as f64);
        number("peak_memory_bytes", self.peak_memory_bytes as f64);
        number("other_cpu", self.other_cpu);
        number("writes_per_second", self.writes_per_second);
        number("lost", self.lost as f64);
        format!("\"workload\":\"{}\",{out}", self.workload)
    }
}

/// Latencies of one thread, kept as they come: one store to memory that is written in order.
#[derive(Debug)]
pub(crate) struct Samples(Vec<u32>);

impl Samples {
    /// Room for so many, touched already.
    pub(crate) fn with_room(samples: u64) -> Self {
        let mut room = vec![1; usize::try_from(samples).unwrap_or(0)];
        room.clear();
        Self(room)
    }

    /// How many fit.
    pub(crate) fn room(&self) -> usize {
        self.0.capacity()
    }

    #[inline]
    pub(crate) fn add(&mut self, took: Duration) {
        if self.0.len() < self.0.capacity() {
            self.0.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
        }
    }
}

/// A row under measurement.
#[derive(Debug)]
pub(crate) struct Meter {
    workload: &'static str,
    /// Memory of the benchmark itself.
    own_bytes: u64,
    cpu: Duration,
    written: u64,
    busy: Duration,
    started: Instant,
    stopped: Option<Stopped>,
}

#[derive(Debug)]
struct Stopped {
    took: Duration,
    other_cpu: f64,
}

impl Meter {
    /// Starts the clock. `own_bytes` of what is resident are the benchmark's own.
    pub(crate) fn start(workload: &'static str, own_bytes: u64) -> Self {
        system::reset_peak_memory();
        Self {
            workload,
            own_bytes,
            cpu: system::processor_time(),
            written: system::bytes_written(),
            busy: system::machine_busy(),
            started: Instant::now(),
            stopped: None,
        }
    }

    /// Stops the clock.
    pub(crate) fn stop(&mut self) {
        let took = self.started.elapsed();
        let busy = system::machine_busy().saturating_sub(self.busy);
        let own = system::processor_time().saturating_sub(self.cpu);
        let all = took * system::cores();
        // Ticks of the machine are coarse, so short rows say nothing here.
        let other_cpu = if took < Duration::from_millis(200) {
            0.0
        } else {
            busy.saturating_sub(own).as_secs_f64() / all.as_secs_f64()
        };
        self.stopped = Some(Stopped { took, other_cpu });
    }

    /// The row, of so many operations that gave the engine so many bytes of keys and values. Background work has
    /// come to rest.
    pub(crate) fn row(
        mut self,
        operations: u64,
        user_bytes: u64,
        samples: &[Samples],
        dir: &Path,
    ) -> Outcome<Row> {
        if self.stopped.is_none() {
            self.stop();
        }
        let cpu = system::processor_time().saturating_sub(self.cpu);
        let written = system::bytes_written().saturating_sub(self.written);
        let (took, other_cpu) =
            self.stopped.map_or((Duration::ZERO, 0.0), |stopped| (stopped.took, stopped.other_cpu));
        let mut histogram = Histogram::<u64>::new(3)?;
        for nanos in samples.iter().flat_map(|samples| &samples.0) {
            histogram.record(u64::from(*nanos).max(1))?;
        }
        let quantile = |q: f64| histogram.value_at_quantile(q) as f64 / 1e3;
        let latencies = if histogram.is_empty() {
            Latencies::default()
        } else {
            Latencies {
                p50: quantile(0.5),
                p99: quantile(0.99),
                p999: quantile(0.999),
                max: histogram.max() as f64 / 1e3,
            }
        };
        Ok(Row {
            workload: self.workload.to_owned(),
            operations,
            seconds: took.as_secs_f64(),
            latencies,
            cpu_per_operation: cpu.as_secs_f64() * 1e6 / operations.max(1) as f64,
            write_amplification: if user_bytes == 0 {
                0.0
            } else {
                written as f64 / user_bytes as f64
            },
            disk_bytes: system::disk_bytes(dir),
            peak_memory_bytes: system::peak_memory().saturating_sub(self.own_bytes),
            other_cpu,
            writes_per_second: 0.0,
            lost: 0,
        })
    }
}

/// Waits until the process uses hardly any processor time, two minutes at most: background work is done.
pub fn rest() {
    let deadline = Instant::now() + REST_MAX;
    loop {
        let before = system::processor_time();
        pause(REST_WINDOW);
        let worked = system::processor_time().saturating_sub(before);
        if worked < REST_WORK || Instant::now() >= deadline {
            return;
        }
    }
}

/// Lets time pass: what is waited for is a quiet span of it, or a moment to write at.
pub fn pause(span: Duration) {
    let until = Instant::now() + span;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}
