//! What writers wait for when the log goes on in its next segment: told by the calls made to the file system, by
//! which thread, while every sync of the log is held back.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lsm_store::vfs::{MemVfs, Vfs, VfsFile, VfsLock};
use lsm_store::{
    Durability, Executor, Keep, Mode, Options, PartitionId, PartitionOptions, Store, WriteBatch,
};
use parking_lot::{Condvar, Mutex};

const P: PartitionId = PartitionId(0);
const LOG: &str = "/db/wal";
/// Longest wait for what has to happen; only a failing test takes that long.
const AT_MOST: Duration = Duration::from_secs(60);

/// A call that changes the log's files or makes them durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Rename,
    Unlink,
    Write,
    Resize,
    Sync,
    SyncDir,
}

/// A call, by whom and of what; a sync is noted a second time when it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Noted {
    thread: String,
    call: Call,
    /// `wal`, `tmp`, or a segment's name.
    name: String,
    done: bool,
}

/// A file system that notes the calls of the log, and holds its syncs back while it is told to.
#[derive(Debug, Clone)]
struct Held {
    vfs: MemVfs,
    calls: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    noted: Vec<Noted>,
    held_back: bool,
}

impl Calls {
    fn note(
        &self,
        call: Call,
        path: &Path,
        what: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if !path.starts_with(LOG) {
            return what();
        }
        let thread = std::thread::current().name().unwrap_or("?").to_owned();
        let name = path.file_name().map_or("?".into(), |name| name.to_string_lossy()).into_owned();
        let mut noted = Noted { thread, call, name, done: false };
        let mut state = self.state.lock();
        state.noted.push(noted.clone());
        self.changed.notify_all();
        if !matches!(call, Call::Sync | Call::SyncDir) {
            drop(state);
            return what();
        }
        while state.held_back {
            self.changed.wait(&mut state);
        }
        drop(state);
        what()?;
        noted.done = true;
        self.state.lock().noted.push(noted);
        self.changed.notify_all();
        Ok(())
    }

    fn hold_syncs_back(&self, held_back: bool) {
        self.state.lock().held_back = held_back;
        self.changed.notify_all();
    }

    /// Waits until there were so many such calls.
    fn wait_for(&self, what: &str, count: usize, is_it: impl Fn(&Noted) -> bool) {
        let deadline = Instant::now() + AT_MOST;
        let mut state = self.state.lock();
        loop {
            if state.noted.iter().filter(|noted| is_it(noted)).count() >= count {
                return;
            }
            let late = self.changed.wait_until(&mut state, deadline).timed_out();
            assert!(!late, "waited in vain for {what}: {:#?}", state.noted);
        }
    }

    fn since(&self, from: usize) -> Vec<Noted> {
        self.state.lock().noted.get(from..).unwrap_or_default().to_vec()
    }

    fn len(&self) -> usize {
        self.state.lock().noted.len()
    }
}

#[derive(Debug)]
struct File {
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    calls: Arc<Calls>,
}

impl Held {
    fn new() -> Self {
        Self { vfs: MemVfs::new(1), calls: Arc::default() }
    }

    fn file(&self, path: &Path, file: Arc<dyn VfsFile>) -> Arc<dyn VfsFile> {
        Arc::new(File { file, path: path.to_path_buf(), calls: Arc::clone(&self.calls) })
    }
}

impl Vfs for Held {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.vfs.open_read(path)
    }
    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        Ok(self.file(path, self.vfs.open_rw(path)?))
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.calls.note(Call::Create, path, || Ok(()))?;
        Ok(self.file(path, self.vfs.create_new(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.calls.note(Call::Rename, to, || self.vfs.rename(from, to))
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.vfs.link(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.calls.note(Call::Unlink, path, || self.vfs.unlink(path))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.vfs.create_dir_all(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.vfs.remove_dir(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.vfs.list(dir)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.vfs.exists(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.calls.note(Call::SyncDir, dir, || self.vfs.sync_dir(dir))
    }
    fn lock(&self, path: &Path, content: &[u8]) -> io::Result<Box<dyn VfsLock>> {
        self.vfs.lock(path, content)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.vfs.free_space(path)
    }
}

impl VfsFile for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.calls.note(Call::Write, &self.path, || self.file.write_all_at(buf, offset))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.calls.note(Call::Sync, &self.path, || self.file.sync_data())
    }
    fn sync_all(&self) -> io::Result<()> {
        self.calls.note(Call::Sync, &self.path, || self.file.sync_all())
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.calls.note(Call::Resize, &self.path, || self.file.set_len(len))
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.calls.note(Call::Resize, &self.path, || self.file.allocate(len))
    }
}

fn open(held: &Held) -> Store {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::NewestOnly }];
    let options = Options {
        mode: Mode::Wal,
        wal_segment_bytes: 64 << 10,
        cache_bytes: 1 << 20,
        ..Options::new(1, partitions)
    };
    Store::open(Arc::new(held.clone()), Path::new("/db"), options, Executor::Threads)
        .expect("opens")
}

fn put(store: &Store, number: u32, durability: Durability) {
    let mut batch = WriteBatch::new();
    batch.put(P, &number.to_be_bytes(), &[7; 500]).expect("small");
    store.write(batch, durability).expect("written");
}

/// Runs `work` on a thread of this name; what it sends is received here.
fn on<T: Send + 'static>(
    name: &str,
    store: &Store,
    work: impl FnOnce(&Store, &mpsc::Sender<T>) + Send + 'static,
) -> (JoinHandle<()>, Receiver<T>) {
    let (tell, told) = mpsc::channel();
    let store = store.clone();
    let thread = std::thread::Builder::new().name(name.to_owned());
    (thread.spawn(move || work(&store, &tell)).expect("starts"), told)
}

