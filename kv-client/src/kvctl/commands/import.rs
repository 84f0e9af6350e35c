//! `import`: every line of a file becomes a put.
//!
//! ```text
//! file thread: read, unzip, parse ──bounded──► this task: at most N puts under way, lines of one
//!                                              key one after another, in file order
//! ```
//!
//! Invariants
//! 1. Two lines with the same key are never under way together, and the earlier goes first.
//! 2. When it stops at a line it can't read, every line before it is stored and none after it has
//!    been begun. When the cluster refuses a line, up to N lines after it may be stored as well.
//! 3. What is counted as written was acknowledged.
//!
//! A put is tried for as long as `--patience` says, over elections and restarts, with one tag: it takes effect
//! once. The lines themselves are idempotent, so a second run after a failure is safe.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Client, Effect, Error, ErrorKind};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::{builder, seconds_text};
use crate::kvctl::args::{Format, Global, Import};
use crate::kvctl::failure::Failure;
use crate::kvctl::json::{Object, parse_object, take_bytes};
use crate::kvctl::output::{Output, narrate};

/// Lines that are read ahead of the puts.
const LINES_AHEAD: usize = 1024;
/// The longest line in bytes: the largest value in its longest JSON form, six characters a byte.
const LINE_BYTES_MAX: usize = 100 << 20;
/// The first bytes of a file compressed with zstd.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A line of the file.
#[derive(Debug)]
struct Line {
    number: u64,
    key: Bytes,
    value: Bytes,
}

/// What the file thread hands over.
#[derive(Debug)]
enum Read1 {
    Line(Line),
    /// A line that can't be stored, and why.
    Bad {
        number: u64,
        reason: String,
    },
    /// The file can't be read any further.
    Failed(io::Error),
}

/// The counts so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    written: u64,
    skipped: u64,
}

pub(crate) async fn import(global: &Global, asked: Import) -> Result<(), Failure> {
    let mut output = Output::new(global.output)?;
    let name = if asked.file == Path::new("-") {
        "standard input".to_owned()
    } else {
        asked.file.display().to_string()
    };
    let kv = builder(global)
        .timeout(asked.patience)
        .attempt_timeout(global.timeout)
        .connect_lazily()
        .map_err(Failure::Write)?;
    let source = Source::open(asked.file).map_err(|error| Failure::io(name.clone(), error))?;
    let progress = Progress::new(source.bytes);
    let bytes_read = Arc::clone(&source.bytes_read);
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    drop(tokio::task::spawn_blocking(move || source.read_lines(&sender)));

    let start = Instant::now();
    let mut run = Run {
        kv,
        name,
        skip_bad: asked.skip_bad,
        concurrency: asked.concurrency as usize,
        counts: Counts::default(),
        waiting: HashMap::new(),
        queued: 0,
    };
    let ended = run.work(lines, &progress, &bytes_read).await;
    progress.finish();
    summarise(&mut output, run.counts, start.elapsed())?;
    ended
}

/// The result, also when the import has failed.
fn summarise(output: &mut Output, counts: Counts, elapsed: Duration) -> Result<(), Failure> {
    let Counts { written, skipped } = counts;
    let seconds = elapsed.as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rate for people"
    )]
    let rate = (written as f64 / seconds.max(0.001)) as u64;
    narrate(&format!(
        "{written} rows written, {skipped} skipped, in {} ({rate} rows/s)",
        seconds_text(elapsed)
    ));
    match output.format() {
        Format::Json => {
            let milliseconds = (seconds * 1000.0).round() / 1000.0;
            let object = Object::new()
                .with("written", written)
                .with("skipped", skipped)
                .with("seconds", milliseconds);
            output.line(&object.to_line())?;
        }
        Format::Plain | Format::Raw => output.line(&written.to_string())?,
        // The narration has said it.
        Format::Table => {}
    }
    output.flush()
}

/// An import under way.
struct Run {
    kv: Client,
    name: String,
    skip_bad: bool,
    concurrency: usize,
    counts: Counts,
    /// The keys under way, each with the later lines that wait for it.
    waiting: HashMap<Bytes, VecDeque<Line>>,
    /// How many lines wait for an earlier one of their key.
    queued: usize,
}

/// A put that has ended.
type Ended = (Line, Result<(), Error>);

