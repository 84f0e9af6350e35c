//! What a journal needs done beside its appends, so that none of them waits for it: the next segment's
//! file, the sync of a segment that was ended, more reserved space, the removal of segments.
//!
//! ```text
//! writer ─order─► tasks ─► helper thread
//!        ◄─claim─ prepared
//! ```
//!
//! * A task that is not done when the writer needs it is done by the writer, or waited for; that is counted.
//! * Without a helper everything is done by the writer, at the same places every time.
//! * A file that cannot be prepared harms nothing: the writer tries again when it needs it, and is told why.
//!   Any other failure ends the journal.
//!
//! Lock: `tasks`, held for a few instructions, never across I/O.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::draft::{self, Draft};
use super::recovery;
use super::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader};
use super::syncer::{Syncer, check_alive};
use crate::error::{Error, IoContext, Result};
use crate::vfs::Vfs;

/// See the module.
#[derive(Debug)]
pub(super) struct Upkeep {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    poison: Arc<OnceLock<String>>,
    /// Whether there is a helper.
    helped: bool,
    tasks: Mutex<Tasks>,
    changed: Condvar,
}

/// What is to be done, in this order, and what was.
#[derive(Debug, Default)]
struct Tasks {
    /// The newest segment's file, whose predecessor is to be settled.
    settle: Option<Arc<Syncer>>,
    grow: Option<Growth>,
    prepare: Option<Plan>,
    remove: VecDeque<Removal>,
    /// A segment is being prepared.
    preparing: bool,
    prepared: Option<Prepared>,
    /// The length that the growth asked for last has reached.
    grown: Option<(PathBuf, u64)>,
    ended: bool,
}

/// A segment to be prepared.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) number: u64,
    /// Both copies of its header.
    pub(super) header: Vec<u8>,
    pub(super) epoch: u64,
    /// How much space is reserved; `None`: none.
    pub(super) len: Option<u64>,
    /// How much is needed, for errors.
    pub(super) needed: u64,
}

impl Plan {
    /// Of the segment after `number`, which has not ended yet.
    pub(super) fn after(number: u64, epoch: u64, store_id: u128, len: Option<u64>) -> Self {
        let published_len = len.unwrap_or(SEGMENT_HEADER_BYTES);
        let header = SegmentHeader {
            store_id,
            number: number + 1,
            epoch,
            predecessor: Seal { segment: number, ..Seal::default() },
            first_sequence: 0,
            published_end: SEGMENT_HEADER_BYTES,
            published_len,
            copies: false,
            prepared: true,
        };
        let header = header.encode();
        Self { number: number + 1, header, epoch, len, needed: published_len }
    }
}

/// A segment whose file is there and durable, under a name that it does not keep.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) draft: Draft,
}

#[derive(Debug)]
struct Growth {
    syncer: Arc<Syncer>,
    len: u64,
}

/// A segment's file to be removed.
#[derive(Debug)]
pub(super) struct Removal {
    pub(super) path: PathBuf,
    /// The segment that is the oldest then, and how much of it must be durable before.
    pub(super) after: Option<(Arc<Syncer>, u64)>,
}

#[derive(Debug)]
enum Task {
    Settle(Arc<Syncer>),
    Grow(Growth),
    Prepare(Plan),
    Remove(Removal),
}

impl Upkeep {
    pub(super) fn new(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        poison: Arc<OnceLock<String>>,
        helped: bool,
    ) -> Arc<Self> {
        let (tasks, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { vfs, dir: dir.to_path_buf(), poison, helped, tasks, changed })
    }

    /// Whether there is a helper.
    pub(super) fn is_helped(&self) -> bool {
        self.helped
    }

    /// Starts the helper.
    pub(super) fn help(self: &Arc<Self>) -> Result<JoinHandle<()>> {
        let upkeep = Arc::clone(self);
        let thread = std::thread::Builder::new().name("lsm-log".to_owned());
        let thread = thread.spawn(move || {
            let guard = PoisonOnPanic(&upkeep);
            upkeep.run();
            drop(guard);
        });
        thread.map_err(|source| Error::io("start a thread for", &self.dir, source))
    }

    fn run(&self) {
        let mut tasks = self.tasks.lock();
        while !tasks.ended {
            let Some(task) = tasks.take() else {
                self.changed.wait(&mut tasks);
                continue;
            };
            tasks.preparing = matches!(task, Task::Prepare(_));
            drop(tasks);
            // A failure has ended the journal, or the writer meets it itself.
            let _told = self.perform(task).is_err();
            tasks = self.tasks.lock();
            tasks.preparing = false;
            self.changed.notify_all();
        }
    }

