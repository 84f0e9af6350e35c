//! What a simulated crash takes and which calls fail: plain data.

use std::path::Path;

/// What happens at a crash to bytes that were written but not synced. A byte whose new value equals
/// its durable one is never harmed: rewriting a sector with the same content is safe on every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataLoss {
    /// All are lost; lengths go back to the synced ones.
    LoseAll,
    /// All are kept, as if the kernel had written everything back just before.
    KeepAll,
    /// Each sector of 512 bytes is kept or lost on its own; so is a new length.
    Sectors,
    /// Bytes up to a random point of each file are kept, those behind it lost.
    Prefix,
    /// The new length is kept, the unsynced bytes read as zero.
    Zeroed,
    /// As `Prefix`, and the rest of the sector in which the point lies is garbage.
    Garbage,
}

/// What happens at a crash to names created, renamed, linked or unlinked since `sync_dir`.
///
/// A rename never loses the file: the old name goes only if the new one stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameLoss {
    /// All changes are lost.
    LoseAll,
    /// All changes are kept.
    KeepAll,
    /// Each change is kept or lost on its own.
    Random,
}

/// What a crash does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPolicy {
    /// To bytes.
    pub data: DataLoss,
    /// To names.
    pub names: NameLoss,
}

impl CrashPolicy {
    /// Everything that was not synced is lost.
    pub const LOSE_UNSYNCED: Self = Self { data: DataLoss::LoseAll, names: NameLoss::LoseAll };
    /// Everything is kept, synced or not (but nothing of a file whose sync failed).
    pub const KEEP_ALL: Self = Self { data: DataLoss::KeepAll, names: NameLoss::KeepAll };
    /// The policies that a crash test goes through.
    pub const ALL: [Self; 8] = [
        Self::LOSE_UNSYNCED,
        Self::KEEP_ALL,
        Self { data: DataLoss::Sectors, names: NameLoss::Random },
        Self { data: DataLoss::Prefix, names: NameLoss::Random },
        Self { data: DataLoss::Zeroed, names: NameLoss::KeepAll },
        Self { data: DataLoss::Garbage, names: NameLoss::KeepAll },
        Self { data: DataLoss::LoseAll, names: NameLoss::Random },
        Self { data: DataLoss::KeepAll, names: NameLoss::Random },
    ];
}

/// One kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Open,
    Create,
    Rename,
    Link,
    Unlink,
    CreateDir,
    RemoveDir,
    List,
    SyncDir,
    Lock,
    Read,
    Write,
    Sync,
    Len,
    SetLen,
    Allocate,
}

impl Op {
    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Whether the call changes what is on disk or makes a change durable: a place to crash at.
    pub(super) fn is_mutating(self) -> bool {
        match self {
            Self::Open | Self::List | Self::Lock | Self::Read | Self::Len => false,
            Self::Create
            | Self::Rename
            | Self::Link
            | Self::Unlink
            | Self::CreateDir
            | Self::RemoveDir
            | Self::SyncDir
            | Self::Write
            | Self::Sync
            | Self::SetLen
            | Self::Allocate => true,
        }
    }
}

/// A set of kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpSet(u32);

impl OpSet {
    /// Every call.
    pub const ALL: Self = Self(u32::MAX);
    /// Reads of content and of length.
    pub const READS: Self = Self(Op::Read.bit() | Op::Len.bit());
    /// Opening files and listing directories.
    pub const OPENS: Self = Self(Op::Open.bit() | Op::List.bit());
    /// Writes of content, new lengths, reserved space.
    pub const WRITES: Self = Self(Op::Write.bit() | Op::SetLen.bit() | Op::Allocate.bit());
    /// Those that a full device refuses: writes of content, reserved space, new names.
    pub const TAKING_ROOM: Self = Self(
        Op::Write.bit()
            | Op::Allocate.bit()
            | Op::Create.bit()
            | Op::Rename.bit()
            | Op::Link.bit()
            | Op::CreateDir.bit(),
    );
    /// Second names.
    pub const LINKS: Self = Self(Op::Link.bit());
    /// Syncs of files.
    pub const SYNCS: Self = Self(Op::Sync.bit());
    /// Syncs of directories.
    pub const DIR_SYNCS: Self = Self(Op::SyncDir.bit());
    /// Created, renamed, linked and removed names.
    pub const NAMES: Self = Self(
        Op::Create.bit()
            | Op::Rename.bit()
            | Op::Link.bit()
            | Op::Unlink.bit()
            | Op::CreateDir.bit()
            | Op::RemoveDir.bit(),
    );

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn has(self, op: Op) -> bool {
        self.0 & op.bit() != 0
    }
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// `EIO`. A write has then written a part; a sync has lost the unsynced bytes while they still
    /// read back from memory, as on Linux, where a failed `fsync` marks the pages clean.
    Io,
    /// `ENOSPC`. A write has then written a part.
    NoSpace,
    /// `EXDEV`: both names of a link are on different file systems.
    CrossesDevices,
}

/// When a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultWhen {
    /// The call with this number, counted as by [`MemVfs::calls`](super::MemVfs::calls), once.
    Call(u64),
    /// That call and every later one, until the fault is cleared.
    From(u64),
    /// Each call with this chance, in a million.
    Chance(u32),
    /// Every call, until the fault is cleared.
    Always,
}

/// A rule by which calls fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which calls.
    pub ops: OpSet,
    /// When.
    pub when: FaultWhen,
    /// How.
    pub kind: FaultKind,
    /// Only calls on paths that contain this text; empty: all.
    pub path_contains: String,
}

impl Fault {
    /// The call number `call`, whatever it is, fails with `kind`.
    pub fn at_call(call: u64, kind: FaultKind) -> Self {
        Self { ops: OpSet::ALL, when: FaultWhen::Call(call), kind, path_contains: String::new() }
    }

    pub(super) fn concerns(&self, op: Op, path: &Path) -> bool {
        self.ops.has(op)
            && (self.path_contains.is_empty()
                || path.to_string_lossy().contains(&self.path_contains))
    }
}