fn store(kv: Client, line: Line) -> BoxFuture<'static, Ended> {
    Box::pin(async move {
        let result = kv.put(&line.key, &line.value).await.map(drop);
        (line, result)
    })
}

impl Run {
    async fn work(
        &mut self,
        mut lines: mpsc::Receiver<Read1>,
        progress: &Progress,
        bytes_read: &AtomicU64,
    ) -> Result<(), Failure> {
        let mut puts: FuturesUnordered<BoxFuture<'static, Ended>> = FuturesUnordered::new();
        let mut stop: Option<Failure> = None;
        // Whether the cluster is why: then nothing more is sent, not even what waits for its key.
        let mut refused = false;
        let mut reading = true;
        loop {
            // Lines that wait for their key count as well: memory is bounded.
            let room = puts.len() + self.queued < self.concurrency;
            tokio::select! {
                biased;
                Some(ended) = puts.next(), if !puts.is_empty() => {
                    let key = ended.0.key.clone();
                    if let Err(failure) = self.judge(ended) {
                        stop.get_or_insert(failure);
                        refused = true;
                    }
                    if let Some(next) = self.next_of(&key).filter(|_| !refused) {
                        puts.push(store(self.kv.clone(), next));
                    }
                    progress.show(bytes_read.load(Ordering::Relaxed), self.counts);
                }
                read = lines.recv(), if reading && room && stop.is_none() => match read {
                    None => reading = false,
                    Some(Read1::Line(line)) => {
                        if let Some(behind) = self.waiting.get_mut(&line.key) {
                            behind.push_back(line);
                            self.queued += 1;
                        } else {
                            self.waiting.insert(line.key.clone(), VecDeque::new());
                            puts.push(store(self.kv.clone(), line));
                        }
                    }
                    Some(Read1::Bad { number, reason }) => {
                        if let Err(failure) = self.bad_line(number, &reason, None) {
                            stop = Some(failure);
                        }
                    }
                    Some(Read1::Failed(error)) => {
                        stop = Some(Failure::io(self.name.clone(), error));
                    }
                },
                else => break,
            }
            if puts.is_empty() && (stop.is_some() || !reading) {
                break;
            }
        }
        stop.map_or(Ok(()), Err)
    }

    /// The line behind one whose put has ended, if any waits for its key.
    fn next_of(&mut self, key: &Bytes) -> Option<Line> {
        let next = self.waiting.get_mut(key)?.pop_front();
        match next {
            Some(_) => self.queued -= 1,
            None => drop(self.waiting.remove(key)),
        }
        next
    }

    fn judge(&mut self, (line, result): Ended) -> Result<(), Failure> {
        match result {
            Ok(()) => {
                self.counts.written += 1;
                Ok(())
            }
            Err(error) => {
                let is_the_lines_fault =
                    matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::BadInput)
                        && error.effect() == Effect::None;
                if is_the_lines_fault {
                    let reason = error.to_string();
                    self.bad_line(line.number, &reason, Some(error))
                } else {
                    Err(Failure::Import(error))
                }
            }
        }
    }

    /// A line that can't be stored, found so here or by the cluster.
    fn bad_line(
        &mut self,
        number: u64,
        reason: &str,
        refused: Option<Error>,
    ) -> Result<(), Failure> {
        let place = format!("{} line {number}", self.name);
        if self.skip_bad {
            self.counts.skipped += 1;
            narrate(&format!("skipped {place}: {reason}"));
            return Ok(());
        }
        Err(match refused {
            Some(error) => Failure::Line { place, error },
            None => Failure::usage(
                format!("{place}: {reason}"),
                "correct the line, or skip and count bad ones: --skip-bad",
            ),
        })
    }
}

/// The input: a file or standard input, compressed or not.
struct Source {
    reader: Box<dyn BufRead + Send>,
    /// The size of the file, if it is one.
    bytes: Option<u64>,
    bytes_read: Arc<AtomicU64>,
}

