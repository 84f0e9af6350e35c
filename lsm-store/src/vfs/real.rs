//! The operating system's file system.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Advice, Vfs, VfsFile, VfsLock};

/// The real file system. Stateless.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealVfs;

impl RealVfs {
    /// The real file system.
    pub fn new() -> Self {
        Self
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
}

#[derive(Debug)]
struct RealLock {
    /// Closing the file releases the lock.
    _file: File,
}

impl VfsLock for RealLock {}

fn shared(file: File) -> Arc<dyn VfsFile> {
    Arc::new(RealFile { file })
}

/// The directory itself must be named: an empty path stands for the present one.
fn directory(path: &Path) -> &Path {
    if path.as_os_str() == OsStr::new("") { Path::new(".") } else { path }
}

impl Vfs for RealVfs {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        File::open(path).map(shared)
    }

    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        OpenOptions::new().read(true).write(true).open(path).map(shared)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map(shared)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the vfs; callers sync the directories")]
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = fs::read_dir(directory(dir))?
            .map(|entry| Ok(dir.join(entry?.file_name())))
            .collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(directory(dir))?.sync_all()
    }

    fn lock(&self, path: &Path, content: &[u8]) -> io::Result<Box<dyn VfsLock>> {
        // The lock is on the file, not its content, and the file stays: it is opened, never replaced.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        file.write_all_at(content, 0)?;
        Ok(Box::new(RealLock { _file: file }))
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(directory(path))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl VfsFile for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        loop {
            return match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
                Ok(()) => Ok(()),
                Err(Errno::INTR) => continue,
                // Without the call the space is not reserved, but the length is still in place.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(len.max(self.len()?)),
                Err(error) => Err(error.into()),
            };
        }
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) {
        let advice = match advice {
            Advice::Sequential => rustix::fs::Advice::Sequential,
            Advice::Random => rustix::fs::Advice::Random,
            Advice::WillNeed => rustix::fs::Advice::WillNeed,
            Advice::DontNeed => rustix::fs::Advice::DontNeed,
        };
        self.fadvise(offset, len, advice);
    }

    fn hint_write_back(&self, offset: u64, len: u64) {
        // On Linux this begins to write dirty pages back, without waiting, and drops only clean ones: of
        // what was written a moment ago none is.
        self.fadvise(offset, len, rustix::fs::Advice::DontNeed);
    }
}

impl RealFile {
    fn fadvise(&self, offset: u64, len: u64, advice: rustix::fs::Advice) {
        // The operating system takes no length for "to the end of the file".
        let Some(len) = std::num::NonZeroU64::new(len) else { return };
        let _advice_only = rustix::fs::fadvise(&self.file, offset, Some(len), advice).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_created_once_written_at_offsets_and_read_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vfs = RealVfs::new();
        let path = dir.path().join("a");
        let file = vfs.create_new(&path).expect("a new file");
        assert_eq!(
            vfs.create_new(&path).expect_err("it exists").kind(),
            io::ErrorKind::AlreadyExists
        );
        file.allocate(8192).expect("space");
        assert_eq!(file.len().expect("a length"), 8192, "allocation extends the file");
        file.write_all_at(b"hello", 100).expect("written");
        file.sync_data().expect("synced");
        file.hint_write_back(100, 5);
        for advice in [Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::DontNeed] {
            file.advise(0, 8192, advice);
            file.advise(0, 0, advice);
        }
        let mut buf = [0; 5];
        vfs.open_read(&path).expect("open").read_exact_at(&mut buf, 100).expect("read");
        assert_eq!(&buf, b"hello", "what was written");
        let error = file.read_exact_at(&mut buf, 8190).expect_err("past the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn names_are_listed_in_order_linked_renamed_and_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vfs = RealVfs::new();
        let at = |name: &str| dir.path().join(name);
        drop(vfs.create_new(&at("b")).expect("a new file"));
        vfs.link(&at("b"), &at("a")).expect("linked");
        assert!(vfs.link(&at("b"), &at("a")).is_err(), "a link never replaces");
        vfs.rename(&at("b"), &at("c")).expect("renamed");
        vfs.sync_dir(dir.path()).expect("synced");
        assert_eq!(vfs.list(dir.path()).expect("names"), [at("a"), at("c")], "sorted");
        vfs.unlink(&at("a")).expect("removed");
        assert!(!vfs.exists(&at("a")).expect("asked"), "gone");
        assert!(vfs.exists(&at("c")).expect("asked"), "still there");
        assert!(vfs.free_space(dir.path()).expect("asked") > 0, "some space");
    }

    #[test]
    fn a_lock_is_held_until_its_guard_is_dropped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vfs = RealVfs::new();
        let path = dir.path().join("LOCK");
        let guard = vfs.lock(&path, b"first").expect("free");
        assert_eq!(
            vfs.lock(&path, b"second").expect_err("taken").kind(),
            io::ErrorKind::WouldBlock
        );
        drop(guard);
        let _guard = vfs.lock(&path, b"third").expect("free again");
        assert_eq!(fs::read(&path).expect("content"), b"third", "who holds it");
    }
}