fn segment(number: u64) -> String {
    format!("{number:016x}.wal")
}

fn is(noted: &Noted, thread: &str, call: Call, name: &str) -> bool {
    noted.thread == thread && noted.call == call && noted.name == name
}

/// A store that went on in its second segment while no sync of the log could be done; what the writer's calls
/// were, and the number of the next batch.
fn rolled(held: &Held) -> (Store, Vec<Noted>, u32) {
    let store = open(held);
    // A third of the first segment: the next one is due.
    let first = 40;
    (0..first).for_each(|number| put(&store, number, Durability::Buffered));
    held.calls.wait_for("the second segment to be prepared", 1, |noted| {
        noted.done && is(noted, "lsm-log", Call::Sync, &segment(2))
    });
    held.calls.hold_syncs_back(true);
    let from = held.calls.len();
    let (writer, told) = on("writer", &store, {
        let held = held.clone();
        move |store, tell| {
            let mut next = first;
            while !held.calls.since(from).iter().any(|n| is(n, "writer", Call::Write, &segment(2)))
            {
                put(store, next, Durability::Buffered);
                next += 1;
            }
            tell.send(next).expect("told");
        }
    });
    let next = told.recv_timeout(AT_MOST).unwrap_or(0);
    let calls = held.calls.since(from);
    assert!(next > first, "the writer waits though the next segment is ready: {calls:#?}");
    writer.join().expect("no panic");
    (store, calls.into_iter().filter(|noted| noted.thread == "writer").collect(), next)
}

fn check_all_there(store: Store, held: &Held, count: u32) {
    store.close().expect("closed");
    let store = open(held);
    for number in 0..count {
        let found = store.get(P, &number.to_be_bytes()).expect("readable");
        assert!(found.is_some(), "batch {number} of {count} is there");
    }
}

#[test]
fn a_writer_goes_on_in_the_next_segment_without_a_sync_or_a_new_file() {
    let held = Held::new();
    let (store, own, next) = rolled(&held);
    held.calls.wait_for("the helper to begin with the syncs", 1, |noted| {
        is(noted, "lsm-log", Call::SyncDir, "wal") && !noted.done
    });
    assert!(
        own.iter().all(|noted| matches!(noted.call, Call::Write | Call::Rename)),
        "only writes and the new name: {own:#?}"
    );
    held.calls.hold_syncs_back(false);
    check_all_there(store, &held, next);
}

#[test]
fn a_second_roll_waits_for_the_syncs_of_the_first_and_for_nothing_else() {
    let held = Held::new();
    let (store, _, second_from) = rolled(&held);
    // All segments hold as many, give or take what their first records take.
    let whole_segment = second_from - 3;
    let last = second_from + 2 * whole_segment;
    let (writer, told) = on("writer", &store, move |store, tell| {
        for number in second_from..last {
            put(store, number, Durability::Buffered);
            tell.send(number).expect("told");
        }
    });
    for number in second_from..second_from + whole_segment - 3 {
        let written = told.recv_timeout(AT_MOST);
        assert_eq!(written, Ok(number), "the second segment is filled while nothing is synced");
    }
    let renamed = |n: &Noted| n.call == Call::Rename && n.name == segment(3);
    assert!(!held.calls.since(0).iter().any(renamed), "the third segment has not begun");
    let from = held.calls.len();
    held.calls.hold_syncs_back(false);
    writer.join().expect("no panic");
    let calls = held.calls.since(from);
    let roll = calls.iter().position(renamed).expect("the third segment begins");
    let mut syncs: Vec<_> =
        calls[..roll].iter().filter(|n| n.done).map(|n| n.name.as_str()).collect();
    syncs.sort_unstable();
    let (one, three) = (segment(1), segment(3));
    assert_eq!(syncs, [&one, &three, "tmp", "wal"], "the names, the first segment, the new file");
    check_all_there(store, &held, last);
}

#[test]
fn batches_are_logged_while_the_sync_behind_a_roll_is_under_way() {
    let held = Held::new();
    let (store, _, next) = rolled(&held);
    let logged = |name: &'static str, writes| {
        let is_it = |n: &Noted| is(n, name, Call::Write, &segment(2));
        held.calls.wait_for("a batch to be logged", writes, is_it);
    };
    let writers: Vec<_> = [
        // Its second write, of zeros ahead, is part of its sync: it leads no more, and takes nobody with it.
        ("first", Durability::Sync, 2),
        ("second", Durability::Buffered, 1),
        ("third", Durability::Sync, 1),
    ]
    .into_iter()
    .zip(next..)
    .map(|((name, durability, writes), number)| {
        let writer = on(name, &store, move |store, tell| {
            put(store, number, durability);
            tell.send(()).expect("told");
        });
        logged(name, writes);
        writer
    })
    .collect();
    for (thread, told) in &writers {
        let name = thread.thread().name();
        assert!(told.try_recv().is_err(), "{name:?} is not told before the sync is done");
    }
    let from = held.calls.len();
    held.calls.hold_syncs_back(false);
    for (thread, told) in writers {
        told.recv_timeout(AT_MOST).expect("told after it");
        thread.join().expect("no panic");
    }
    let calls = held.calls.since(from);
    let syncs =
        calls.iter().filter(|n| n.call == Call::Sync && n.name == segment(2) && n.done).count();
    assert!((1..=2).contains(&syncs), "the second and the third share one: {calls:#?}");
    check_all_there(store, &held, next + 3);
}
