//! `lsmctl` on a store of a few tables, whole and damaged.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use lsm_store::vfs::RealVfs;
use lsm_store::{
    Durability, Executor, Keep, Mode, Options, PartitionId, PartitionOptions, Store, WriteBatch,
};

/// A store with its own log: two flushed tables and one batch that is only in the log.
fn store(dir: &Path) {
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let options = Options { mode: Mode::Wal, ..Options::new(7, partitions) };
    let store =
        Store::open(Arc::new(RealVfs::new()), dir, options, Executor::Inline).expect("opens");
    for n in 0..30_u32 {
        let mut batch = WriteBatch::new();
        batch.put(PartitionId(0), format!("key-{n:03}").as_bytes(), b"a value").expect("small");
        store.write(batch, Durability::Sync).expect("writes");
        if n % 12 == 11 {
            store.flush().expect("flushes");
        }
    }
    store.close().expect("closes");
}

fn lsmctl(arguments: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lsmctl")).args(arguments).arg(path).output().expect("runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn only_file(dir: &Path, extension: &str) -> std::path::PathBuf {
    let mut files: Vec<_> =
        std::fs::read_dir(dir).expect("lists").map(|e| e.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == extension));
    files.sort();
    files.remove(0)
}

#[test]
fn stats_and_verify_tell_what_is_there_and_change_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    store(dir.path());
    let stats = lsmctl(&["stats", "--output", "json"], dir.path());
    assert_eq!(stats.status.code(), Some(0), "{stats:?}");
    let stats: serde_json::Value = serde_json::from_str(&text(&stats)).expect("JSON");
    assert_eq!(stats["partitions"][0]["name"], "data", "{stats}");
    assert_eq!(stats["partitions"][0]["sequence"], 24, "flushed up to here: {stats}");
    assert_eq!(stats["partitions"][0]["levels"][0]["entries"], 24, "{stats}");
    for _ in 0..2 {
        let verify = lsmctl(&["verify", "--output", "json"], dir.path());
        assert_eq!(verify.status.code(), Some(0), "{verify:?}");
        let verify: serde_json::Value = serde_json::from_str(&text(&verify)).expect("JSON");
        assert_eq!((&verify["tables"], &verify["entries"]), (&2.into(), &24.into()), "{verify}");
        assert_eq!(verify["findings"], serde_json::json!([]), "{verify}");
    }
}

#[test]
fn dump_shows_keys_and_values_only_when_asked() {
    let dir = tempfile::tempdir().expect("temporary directory");
    store(dir.path());
    let files = [
        dir.path().to_path_buf(),
        only_file(&dir.path().join("sst"), "sst"),
        only_file(&dir.path().join("wal"), "wal"),
    ];
    for file in &files {
        let output = lsmctl(&["dump"], file);
        let plain = text(&output);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(!plain.is_empty() && !plain.contains("key-0"), "{}: {plain}", file.display());
        let keys = text(&lsmctl(&["dump", "--show", "keys"], file));
        assert!(keys.contains("key-0") && !keys.contains("a value"), "{}: {keys}", file.display());
    }
    let values = text(&lsmctl(&["dump", "--show", "values", "--limit", "3"], &files[1]));
    assert_eq!(values.matches("a value").count(), 3, "{values}");
}

#[test]
fn damage_is_named_with_file_and_offset_and_the_rest_is_still_checked() {
    let dir = tempfile::tempdir().expect("temporary directory");
    store(dir.path());
    let table = only_file(&dir.path().join("sst"), "sst");
    let mut bytes = std::fs::read(&table).expect("reads");
    bytes[20] ^= 1;
    std::fs::write(&table, bytes).expect("writes");
    let verify = lsmctl(&["verify"], dir.path());
    assert_eq!(verify.status.code(), Some(1), "{verify:?}");
    let said = text(&verify);
    let name = table.file_name().expect("name").to_string_lossy().into_owned();
    assert!(said.contains(&name) && said.contains("1 tables, 12 entries"), "{said}");
}

#[test]
fn what_is_no_store_or_in_use_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let none = lsmctl(&["stats"], dir.path());
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no store"), "{none:?}");
    assert!(std::fs::read_dir(dir.path()).expect("lists").next().is_none(), "nothing was created");
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let options = Options::new(7, partitions);
    let open = Store::open(Arc::new(RealVfs::new()), dir.path(), options, Executor::Inline)
        .expect("opens");
    let used = lsmctl(&["verify"], dir.path());
    assert_eq!(used.status.code(), Some(3), "{used:?}");
    assert!(String::from_utf8_lossy(&used.stderr).contains("locked"), "{used:?}");
    drop(open);
    assert_eq!(lsmctl(&["nonsense"], dir.path()).status.code(), Some(2), "wrong usage");
}

