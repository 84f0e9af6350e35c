//! Opening a store.
//!
//! 1. Directories exist and are durable, which a marker in them proves; the lock is taken, for as long as the
//!    store is open.
//! 2. The marker with the highest iteration names the manifest; its snapshot and edits give the state.
//!    Without a marker the store is new, unless there are tables: then somebody lost the marker.
//!    A state behind the position that the caller expects is refused: it is intact, but not of now.
//! 3. Every table of the state is opened: length, footer, properties and top block must be what the
//!    manifest says. One that is missing or damaged stands in its place as such (see `damage`), unless that
//!    is to refuse the open, or the manifest is what is wrong.
//! 4. A new manifest with the state is written and put in force: recovery never appends to an old one. It waits
//!    until the first commit if the old one is certain to last, see `catalog`.
//! 5. Tables that nothing refers to are removed: only names the store would give, with numbers that the
//!    manifest says were given out.
//!
//! A crash at any step leaves the old manifest or the new one in force, and both say the same.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use crate::cache::BlockCache;
use crate::compaction::claims::Claims;
use crate::error::{Error, IoContext, Result};
use crate::manifest::current::{Listing, lock_path, manifest_path, parse_table, table_dir};
use crate::manifest::version::Version;
use crate::memtable::MemSet;
use crate::options::{Executor, Options};
use crate::sstable::damage::DamageReports;
use crate::sstable::reader::Graveyard;
use crate::store::adopt::remove_adopted;
use crate::store::beats::Beats;
use crate::store::catalog::Catalog;
use crate::store::damage::open_tables;
use crate::store::inner::{Bells, Inner, State};
use crate::store::metrics::Counters;
use crate::store::pressure::Backlog;
use crate::store::retention::Retention;
use crate::store::space::Space;
use crate::store::superversion::SuperVersion;
use crate::store::throttle::Throttle;
use crate::store::visible::{Visible, VisibleCell};
use crate::vfs::{FilePool, Vfs, VfsLock, create_dir_durable};

/// Opens or creates the store in `dir`.
pub(crate) fn open(
    vfs: Arc<dyn Vfs>,
    dir: &Path,
    options: Options,
    executor: Executor,
    bells: Option<Bells>,
) -> Result<Inner> {
    if let Some(problem) = options.problem() {
        return Err(Error::InvalidArgument(problem));
    }
    let tables_in = table_dir(dir);
    let known =
        has_marker(&*vfs, dir)? && vfs.exists(&tables_in).context("look for", &tables_in)?;
    if !known {
        create_dir_durable(&*vfs, dir).context("create", dir)?;
        create_dir_durable(&*vfs, &tables_in).context("create", &tables_in)?;
    }
    let dir_lock = lock(&*vfs, dir)?;
    let (contents, listing) = Catalog::read(&*vfs, dir, &options)?;
    let state = &contents.state;
    let manifest =
        listing.current().map_or_else(|| dir.to_path_buf(), |(_, n)| manifest_path(dir, n));
    let (reached, expected) = (state.position.index, options.expect_position_at_least);
    if reached < expected {
        let detail = format!(
            "the store is at position {reached}, at least {expected} was expected: its manifest is cut off or an \
             old copy, or it is another store"
        );
        return Err(Error::corruption(&manifest, 0, detail));
    }
    let cache = Arc::new(BlockCache::new(options.cache_bytes));
    let graveyard = Graveyard::default();
    let reports = Arc::<DamageReports>::default();
    if let Some(bells) = &bells {
        reports.ring(bells.care.clone());
    }
    let mut orphans = vfs.list(&tables_in).context("list", &tables_in)?;
    orphans.retain(|path| parse_table(path).is_some_and(|n| !state.tables.contains_key(&n)));
    let shared = (&cache, &graveyard, &reports);
    let files = FilePool::new(Arc::clone(&vfs), options.max_open_files);
    let tables = open_tables(&files, dir, &options, &manifest, state, &orphans, shared)?;
    let tables: BTreeMap<_, _> = tables.into_iter().map(|t| (t.meta().number, t)).collect();
    let given_out = state.next_file;
    let catalog = Catalog::start(Arc::clone(&vfs), dir, &options, executor, contents, &listing)?;
    let state = catalog.state();
    let version = Arc::new(Version::build(state, &tables, catalog.path())?);
    let mut left = catalog.leftovers() as u64;
    if let Some((copy, _)) = state.adopted
        && remove_adopted(&*vfs, dir, copy).is_err()
    {
        left += 1;
    }
    for path in orphans {
        let given = parse_table(&path).is_some_and(|number| number < given_out);
        if given && vfs.unlink(&path).is_err() {
            left += 1;
        }
    }
    let active = Arc::new(MemSet::new(options.partitions.len()));
    let keeps = options.partitions.iter().map(|p| p.keep);
    let retention = Retention::new(keeps.zip(state.floors.iter().copied()));
    let visible = Visible { position: state.position.clone(), sequences: state.sequences.clone() };
    let superversion = SuperVersion {
        generation: 0,
        active: Arc::clone(&active),
        frozen: Vec::new(),
        version: Arc::clone(&version),
        cache: Arc::clone(&cache),
    };
    let shared = State {
        active,
        frozen: Vec::new(),
        version,
        durable: state.position.clone(),
        run_open: false,
        run_waiters: 0,
        sequences: visible.sequences.clone(),
        flushing: false,
        compactions: 0,
        jobs_stopped: false,
        closing: false,
        poison: None,
        failures: 0,
        flush_failures: 0,
        last_failure: String::new(),
    };
    let counters = Counters::default();
    counters.files_left.add(left);
    let space = Space::new(&options);
    let throttle = Throttle::new(options.compaction_rate);
    let inner = Inner {
        vfs,
        files,
        dir: dir.to_path_buf(),
        options,
        executor,
        cache,
        graveyard,
        superversion: ArcSwap::from_pointee(superversion),
        visible: VisibleCell::new(&visible),
        retention: Mutex::new(retention),
        claims: Mutex::new(Claims::default()),
        job_ended: Condvar::new(),
        paused: Mutex::new(Beats::default()),
        catalog: Mutex::new(catalog),
        state: Mutex::new(shared),
        changed: Condvar::new(),
        bells,
        counters,
        space,
        backlog: Backlog::default(),
        throttle,
        reports,
        scrub: Mutex::default(),
        dir_lock: Mutex::new(Some(dir_lock)),
        log_cutter: OnceLock::new(),
        refusing: AtomicBool::new(false),
    };
    inner.measure_tables(&inner.superversion.load().version);
    inner.tell_of_manifest();
    Ok(inner)
}

/// Whether a manifest was ever put in force: then the directories were durable before.
fn has_marker(vfs: &dyn Vfs, dir: &Path) -> Result<bool> {
    match Listing::read(vfs, dir) {
        Ok(listing) => Ok(listing.current().is_some()),
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn lock(vfs: &dyn Vfs, dir: &Path) -> Result<Box<dyn VfsLock>> {
    let path = lock_path(dir);
    let content = format!("pid {}\n", std::process::id());
    vfs.lock(&path, content.as_bytes()).map_err(|source| {
        if source.kind() == ErrorKind::WouldBlock {
            Error::Locked { path: path.clone() }
        } else {
            Error::io("lock", &path, source)
        }
    })
}
