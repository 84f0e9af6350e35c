//! A file system in memory that crashes, fails and damages on command.
//!
//! It keeps two pictures: what calls see, and what would survive a loss of power. [`MemVfs::crash`]
//! turns the second into the first after a [`CrashPolicy`]; [`MemVfs::kill`] is the end of the
//! process alone: handles and locks are gone, the kernel still holds what was written. Mutating calls
//! are numbered, and the machine can be made to stop at any of them; any call can be made to fail.
//! Everything random comes from a seed. Not for storing anything: for tests and simulations, of which
//! it is the disk; they run hundreds of these.

mod file;
mod names;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

pub use policy::{CrashPolicy, DataLoss, Fault, FaultKind, FaultWhen, NameLoss, OpSet};

use self::file::FileData;
use self::names::Names;
use self::policy::Op;
use super::{Vfs, VfsFile, VfsLock};
use crate::rng::SplitMix64;

/// A simulated file system; clones are the same one.
#[derive(Clone)]
pub struct MemVfs {
    world: Arc<Mutex<World>>,
}

#[derive(Clone)]
struct World {
    names: Names,
    files: BTreeMap<u64, FileData>,
    next_file: u64,
    /// Open handles per file, so that an unlinked file stays readable while it is open.
    handles: BTreeMap<u64, u64>,
    locks: BTreeSet<PathBuf>,
    /// Rises with every crash and kill: handles from before are dead.
    generation: u64,
    calls: u64,
    mutating_calls: u64,
    stop_at: Option<u64>,
    stopped: bool,
    faults: Vec<Fault>,
    faults_fired: u64,
    /// Bytes the device holds; `None`: more than any test writes.
    capacity: Option<u64>,
    rng: SplitMix64,
    /// Copies taken before each mutating call, if wanted.
    recorded: Option<Vec<Self>>,
}

/// What a call does.
enum Verdict {
    Go,
    /// The machine stops during this call: its effect may or may not last.
    Stop,
    Fail(FaultKind),
}

impl fmt::Debug for MemVfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.world.lock();
        f.debug_struct("MemVfs")
            .field("files", &world.files.len())
            .field("calls", &world.calls)
            .field("stopped", &world.stopped)
            .finish_non_exhaustive()
    }
}

impl Default for MemVfs {
    fn default() -> Self {
        Self::new(0)
    }
}

fn stopped() -> io::Error {
    io::Error::other("the simulated machine has stopped")
}

fn stale() -> io::Error {
    io::Error::other("the file was opened before the simulated machine stopped")
}

fn failure(kind: FaultKind) -> io::Error {
    match kind {
        FaultKind::Io => io::Error::other("injected input/output error"),
        FaultKind::NoSpace => {
            io::Error::new(io::ErrorKind::StorageFull, "injected: no space left on device")
        }
        FaultKind::CrossesDevices => {
            io::Error::new(io::ErrorKind::CrossesDevices, "injected: another file system")
        }
    }
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "the simulated device is full")
}

impl World {
    /// Counts a call and says what it does.
    fn admit(&mut self, op: Op, path: &Path) -> io::Result<Verdict> {
        if self.stopped {
            return Err(stopped());
        }
        let call = self.calls;
        self.calls += 1;
        if op.is_mutating() {
            if let Some(mut recorded) = self.recorded.take() {
                recorded.push(self.clone());
                self.recorded = Some(recorded);
            }
            let number = self.mutating_calls;
            self.mutating_calls += 1;
            if self.stop_at == Some(number) {
                self.stopped = true;
                return Ok(Verdict::Stop);
            }
        }
        if self.faults.is_empty() {
            return Ok(Verdict::Go);
        }
        let mut verdict = Verdict::Go;
        for fault in &self.faults {
            let fires = fault.concerns(op, path)
                && match fault.when {
                    FaultWhen::Call(at) => at == call,
                    FaultWhen::From(at) => at <= call,
                    FaultWhen::Chance(in_a_million) => {
                        self.rng.chance(u64::from(in_a_million), 1_000_000)
                    }
                    FaultWhen::Always => true,
                };
            if fires {
                verdict = Verdict::Fail(fault.kind);
                self.faults_fired += 1;
                break;
            }
        }
        Ok(verdict)
    }

