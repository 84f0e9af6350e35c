//! The directories of a simulated file system: the names that calls see, and those that would
//! survive a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};

use super::policy::NameLoss;
use crate::rng::SplitMix64;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    /// A file, by its number.
    File(u64),
    /// A directory, by its number.
    Dir(u64),
}

const ROOT: u64 = 0;

/// A change of a name that `sync_dir` has not made durable yet.
#[derive(Debug, Clone)]
struct Change {
    serial: u64,
    name: OsString,
    /// What the name stands for afterwards; `None`: nothing.
    entry: Option<Entry>,
    /// The change without which this one cannot happen: a rename removes only what it put elsewhere.
    needs: Option<u64>,
    /// `sync_dir` was called, but the change that this one needs is not durable.
    synced: bool,
}

#[derive(Debug, Clone, Default)]
struct Directory {
    live: BTreeMap<OsString, Entry>,
    durable: BTreeMap<OsString, Entry>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
pub(super) struct Names {
    dirs: BTreeMap<u64, Directory>,
    next_dir: u64,
    next_serial: u64,
}

fn set(map: &mut BTreeMap<OsString, Entry>, name: &OsStr, entry: Option<Entry>) {
    match entry {
        Some(entry) => map.insert(name.to_os_string(), entry),
        None => map.remove(name),
    };
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Names {
    pub(super) fn new() -> Self {
        Self { dirs: BTreeMap::from([(ROOT, Directory::default())]), next_dir: 1, next_serial: 0 }
    }

    fn dir(&self, path: &Path) -> io::Result<u64> {
        match self.find(path)? {
            Some(Entry::Dir(dir)) => Ok(dir),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(not_found()),
        }
    }

    /// What `path` stands for.
    pub(super) fn find(&self, path: &Path) -> io::Result<Option<Entry>> {
        let mut at = Entry::Dir(ROOT);
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "the path is not normalised",
                    ));
                }
            };
            let Entry::Dir(dir) = at else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            let Some(next) = self.dirs.get(&dir).and_then(|dir| dir.live.get(name)) else {
                return Ok(None);
            };
            at = *next;
        }
        Ok(Some(at))
    }

    /// The file that `path` stands for.
    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.find(path)? {
            Some(Entry::File(file)) => Ok(file),
            Some(Entry::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(not_found()),
        }
    }

    /// The directory of `path` and the name in it.
    fn split<'a>(&self, path: &'a Path) -> io::Result<(u64, &'a OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.dir(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn change(&mut self, dir: u64, name: &OsStr, entry: Option<Entry>, needs: Option<u64>) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        if let Some(dir) = self.dirs.get_mut(&dir) {
            set(&mut dir.live, name, entry);
            dir.pending.push(Change {
                serial,
                name: name.to_os_string(),
                entry,
                needs,
                synced: false,
            });
        }
        serial
    }

    pub(super) fn create(&mut self, path: &Path, file: u64) -> io::Result<()> {
        let (dir, name) = self.split(path)?;
        if self.find(path)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(dir, name, Some(Entry::File(file)), None);
        Ok(())
    }

    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.file(from)?;
        self.create(to, file)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = self.find(from)?.ok_or_else(not_found)?;
        let (from_dir, from_name) = self.split(from)?;
        let (to_dir, to_name) = self.split(to)?;
        match (entry, self.find(to)?) {
            (_, None) | (Entry::File(_), Some(Entry::File(_))) => {}
            (Entry::File(_) | Entry::Dir(_), Some(_)) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
        }
        if from != to {
            let put = self.change(to_dir, to_name, Some(entry), None);
            self.change(from_dir, from_name, None, Some(put));
        }
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        let (dir, name) = self.split(path)?;
        self.change(dir, name, None, None);
        Ok(())
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        match self.find(path)? {
            Some(Entry::Dir(_)) => return Ok(()),
            Some(Entry::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => {}
        }
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        let (dir, name) = self.split(path)?;
        let new = self.next_dir;
        self.next_dir += 1;
        self.dirs.insert(new, Directory::default());
        self.change(dir, name, Some(Entry::Dir(new)), None);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let number = self.dir(path)?;
        if self.dirs.get(&number).is_some_and(|dir| !dir.live.is_empty()) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (dir, name) = self.split(path)?;
        self.change(dir, name, None, None);
        Ok(())
    }

    /// The names in a directory, sorted.
    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<(OsString, Entry)>> {
        let dir = self.dir(path)?;
        let Some(dir) = self.dirs.get(&dir) else { return Err(not_found()) };
        Ok(dir.live.iter().map(|(name, entry)| (name.clone(), *entry)).collect())
    }

    pub(super) fn sync(&mut self, path: &Path) -> io::Result<()> {
        let number = self.dir(path)?;
        let elsewhere: BTreeSet<u64> = self
            .dirs
            .iter()
            .filter(|(other, _)| **other != number)
            .flat_map(|(_, dir)| dir.pending.iter().map(|change| change.serial))
            .collect();
        let Some(dir) = self.dirs.get_mut(&number) else { return Err(not_found()) };
        let mut waiting: Vec<Change> = Vec::new();
        for mut change in std::mem::take(&mut dir.pending) {
            waiting.retain(|earlier| earlier.name != change.name);
            if change.needs.is_some_and(|needs| elsewhere.contains(&needs)) {
                change.synced = true;
                waiting.push(change);
            } else {
                set(&mut dir.durable, &change.name, change.entry);
            }
        }
        dir.pending = waiting;
        Ok(())
    }

    /// Whether `path` exists and a crash would leave it there.
    pub(super) fn is_durable(&self, path: &Path) -> bool {
        let Ok((dir, name)) = self.split(path) else { return true };
        let parent = path.parent().is_none_or(|parent| self.is_durable(parent));
        parent
            && self.dirs.get(&dir).is_some_and(|dir| {
                dir.live.contains_key(name)
                    && dir.live.get(name) == dir.durable.get(name)
                    && dir.pending.iter().all(|change| change.name != name)
            })
    }

    /// What is left after a crash.
    pub(super) fn crash(&mut self, loss: NameLoss, rng: &mut SplitMix64) {
        let mut pending: Vec<(u64, Change)> = Vec::new();
        for (number, dir) in &mut self.dirs {
            pending.extend(
                std::mem::take(&mut dir.pending).into_iter().map(|change| (*number, change)),
            );
        }
        pending.sort_by_key(|(_, change)| change.serial);
        let mut lost = BTreeSet::new();
        for (number, change) in pending {
            let keep = match loss {
                NameLoss::LoseAll => false,
                NameLoss::KeepAll => true,
                NameLoss::Random => rng.chance(1, 2),
            };
            let possible = change.needs.is_none_or(|needs| !lost.contains(&needs));
            if possible && (keep || change.synced) {
                if let Some(dir) = self.dirs.get_mut(&number) {
                    set(&mut dir.durable, &change.name, change.entry);
                }
            } else {
                lost.insert(change.serial);
            }
        }
        for dir in self.dirs.values_mut() {
            dir.live = dir.durable.clone();
        }
        self.forget_unreachable();
    }

    fn forget_unreachable(&mut self) {
        let mut reachable = BTreeSet::from([ROOT]);
        let mut queue = vec![ROOT];
        while let Some(number) = queue.pop() {
            let Some(dir) = self.dirs.get(&number) else { continue };
            for entry in dir.live.values() {
                if let Entry::Dir(child) = entry
                    && reachable.insert(*child)
                {
                    queue.push(*child);
                }
            }
        }
        self.dirs.retain(|number, _| reachable.contains(number));
    }

    /// Whether any name stands for `file`, or could after a crash.
    pub(super) fn mentions(&self, file: u64) -> bool {
        let entry = Entry::File(file);
        self.dirs.values().any(|dir| {
            dir.live.values().chain(dir.durable.values()).any(|other| *other == entry)
                || dir.pending.iter().any(|change| change.entry == Some(entry))
        })
    }

    /// All files for which [`Names::mentions`] holds.
    pub(super) fn mentioned(&self) -> BTreeSet<u64> {
        let named = |dir: &Directory| {
            let entries = dir.live.values().chain(dir.durable.values()).copied();
            entries.chain(dir.pending.iter().filter_map(|change| change.entry)).collect::<Vec<_>>()
        };
        let entries = self.dirs.values().flat_map(named);
        entries
            .filter_map(|entry| match entry {
                Entry::File(file) => Some(file),
                Entry::Dir(_) => None,
            })
            .collect()
    }

    /// Every file with its path from the root, sorted.
    pub(super) fn files(&self) -> Vec<(std::path::PathBuf, u64)> {
        let mut files = Vec::new();
        let mut queue = vec![(std::path::PathBuf::from("/"), ROOT)];
        while let Some((path, number)) = queue.pop() {
            let Some(dir) = self.dirs.get(&number) else { continue };
            for (name, entry) in &dir.live {
                match entry {
                    Entry::File(file) => files.push((path.join(name), *file)),
                    Entry::Dir(child) => queue.push((path.join(name), *child)),
                }
            }
        }
        files.sort();
        files
    }
}
