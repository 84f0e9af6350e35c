//! Small text files that are replaced whole: `IDENTITY` and `PEERS` of a data directory.
//!
//! ```text
//! NAME version 1
//! field = value            in a fixed order, one a line
//! checksum = 16 hex digits of XXH3-64 over everything before this line
//! ```
//!
//! 1. A file is written beside its name, synced, renamed, and its directory synced: after a crash it is
//!    the old one or the new one.
//! 2. Every byte is covered by the checksum; what does not verify is an error with file and line, never
//!    taken for absence.
//! 3. A newer version is refused by its number before anything else is looked at.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use lsm_store::vfs::Vfs;
use xxhash_rust::xxh3::xxh3_64;

/// The largest such file, in bytes: far more than 1,000 pinned peers need.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a small file could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SmallFileError {
    /// The file system refused.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the file system said.
        source: Arc<io::Error>,
    },
    /// The content is damaged.
    #[error(
        "{path} is damaged at line {line}: {detail}; restore it from a backup, or give this node a new id and an empty directory"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// A newer program wrote it.
    #[error(
        "{path} has format version {found}, this program reads version {supported}: start the newer program"
    )]
    UnknownVersion {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this program knows.
        supported: u32,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SmallFileError {
    let path = path.to_owned();
    move |source| SmallFileError::Io { operation, path, source: Arc::new(source) }
}

/// Replaces `path` by a file of this name, version and fields.
pub(crate) fn write(
    vfs: &dyn Vfs,
    path: &Path,
    name: &str,
    version: u32,
    fields: &[(&str, String)],
) -> Result<(), SmallFileError> {
    let mut text = format!("{name} version {version}\n");
    for (field, value) in fields {
        // Writing to a `String` cannot fail.
        writeln!(text, "{field} = {value}").map_err(|_never| SmallFileError::Damaged {
            path: path.to_owned(),
            line: 0,
            detail: "a field cannot be written".to_owned(),
        })?;
    }
    let checksum = xxh3_64(text.as_bytes());
    text.push_str(&format!("checksum = {checksum:016x}\n"));

    let beside = path.with_extension("new");
    if vfs.exists(&beside).map_err(io_error("look for", &beside))? {
        vfs.unlink(&beside).map_err(io_error("remove", &beside))?;
    }
    let file = vfs.create_new(&beside).map_err(io_error("create", &beside))?;
    file.write_all_at(text.as_bytes(), 0).map_err(io_error("write", &beside))?;
    file.sync_all().map_err(io_error("sync", &beside))?;
    vfs.rename(&beside, path).map_err(io_error("rename", &beside))?;
    if let Some(dir) = path.parent() {
        vfs.sync_dir(dir).map_err(io_error("sync", dir))?;
    }
    Ok(())
}

/// The fields of the file at `path`, in order, or `None` if there is no such file.
pub(crate) fn read(
    vfs: &dyn Vfs,
    path: &Path,
    name: &str,
    supported: u32,
) -> Result<Option<Fields>, SmallFileError> {
    if !vfs.exists(path).map_err(io_error("look for", path))? {
        return Ok(None);
    }
    let file = vfs.open_read(path).map_err(io_error("open", path))?;
    let size = file.len().map_err(io_error("measure", path))?;
    let damaged = |line: usize, detail: &str| SmallFileError::Damaged {
        path: path.to_owned(),
        line,
        detail: detail.to_owned(),
    };
    if size > FILE_BYTES_MAX {
        return Err(damaged(1, &format!("{size} bytes, at most {FILE_BYTES_MAX} expected")));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0).map_err(io_error("read", path))?;
    let text = String::from_utf8(bytes).map_err(|_not| damaged(1, "not UTF-8"))?;

    let header = text.lines().next().unwrap_or_default();
    let found: u32 = header
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix(" version "))
        .and_then(|version| version.parse().ok())
        .ok_or_else(|| damaged(1, "the header is not the one of this file"))?;
    if found > supported || found == 0 {
        return Err(SmallFileError::UnknownVersion { path: path.to_owned(), found, supported });
    }

    let lines = text.lines().count();
    let body_end = text
        .trim_end_matches('\n')
        .rfind('\n')
        .map(|at| at + 1)
        .ok_or_else(|| damaged(lines, "the checksum is missing"))?;
    let (body, last) = text.split_at(body_end);
    if last != format!("checksum = {:016x}\n", xxh3_64(body.as_bytes())) {
        return Err(damaged(lines, "the checksum does not match"));
    }
    let mut fields = Vec::new();
    for (at, line) in body.lines().enumerate().skip(1) {
        let (field, value) =
            line.split_once(" = ").ok_or_else(|| damaged(at + 1, "a field without a value"))?;
        fields.push((field.to_owned(), value.to_owned()));
    }
    Ok(Some(Fields { path: path.to_owned(), fields, next: 0 }))
}

/// The fields of a file, taken in order.
#[derive(Debug)]
pub(crate) struct Fields {
    path: PathBuf,
    fields: Vec<(String, String)>,
    next: usize,
}

impl Fields {
    /// The next field, which has to be called `name`, read by `parse`.
    pub(crate) fn take<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SmallFileError> {
        let value = self
            .fields
            .get(self.next)
            .filter(|(field, _value)| field == name)
            .and_then(|(_field, value)| parse(value))
            .ok_or_else(|| self.damaged(&format!("`{name}` is missing or malformed")))?;
        self.next += 1;
        Ok(value)
    }

    /// The next field, if there is one, with its name.
    pub(crate) fn take_any(&mut self) -> Option<(String, String)> {
        let field = self.fields.get(self.next).cloned();
        self.next += usize::from(field.is_some());
        field
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), SmallFileError> {
        match self.fields.get(self.next) {
            Some(_) => Err(self.damaged("an unknown field")),
            None => Ok(()),
        }
    }

    /// An error about the field taken next.
    pub(crate) fn damaged(&self, detail: &str) -> SmallFileError {
        SmallFileError::Damaged {
            path: self.path.clone(),
            line: self.next + 2,
            detail: detail.to_owned(),
        }
    }
}