#[test]
fn repair_needs_consent_and_says_what_is_lost() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let source = dir.path().join("damaged");
    std::fs::create_dir(&source).expect("creates");
    store(&source);
    let table = only_file(&source.join("sst"), "sst");
    let mut bytes = std::fs::read(&table).expect("reads");
    bytes[20] ^= 1;
    std::fs::write(&table, bytes).expect("writes");
    let to = dir.path().join("new");
    let from = source.to_str().expect("text");
    assert_eq!(lsmctl(&["repair", from], &to).status.code(), Some(2), "without consent");
    assert!(!to.exists(), "nothing was made");
    let repair = lsmctl(&["repair", "--accept-loss", "--keys", from], &to);
    assert_eq!(repair.status.code(), Some(1), "{repair:?}");
    let said = text(&repair);
    assert!(said.contains("lost: partition 0 from \"key-000\""), "{said}");
    let verify = lsmctl(&["verify"], &to);
    assert_eq!(verify.status.code(), Some(0), "the new store is sound: {verify:?}");
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let options = Options { mode: Mode::Wal, ..Options::new(7, partitions) };
    let saved =
        Store::open(Arc::new(RealVfs::new()), &to, options, Executor::Inline).expect("opens");
    let get = |key: &[u8]| saved.get(PartitionId(0), key).expect("reads");
    assert!(get(b"key-000").is_none() && get(b"key-012").is_some(), "the other table is whole");
    assert!(get(b"key-029").is_some(), "and so is the log");
}

#[test]
fn repair_makes_a_store_from_tables_and_log_when_the_manifest_is_gone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let source = dir.path().join("damaged");
    std::fs::create_dir(&source).expect("creates");
    store(&source);
    for entry in std::fs::read_dir(&source).expect("lists") {
        let path = entry.expect("entry").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("MANIFEST-")) {
            std::fs::remove_file(path).expect("removes");
        }
    }
    let to = dir.path().join("new");
    let from = source.to_str().expect("text");
    let unknown = lsmctl(&["repair", "--accept-loss", from], &to);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    let asks = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(asks.contains("--store-id") && asks.contains("--partition"), "{asks}");
    let said = ["repair", "--accept-loss", "--store-id", "7", "--partition", "data", from];
    let repair = lsmctl(&said, &to);
    assert_eq!(repair.status.code(), Some(1), "{repair:?}");
    assert!(text(&repair).contains("lost: the manifest: "), "{}", text(&repair));
    let verify = lsmctl(&["verify"], &to);
    assert_eq!(verify.status.code(), Some(0), "the new store is sound: {verify:?}");
    let partitions = vec![PartitionOptions { name: "data".to_owned(), keep: Keep::All }];
    let options = Options { mode: Mode::Wal, ..Options::new(7, partitions) };
    let saved =
        Store::open(Arc::new(RealVfs::new()), &to, options, Executor::Inline).expect("opens");
    for n in 0..30 {
        let found = saved.get(PartitionId(0), format!("key-{n:03}").as_bytes()).expect("reads");
        assert!(found.is_some(), "key {n}, from a table or the log");
    }
}

#[test]
fn bench_runs_what_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let at = dir.path().join("bench");
    let arguments = ["bench", "--keys", "1000", "-o", "json", "fillrandom", "readr", "--dir"];
    let bench = lsmctl(&arguments, &at);
    assert_eq!(bench.status.code(), Some(0), "{bench:?}");
    let names: Vec<String> = text(&bench)
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(row["operations"].as_f64() >= Some(1.0), "{line}");
            row["workload"].as_str().expect("a name").to_owned()
        })
        .collect();
    assert_eq!(names, ["fillrandom", "readrandom", "readrandom2", "readreverse"]);
    assert!(!at.exists(), "removed");
    let arguments = ["bench", "--keys", "1000", "--metrics", "fillrandom", "-o"];
    let json = lsmctl(&[&arguments[..], &["json", "--dir"]].concat(), &at);
    let last = text(&json).lines().last().expect("lines").to_owned();
    let last: serde_json::Value = serde_json::from_str(&last).expect("JSON");
    assert!(last["metrics"]["user_bytes"].as_u64() > Some(100_000), "{last}");
    let plain = lsmctl(&[&arguments[..], &["plain", "--dir"]].concat(), &at);
    assert!(text(&plain).contains("\nbackground work\n"), "{plain:?}");
    assert_eq!(lsmctl(&["bench", "sort", "--dir"], &at).status.code(), Some(2), "no such workload");
}