impl Source {
    fn open(path: PathBuf) -> io::Result<Self> {
        let bytes_read = Arc::new(AtomicU64::new(0));
        let (raw, bytes): (Box<dyn Read + Send>, _) = if path == Path::new("-") {
            (Box::new(io::stdin()), None)
        } else {
            let file = std::fs::File::open(&path)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory"));
            }
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        };
        let counted = Counting { inner: raw, bytes_read: Arc::clone(&bytes_read) };
        let mut reader = BufReader::with_capacity(256 * 1024, counted);
        let compressed = reader.fill_buf()?.starts_with(&ZSTD_MAGIC);
        let reader: Box<dyn BufRead + Send> = if compressed {
            Box::new(BufReader::with_capacity(256 * 1024, zstd::Decoder::with_buffer(reader)?))
        } else {
            Box::new(reader)
        };
        Ok(Self { reader, bytes, bytes_read })
    }

    /// Reads to the end, or until nobody wants more.
    fn read_lines(mut self, sender: &mpsc::Sender<Read1>) {
        let mut number = 0;
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            number += 1;
            let limit = LINE_BYTES_MAX as u64 + 1;
            let read = match (&mut self.reader).take(limit).read_until(b'\n', &mut buffer) {
                Ok(0) => return,
                Ok(_) if buffer.len() > LINE_BYTES_MAX => {
                    let reason = format!("longer than {LINE_BYTES_MAX} bytes");
                    match self.skip_line() {
                        Ok(()) => Read1::Bad { number, reason },
                        Err(error) => Read1::Failed(error),
                    }
                }
                Ok(_) if buffer.trim_ascii().is_empty() => continue,
                Ok(_) => match parse(&buffer) {
                    Ok((key, value)) => Read1::Line(Line { number, key, value }),
                    Err(reason) => Read1::Bad { number, reason },
                },
                Err(error) => Read1::Failed(error),
            };
            let last = matches!(read, Read1::Failed(_));
            if sender.blocking_send(read).is_err() || last {
                return;
            }
        }
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let (used, found) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(position) => (position + 1, true),
                None => (buffer.len(), false),
            };
            self.reader.consume(used);
            if found || used == 0 {
                return Ok(());
            }
        }
    }
}

/// Counts what is read, before it is unzipped, for the progress bar.
struct Counting {
    inner: Box<dyn Read + Send>,
    bytes_read: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A line's key and value. Further fields are left aside, so that what `range -o json` prints can
/// be imported too.
///
/// # Errors
/// What is wrong with the line.
fn parse(line: &[u8]) -> Result<(Bytes, Bytes), String> {
    let mut object = parse_object(line)?;
    let key = take_bytes(&mut object, "key")?.ok_or("no \"key\"")?;
    let value = take_bytes(&mut object, "value")?.ok_or("no \"value\"")?;
    if key.is_empty() {
        return Err("\"key\" is empty".to_owned());
    }
    Ok((key, value))
}

/// The progress bar on a terminal; nothing elsewhere.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(bytes: Option<u64>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (bar, template) = match bytes {
            Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {percent:>3}%  {msg}  {eta} left"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
        };
        // The templates are constants that parse.
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_invalid| ProgressStyle::default_bar());
        bar.set_style(style);
        Self(Some(bar))
    }

    fn show(&self, bytes_read: u64, counts: Counts) {
        let Some(bar) = &self.0 else { return };
        bar.set_position(bytes_read);
        let elapsed = bar.elapsed().as_millis().max(1);
        let rate = u128::from(counts.written) * 1000 / elapsed;
        bar.set_message(format!("{} rows, {rate} rows/s", counts.written));
    }

    fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(line: &str) -> String {
        parse(line.as_bytes()).expect_err("the line is bad")
    }

    #[test]
    fn a_line_is_a_key_and_a_value_in_text_or_base64() {
        let parsed = parse(b"{\"key\":\"a\",\"value\":\"{\\\"n\\\":1}\"}\n");
        assert_eq!(parsed, Ok((Bytes::from("a"), Bytes::from("{\"n\":1}"))));
        let parsed = parse(b"{\"key_base64\":\"/w==\",\"value\":\"\",\"version\":3}");
        assert_eq!(parsed, Ok((Bytes::from_static(b"\xff"), Bytes::new())));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        assert_eq!(
            reason("{\"key\":\"a\",\"value\":5}"),
            "\"value\" must be a string, not a number"
        );
        assert_eq!(reason("{\"key\":\"a\"}"), "no \"value\"");
        assert_eq!(reason("{\"value\":\"a\"}"), "no \"key\"");
        assert_eq!(reason("{\"key\":\"\",\"value\":\"a\"}"), "\"key\" is empty");
        assert_eq!(reason("[1]"), "not an object but a list");
        assert!(reason("{\"key\":").starts_with("not JSON: "), "{}", reason("{\"key\":"));
    }
}
