//! A process of its own for one engine and one group of rows. It prints a JSON object for each row.

use std::path::PathBuf;
use std::time::Duration;

use lsm_store::bench::{Bench, Config, Engine, LsmStore, Outcome, Workload};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};

use crate::fjall_db::Fjall;
use crate::level::Level;
use crate::redb_db::Redb;
use crate::rocks::Rocks;
use crate::sets::{Group, SETS};

/// What a process is told to do, as JSON on its command line.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) engine: String,
    pub(crate) set: String,
    pub(crate) keys: u64,
    pub(crate) seconds: u64,
    pub(crate) directory: PathBuf,
    pub(crate) group: Group,
    /// Writes before the crash that is to be recovered from; 0 for the process that crashes.
    pub(crate) written: u64,
}

impl Task {
    pub(crate) fn encode(&self) -> String {
        let names: Vec<&str> =
            self.group.workloads.iter().map(|workload| workload.name()).collect();
        json!({
            "engine": self.engine,
            "set": self.set,
            "keys": self.keys,
            "seconds": self.seconds,
            "directory": self.directory,
            "workloads": names,
            "on_loaded": self.group.on_loaded,
            "recover": self.group.recover,
            "written": self.written,
        })
        .to_string()
    }

    pub(crate) fn decode(text: &str) -> Outcome<Self> {
        let task: Value = serde_json::from_str(text)?;
        let string = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| task[name].as_u64().unwrap_or_default();
        let flag = |name: &str| task[name].as_bool().unwrap_or_default();
        let names = task["workloads"].as_array().cloned().unwrap_or_default();
        Ok(Self {
            engine: string("engine"),
            set: string("set"),
            keys: number("keys"),
            seconds: number("seconds"),
            directory: string("directory").into(),
            group: Group {
                workloads: names
                    .iter()
                    .filter_map(|name| Workload::from_name(name.as_str()?))
                    .collect(),
                shown: Vec::new(),
                on_loaded: flag("on_loaded"),
                recover: flag("recover"),
            },
            written: number("written"),
        })
    }
}

/// Does it.
pub(crate) fn run(task: &Task) -> Outcome<()> {
    match task.engine.as_str() {
        LsmStore::NAME => run_on::<LsmStore>(task),
        Rocks::NAME => run_on::<Rocks>(task),
        Fjall::NAME => run_on::<Fjall>(task),
        Level::NAME => run_on::<Level>(task),
        Redb::NAME => run_on::<Redb>(task),
        other => Err(format!("no engine {other:?}").into()),
    }
}

fn run_on<E: Engine>(task: &Task) -> Outcome<()> {
    let set = SETS.into_iter().find(|set| set.name == task.set).ok_or("no such set")?;
    let config = Config {
        // The crash leaves its own store, not the loaded one.
        dir: task.directory.join(if task.group.recover { "crashed" } else { "store" }),
        keys: task.keys,
        value_bytes: set.value_bytes,
        row_time_max: Duration::from_secs(task.seconds),
        seed: 1,
        settings: set.settings(),
    };
    let mut bench =
        if task.group.on_loaded { Bench::<E>::on_loaded(config) } else { Bench::<E>::new(config) };
    if task.group.recover {
        if task.written == 0 {
            println!("{}", bench.write_unsynced()?);
            kill_process(getpid(), Signal::KILL)?;
        }
        println!("{{{}}}", bench.recover(task.written)?.json_members());
    }
    for workload in &task.group.workloads {
        println!("{{{}}}", bench.run(*workload)?.json_members());
    }
    bench.close()
}