    /// Ends the helper after what it is at.
    pub(super) fn end(&self) {
        self.tasks.lock().ended = true;
        self.changed.notify_all();
    }

    /// Has the predecessor of a segment settled, of which nothing was synced yet.
    pub(super) fn order_settling(&self, syncer: &Arc<Syncer>) {
        self.tasks.lock().settle = Some(Arc::clone(syncer));
        self.changed.notify_all();
    }

    /// Has a segment prepared.
    pub(super) fn order(&self, plan: Plan) {
        self.tasks.lock().prepare = Some(plan);
        self.changed.notify_all();
    }

    /// Has more space reserved for a segment, up to `len`.
    pub(super) fn order_growth(&self, syncer: &Arc<Syncer>, len: u64) {
        self.tasks.lock().grow = Some(Growth { syncer: Arc::clone(syncer), len });
        self.changed.notify_all();
    }

    /// What the growth asked for last has reached, if it was this file's and is done.
    pub(super) fn grown(&self, path: &Path) -> Option<u64> {
        let tasks = self.tasks.lock();
        tasks.grown.as_ref().filter(|(grown, _)| grown == path).map(|(_, len)| *len)
    }

    /// Has a file removed; without a helper it is when this returns.
    pub(super) fn remove(&self, removal: Removal) -> Result<()> {
        if !self.helped {
            return self.perform(Task::Remove(removal));
        }
        self.tasks.lock().remove.push_back(removal);
        self.changed.notify_all();
        Ok(())
    }

    /// Does what is left to do, on this thread. Only without a helper, or after its end.
    pub(super) fn catch_up(&self) -> Result<()> {
        loop {
            let Some(task) = self.tasks.lock().take() else { return Ok(()) };
            self.perform(task)?;
        }
    }

    /// The segment that was prepared; waits for it if it is being made. `None` if it was not, or not yet.
    pub(super) fn claim(&self) -> Option<Prepared> {
        let mut tasks = self.tasks.lock();
        tasks.prepare = None;
        while tasks.preparing && tasks.prepared.is_none() && !tasks.ended {
            self.changed.wait(&mut tasks);
        }
        tasks.prepared.take()
    }

    /// Whether a segment is ready to be claimed.
    pub(super) fn is_ready(&self) -> bool {
        self.tasks.lock().prepared.is_some()
    }

    /// Makes a segment's file: durable, under a name that it does not keep.
    pub(super) fn prepare(&self, plan: Plan) -> Result<Prepared> {
        let draft = Draft::create(&self.vfs, &self.dir, plan.number)
            .map_err(|error| draft::no_space(error, &*self.vfs, &self.dir, plan.needed))?;
        match draft.fill(&plan.header, plan.len) {
            Ok(()) => Ok(Prepared { plan, draft }),
            Err(error) => Err(draft.discard(error, plan.needed)),
        }
    }

    fn perform(&self, task: Task) -> Result<()> {
        match task {
            Task::Settle(syncer) => syncer.settle_before(),
            Task::Grow(Growth { syncer, len }) => {
                syncer.file.allocate(len).context("reserve space in", &syncer.path)?;
                self.tasks.lock().grown = Some((syncer.path.clone(), len));
                Ok(())
            }
            Task::Prepare(plan) => {
                let prepared = self.prepare(plan)?;
                self.tasks.lock().prepared = Some(prepared);
                Ok(())
            }
            Task::Remove(removal) => {
                check_alive(&self.poison)?;
                if let Some((syncer, upto)) = &removal.after {
                    syncer.sync(*upto)?;
                }
                recovery::remove_durably(&*self.vfs, &self.dir, &removal.path).inspect_err(
                    |error| {
                        self.poison.get_or_init(|| error.to_string());
                    },
                )
            }
        }
    }
}

impl Tasks {
    fn take(&mut self) -> Option<Task> {
        if let Some(syncer) = self.settle.take() {
            return Some(Task::Settle(syncer));
        }
        if let Some(growth) = self.grow.take() {
            return Some(Task::Grow(growth));
        }
        if let Some(plan) = self.prepare.take() {
            return Some(Task::Prepare(plan));
        }
        self.remove.pop_front().map(Task::Remove)
    }
}

/// A panic is a broken invariant: nothing may be written after it, and nobody may wait for the helper.
struct PoisonOnPanic<'a>(&'a Upkeep);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = || "the helper of the log panicked: an invariant is broken".to_owned();
            self.0.poison.get_or_init(reason);
            self.0.end();
        }
    }
}