    /// A call without a middle: it happens whole or not at all.
    fn whole<T>(
        &mut self,
        op: Op,
        path: &Path,
        act: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.admit(op, path)? {
            Verdict::Go => act(self),
            Verdict::Fail(kind) => Err(failure(kind)),
            Verdict::Stop => {
                act(self)?;
                Err(stopped())
            }
        }
    }

    fn data(&mut self, file: u64) -> io::Result<&mut FileData> {
        self.files.get_mut(&file).ok_or_else(stale)
    }

    /// Bytes that can still be written.
    fn free(&self) -> u64 {
        const PLENTY: u64 = 1 << 40;
        let Some(capacity) = self.capacity else { return PLENTY };
        capacity.saturating_sub(self.files.values().map(FileData::len).sum())
    }

    /// Writes as much as the device has room for.
    fn write(&mut self, file: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let free = if self.capacity.is_some() { self.free() } else { u64::MAX };
        let data = self.data(file)?;
        let room = data.len().saturating_add(free).saturating_sub(offset);
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        data.write(bytes.get(..fits).unwrap_or(bytes), offset)?;
        if fits == bytes.len() { Ok(()) } else { Err(full()) }
    }

    /// Lengthens a file, if the device has room for that.
    fn lengthen(&mut self, file: u64, len: u64) -> io::Result<()> {
        let free = self.free();
        let data = self.data(file)?;
        if len.saturating_sub(data.len()) > free {
            return Err(full());
        }
        data.set_len(len.max(data.len()))
    }

    fn forget_unused(&mut self) {
        let Self { names, files, handles, .. } = self;
        let mentioned = names.mentioned();
        files.retain(|file, _| handles.contains_key(file) || mentioned.contains(file));
    }

    fn end_of_process(&mut self) {
        self.generation += 1;
        self.handles.clear();
        self.locks.clear();
        self.stopped = false;
        self.stop_at = None;
        self.forget_unused();
    }
}

impl MemVfs {
    /// An empty file system; `seed` decides everything random but crashes, which have their own.
    pub fn new(seed: u64) -> Self {
        let world = World {
            names: Names::new(),
            files: BTreeMap::new(),
            next_file: 0,
            handles: BTreeMap::new(),
            locks: BTreeSet::new(),
            generation: 0,
            calls: 0,
            mutating_calls: 0,
            stop_at: None,
            stopped: false,
            faults: Vec::new(),
            faults_fired: 0,
            capacity: None,
            rng: SplitMix64::new(seed),
            recorded: None,
        };
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// A copy that shares nothing that changes: the same content, the same unsynced bytes, no open
    /// handles, no locks, no faults.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut world = self.world.lock().clone();
        world.faults.clear();
        world.recorded = None;
        world.end_of_process();
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// From now on keeps a copy of itself before each mutating call, for [`MemVfs::take_recorded`]: every
    /// place to crash at, in one run.
    pub fn record(&self) {
        self.world.lock().recorded = Some(Vec::new());
    }

    /// The copies since [`MemVfs::record`], which ends: the first is before the mutating call that was the
    /// next one then, and so on. Handles and locks are as after [`MemVfs::kill`].
    pub fn take_recorded(&self) -> Vec<Self> {
        let recorded = self.world.lock().recorded.take().unwrap_or_default();
        let revive = |mut world: World| {
            world.faults.clear();
            world.end_of_process();
            Self { world: Arc::new(Mutex::new(world)) }
        };
        recorded.into_iter().map(revive).collect()
    }

    /// The machine loses power and starts again: what was not synced goes after `policy`, drawn from
    /// `seed`. Handles from before fail, locks are free, faults stay.
    pub fn crash(&self, policy: CrashPolicy, seed: u64) {
        let mut rng = SplitMix64::new(seed);
        let mut world = self.world.lock();
        for file in world.files.values_mut() {
            file.crash(policy.data, &mut rng);
        }
        world.names.crash(policy.names, &mut rng);
        world.end_of_process();
    }

    /// The process ends, the machine goes on: handles from before fail, locks are free, unsynced
    /// bytes and names are still there, and still unsynced.
    pub fn kill(&self) {
        self.world.lock().end_of_process();
    }

    /// How many calls were made; the next one has this number.
    pub fn calls(&self) -> u64 {
        self.world.lock().calls
    }

    /// How many calls were made that change or sync something; the next one has this number.
    pub fn mutating_calls(&self) -> u64 {
        self.world.lock().mutating_calls
    }

    /// Stops the machine in the middle of the mutating call `number`: it and everything after it fails
    /// until [`MemVfs::crash`] or [`MemVfs::kill`]. Whether its effect lasts is for the crash to say.
    pub fn crash_at(&self, number: u64) {
        self.world.lock().stop_at = Some(number);
    }

    /// Whether the machine has stopped where [`MemVfs::crash_at`] said.
    pub fn has_stopped(&self) -> bool {
        self.world.lock().stopped
    }

    /// Adds a rule by which calls fail.
    pub fn add_fault(&self, fault: Fault) {
        self.world.lock().faults.push(fault);
    }

    /// Removes all rules by which calls fail.
    pub fn clear_faults(&self) {
        self.world.lock().faults.clear();
    }

    /// How many calls failed by such a rule.
    pub fn faults_fired(&self) -> u64 {
        self.world.lock().faults_fired
    }

    /// Limits the device to so many bytes of files; `None` ends the limit. A write beyond it fails with
    /// `StorageFull` after the part that fits, until files are removed or the limit is raised.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.lock().capacity = bytes;
    }

