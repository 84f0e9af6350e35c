//! What the system knows of this process and of the machine. Where there is no `/proc` the answers are zero.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Processor time of this process, user and system, all threads.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

/// Bytes that this process handed to `write` and its like, into files of any kind.
pub(crate) fn bytes_written() -> u64 {
    field("/proc/self/io", "wchar:").unwrap_or(0)
}

/// The most memory this process had resident since it began or last measured a row, in bytes.
#[must_use]
pub fn peak_memory() -> u64 {
    field("/proc/self/status", "VmHWM:").unwrap_or(0) * 1024
}

/// From here on [`peak_memory`] counts anew. Where the system does not allow that, it counts from the beginning.
pub(crate) fn reset_peak_memory() {
    let _allowed = fs::write("/proc/self/clear_refs", "5").is_ok();
}

/// Time that all cores together spent working, for anybody.
pub(crate) fn machine_busy() -> Duration {
    /// `/proc/stat` counts in hundredths of a second on every Linux.
    const TICK: Duration = Duration::from_millis(10);
    let Ok(text) = fs::read_to_string("/proc/stat") else { return Duration::ZERO };
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .into_iter()
        .flat_map(str::split_whitespace)
        .skip(1)
        .filter_map(|ticks| ticks.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; the rest is counted in user already.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum();
    TICK * u32::try_from(busy).unwrap_or(u32::MAX)
}

/// How many cores there are.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

/// What a directory takes on the disk, in bytes.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        // It was removed meanwhile.
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// The number after `name` in a file of lines `name number …`.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