    /// All files, sorted. Not counted as a call.
    pub fn files(&self) -> Vec<PathBuf> {
        self.world.lock().names.files().into_iter().map(|(path, _)| path).collect()
    }

    /// A file's content. Not counted as a call.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut world = self.world.lock();
        let file = world.names.file(path)?;
        let data = world.data(file)?;
        let mut content = vec![0; usize::try_from(data.len()).map_err(io::Error::other)?];
        data.read(&mut content, 0)?;
        Ok(content)
    }

    /// Replaces a file's content, durably, as damage or an old copy would. Not counted as a call.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut world = self.world.lock();
        let file = world.names.file(path)?;
        world.data(file)?.replace(content)
    }

    /// Flips the bits of `mask` in one byte, in memory and on disk. Not counted as a call.
    ///
    /// # Errors
    /// `NotFound`, or `UnexpectedEof` if the file has no such byte.
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut world = self.world.lock();
        let file = world.names.file(path)?;
        world.data(file)?.damage(offset, mask)
    }

    /// Whether the file's name and all of its content would survive any crash.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn is_durable(&self, path: &Path) -> io::Result<bool> {
        let mut world = self.world.lock();
        let file = world.names.file(path)?;
        Ok(world.names.is_durable(path) && world.data(file)?.is_durable())
    }

    fn open(&self, world: &mut World, file: u64, path: &Path) -> Arc<dyn VfsFile> {
        *world.handles.entry(file).or_default() += 1;
        let generation = world.generation;
        Arc::new(MemFile {
            world: Arc::clone(&self.world),
            file,
            generation,
            path: path.to_path_buf(),
        })
    }
}

impl Vfs for MemVfs {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut world = self.world.lock();
        world.whole(Op::Open, path, |world| {
            let file = world.names.file(path)?;
            Ok(self.open(world, file, path))
        })
    }

    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.open_read(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut world = self.world.lock();
        // The handle outlives a stop inside this call: it must be dropped without the lock.
        let mut opened = None;
        let result = world.whole(Op::Create, path, |world| {
            let file = world.next_file;
            world.names.create(path, file)?;
            world.next_file += 1;
            world.files.insert(file, FileData::default());
            opened = Some(self.open(world, file, path));
            Ok(())
        });
        drop(world);
        result.and_then(|()| opened.ok_or_else(stopped))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.world.lock().whole(Op::Rename, from, |world| world.names.rename(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.world.lock().whole(Op::Link, from, |world| world.names.link(from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.world.lock().whole(Op::Unlink, path, |world| world.names.unlink(path))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.world.lock().whole(Op::CreateDir, path, |world| world.names.create_dir_all(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.world.lock().whole(Op::RemoveDir, path, |world| world.names.remove_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.world.lock().whole(Op::List, dir, |world| {
            Ok(world.names.list(dir)?.into_iter().map(|(name, _)| dir.join(name)).collect())
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.world.lock().whole(Op::Open, path, |world| Ok(world.names.find(path)?.is_some()))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        match world.admit(Op::SyncDir, dir)? {
            Verdict::Go => {
                world.names.sync(dir)?;
                world.forget_unused();
                Ok(())
            }
            Verdict::Fail(kind) => Err(failure(kind)),
            Verdict::Stop => Err(stopped()),
        }
    }

    fn lock(&self, path: &Path, content: &[u8]) -> io::Result<Box<dyn VfsLock>> {
        let mut world = self.world.lock();
        world.whole(Op::Lock, path, |world| {
            if !world.locks.insert(path.to_path_buf()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let held = match world.names.find(path)? {
                Some(_) => world.names.file(path)?,
                None => {
                    let file = world.next_file;
                    world.names.create(path, file)?;
                    world.next_file += 1;
                    world.files.insert(file, FileData::default());
                    file
                }
            };
            let data = world.data(held)?;
            data.set_len(0)?;
            data.write(content, 0)
        })?;
        let generation = world.generation;
        Ok(Box::new(MemLock {
            world: Arc::clone(&self.world),
            path: path.to_path_buf(),
            generation,
        }))
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.world.lock().whole(Op::Open, path, |world| Ok(world.free()))
    }
}

struct MemFile {
    world: Arc<Mutex<World>>,
    file: u64,
    generation: u64,
    path: PathBuf,
}

impl fmt::Debug for MemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        if world.generation != self.generation {
            return;
        }
        if let Some(count) = world.handles.get_mut(&self.file) {
            *count -= 1;
            if *count == 0 {
                world.handles.remove(&self.file);
                if !world.names.mentions(self.file) {
                    world.files.remove(&self.file);
                }
            }
        }
    }
}

impl MemFile {
    fn with<T>(&self, act: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.world.lock();
        if world.generation != self.generation {
            return Err(stale());
        }
        act(&mut world)
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|world| match world.admit(Op::Sync, &self.path)? {
            Verdict::Go => {
                world.data(self.file)?.sync();
                Ok(())
            }
            Verdict::Fail(kind) => {
                world.data(self.file)?.fail_sync();
                Err(failure(kind))
            }
            Verdict::Stop => Err(stopped()),
        })
    }
}

impl VfsFile for MemFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|world| {
            world.whole(Op::Read, &self.path, |world| world.data(self.file)?.read(buf, offset))
        })
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.with(|world| match world.admit(Op::Write, &self.path)? {
            Verdict::Go => world.write(self.file, buf, offset),
            Verdict::Stop => {
                world.write(self.file, buf, offset)?;
                Err(stopped())
            }
            Verdict::Fail(kind) => {
                let part = world.rng.below(buf.len() as u64 + 1);
                let part = usize::try_from(part).unwrap_or(0).min(buf.len());
                world.data(self.file)?.write(&buf[..part], offset)?;
                Err(failure(kind))
            }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|world| {
            world.whole(Op::Len, &self.path, |world| Ok(world.data(self.file)?.len()))
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|world| {
            world.whole(Op::SetLen, &self.path, |world| world.data(self.file)?.set_len(len))
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|world| {
            world.whole(Op::Allocate, &self.path, |world| world.lengthen(self.file, len))
        })
    }
}

struct MemLock {
    world: Arc<Mutex<World>>,
    path: PathBuf,
    generation: u64,
}

impl fmt::Debug for MemLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemLock").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for MemLock {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        if world.generation == self.generation {
            world.locks.remove(&self.path);
        }
    }
}

impl VfsLock for MemLock {}
