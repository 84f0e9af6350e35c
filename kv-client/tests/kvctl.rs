//! `kvctl` as a process, against a pretended cluster on real sockets: what it prints, where, and
//! its exit codes. The formats are a contract (scripts hold us to them), so whole outputs are
//! compared.

mod fake;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use fake::{Act, Fake};
use raft_rpc::WireError;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// How a run ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ended {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).expect("one JSON document")
    }

    fn error(&self) -> Value {
        let last = self.stderr.lines().last().unwrap_or_default();
        serde_json::from_str(last).expect("a JSON line")
    }
}

fn command(endpoints: &[String], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command
        .args(arguments)
        .env("KVCTL_ENDPOINTS", endpoints.join(","))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `kvctl` with this standard input, off the runtime's threads.
async fn run_with(endpoints: &[String], arguments: &[&str], input: &[u8]) -> Ended {
    let mut command = command(endpoints, arguments);
    let input = input.to_vec();
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("kvctl starts");
        let mut stdin = child.stdin.take().expect("piped");
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("kvctl ends");
        drop(writer.join());
        output
    });
    let output = ended.await.expect("not cancelled");
    Ended {
        code: output.status.code().expect("not killed"),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

async fn run(endpoints: &[String], arguments: &[&str]) -> Ended {
    run_with(endpoints, arguments, b"").await
}

async fn cluster(nodes: u64) -> (Fake, Vec<String>) {
    let fake = Fake::new(nodes);
    let endpoints = fake.listen().await;
    (fake, endpoints)
}

/// Runs and expects this exit code and exactly this on standard output.
async fn check(endpoints: &[String], arguments: &[&str], code: i32, stdout: &str) {
    let ended = run(endpoints, arguments).await;
    assert_eq!((ended.code, ended.text()), (code, stdout), "{arguments:?}: {}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_keys_are_put_read_and_removed_in_the_documented_forms() {
    let (_fake, at) = cluster(4).await;
    check(&at, &["put", "key-01", "content 01"], 0, "2\n").await;
    check(&at, &["-o", "json", "put", "key-01", "content 02"], 0, "{\"revision\":3}\n").await;
    check(&at, &["get", "key-01"], 0, "content 02\n").await;
    check(&at, &["get", "key-01", "-o", "raw"], 0, "content 02").await;
    check(&at, &["get", "key-01", "--revision", "2"], 0, "content 01\n").await;
    check(&at, &["get", "key-01", "--stale=10s"], 0, "content 02\n").await;
    check(
        &at,
        &["-o", "json", "get", "key-01"],
        0,
        "{\"key\":\"key-01\",\"value\":\"content 02\",\"create_revision\":2,\"mod_revision\":3,\
         \"version\":2,\"lease\":0,\"revision\":3}\n",
    )
    .await;
    check(&at, &["get", "missing"], 1, "").await;
    check(&at, &["-o", "json", "get", "missing"], 1, "").await;
    check(
        &at,
        &["-o", "json", "put", "key-01", "3", "--prev"],
        0,
        "{\"revision\":4,\"previous\":{\"key\":\"key-01\",\"value\":\"content 02\",\
         \"create_revision\":2,\"mod_revision\":3,\"version\":2,\"lease\":0}}\n",
    )
    .await;
    check(
        &at,
        &["-o", "json", "put", "new", "1", "--prev"],
        0,
        "{\"revision\":5,\"previous\":null}\n",
    )
    .await;
    check(&at, &["-o", "json", "del", "key-01"], 0, "{\"revision\":6,\"deleted\":1}\n").await;
    check(&at, &["del", "key-01"], 0, "0\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_fails_exits_1_and_shows_what_is_there() {
    let (_fake, at) = cluster(1).await;
    check(&at, &["put", "k", "v", "--if-absent"], 0, "2\n").await;
    check(
        &at,
        &["-o", "json", "put", "k", "w", "--if-absent"],
        1,
        "{\"applied\":false,\"current\":{\"key\":\"k\",\"value\":\"v\",\"create_revision\":2,\
         \"mod_revision\":2,\"version\":1,\"lease\":0}}\n",
    )
    .await;
    check(
        &at,
        &["-o", "json", "put", "other", "w", "--if-revision", "9"],
        1,
        "{\"applied\":false,\"current\":null}\n",
    )
    .await;
    check(&at, &["put", "k", "w", "--if-revision", "2"], 0, "3\n").await;
    check(&at, &["put", "k", "x", "--if-value", "v"], 1, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_exact_whatever_their_bytes_and_wherever_they_come_from() {
    let (fake, at) = cluster(1).await;
    let bytes = b"line\n\x00\xff\n";
    assert_eq!(run_with(&at, &["put", "stdin", "-"], bytes).await.code, 0);
    assert_eq!(run(&at, &["get", "stdin", "-o", "raw"]).await.stdout, bytes);
    assert_eq!(fake.value("stdin").as_deref(), Some(&bytes[..]));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("written");
    let path = file.path().to_str().expect("utf-8");
    assert_eq!(run(&at, &["put", "file", "--file", path]).await.code, 0);
    assert_eq!(fake.value("file").as_deref(), Some(&bytes[..]));
    assert_eq!(run(&at, &["put", "hyphen", "-v"]).await.code, 0);
    assert_eq!(fake.value("hyphen").as_deref(), Some(&b"-v"[..]));
    let ended = run(&at, &["-o", "json", "get", "stdin"]).await.json();
    assert_eq!((&ended["value"], &ended["value_base64"]), (&Value::Null, &json!("bGluZQoA/wo=")));
    let ended = run(&at, &["put", "file", "--file", "/no/such/file"]).await;
    assert_eq!(ended.code, 7, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_listed_in_order_escaped_counted_and_bounded() {
    let fake = Fake::with_limits(1, 1 << 20, 2);
    let at = fake.listen().await;
    for (key, value) in [("a", "1"), ("b/1", "x\ty"), ("b/2", "l1\nl2"), ("b/3", "\\"), ("c", "5")]
    {
        assert_eq!(run(&at, &["put", key, value]).await.code, 0);
    }
    check(&at, &["range"], 0, "a\t1\nb/1\tx\\ty\nb/2\tl1\\nl2\nb/3\t\\\\\nc\t5\n").await;
    check(&at, &["range", "--prefix", "b/", "--keys-only"], 0, "b/1\nb/2\nb/3\n").await;
    check(&at, &["range", "--from", "b/2", "--to", "c", "--keys-only"], 0, "b/2\nb/3\n").await;
    check(&at, &["range", "--reverse", "--limit", "3", "--keys-only"], 0, "c\nb/3\nb/2\n").await;
    check(&at, &["range", "--count"], 0, "5\n").await;
    check(&at, &["-o", "json", "range", "--count"], 0, "{\"count\":5,\"revision\":6}\n").await;
    check(&at, &["range", "--prefix", "none/"], 0, "").await;
    check(&at, &["range", "--revision", "2", "--keys-only"], 0, "a\n").await;
    check(
        &at,
        &["-o", "json", "range", "--prefix", "c", "--keys-only"],
        0,
        "{\"key\":\"c\",\"create_revision\":6,\"mod_revision\":6,\"version\":1,\"lease\":0}\n",
    )
    .await;
    let ended = run(&at, &["-o", "json", "range", "--revision", "99"]).await;
    assert_eq!((ended.code, &ended.error()["kind"]), (3, &json!("future_revision")));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_removed_only_after_a_yes() {
    let (fake, at) = cluster(1).await;
    for key in ["tmp/1", "tmp/2", "keep"] {
        assert_eq!(run(&at, &["put", key, "v"]).await.code, 0);
    }
    let ended = run_with(&at, &["del", "--prefix", "tmp/"], b"y\n").await;
    assert_eq!(ended.code, 2, "standard input is no terminal: {ended:?}");
    assert!(ended.stderr.contains("--yes"), "{ended:?}");
    assert_eq!(fake.contents().len(), 3);
    check(&at, &["--yes", "del", "--prefix", "tmp/"], 0, "2\n").await;
    assert_eq!(fake.contents().len(), 1);
}

fn jsonl(rows: impl IntoIterator<Item = (String, String)>) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in rows {
        let line = json!({"key": key, "value": value});
        writeln!(text, "{line}").expect("memory");
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn import_stores_every_line_and_later_lines_of_a_key_win() {
    let (fake, at) = cluster(3).await;
    // Half of the lines belong to three keys, so that most of them have to wait for their turn.
    let rows: Vec<(String, String)> = (0..2000)
        .map(|number| {
            let key = if number % 2 == 0 {
                format!("hot/{}", number % 3)
            } else {
                format!("row/{number}")
            };
            (key, format!("value {number}"))
        })
        .collect();
    let expected: std::collections::BTreeMap<Bytes, Bytes> =
        rows.iter().map(|(key, value)| (key.clone().into(), value.clone().into())).collect();
    let text = jsonl(rows);
    let compressed = zstd::encode_all(&text[..], 3).expect("compresses");
    let dir = tempfile::tempdir().expect("a directory");
    let plain_file = dir.path().join("rows.jsonl");
    let zst_file = dir.path().join("rows.jsonl.zst");
    std::fs::write(&plain_file, &text).expect("written");
    std::fs::write(&zst_file, &compressed).expect("written");
    for (source, input) in [
        (plain_file.to_str().expect("utf-8"), &b""[..]),
        (zst_file.to_str().expect("utf-8"), b""),
        ("-", &text),
        ("-", &compressed),
    ] {
        assert_eq!(run(&at, &["--yes", "del", "--prefix", ""]).await.code, 0);
        let ended = run_with(&at, &["-o", "json", "import", source], input).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let summary = ended.json();
        assert_eq!((&summary["written"], &summary["skipped"]), (&json!(2000), &json!(0)));
        assert!(summary["seconds"].is_number(), "{summary}");
        assert_eq!(fake.contents(), expected, "from {source}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_line_still_takes_effect_before_the_next_line_of_its_key() {
    let (fake, at) = cluster(1).await;
    let row = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let text = jsonl([row("hot", "1"), row("other", "x"), row("hot", "2"), row("hot", "3")]);
    let overloaded = WireError::Overloaded { node: 1, retry_after_ms: 100 };
    fake.script(1, [Act::Fail(overloaded)]);
    assert_eq!(run_with(&at, &["import", "-"], &text).await.code, 0);
    assert_eq!(fake.value("hot").as_deref(), Some(&b"3"[..]));
    assert_eq!(fake.applied(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_goes_on_over_lost_answers_elections_and_overload() {
    let (fake, at) = cluster(3).await;
    let rows: Vec<(String, String)> =
        (0..3000).map(|number| (format!("row/{number}"), number.to_string())).collect();
    let no_leader = |node| Act::Fail(WireError::NoLeader { node });
    let unknown = WireError::OutcomeUnknown { node: 1, reason: "leader changed".into() };
    fake.script(1, [Act::ApplyAndFail(unknown), Act::ApplyAndCut, Act::Cut]);
    fake.script(2, vec![no_leader(2); 300]);
    let overloaded = WireError::Overloaded { node: 3, retry_after_ms: 5 };
    fake.script(3, vec![Act::Fail(overloaded); 300]);
    let ended =
        run_with(&at, &["-o", "json", "--timeout", "500ms", "import", "-"], &jsonl(rows)).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.json()["written"], 3000);
    assert_eq!(fake.contents().len(), 3000);
    assert_eq!(fake.applied(), 3000, "every line took effect once");
}

#[tokio::test(flavor = "multi_thread")]
async fn import_stops_at_a_bad_line_with_file_line_and_reason() {
    let (fake, at) = cluster(1).await;
    let mut text = jsonl((0..100).map(|number| (format!("a/{number:03}"), "v".to_owned())));
    text.extend_from_slice(b"{\"key\":\"b\",\"value\":5}\n");
    text.extend(jsonl((0..100).map(|number| (format!("c/{number:03}"), "v".to_owned()))));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("rows.jsonl");
    std::fs::write(&file, &text).expect("written");
    let path = file.to_str().expect("utf-8");

    let ended = run(&at, &["-o", "json", "import", path]).await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert_eq!(ended.json()["written"], 100, "what was written is said first");
    let error = ended.error();
    assert_eq!(error["kind"], "bad_input");
    let said = format!("{path} line 101: \"value\" must be a string, not a number");
    assert_eq!(error["error"], json!(said));
    assert_eq!(fake.contents().len(), 100, "all lines before it and none after");

    let ended = run(&at, &["-o", "json", "import", "--skip-bad", path]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let summary = ended.json();
    assert_eq!((&summary["written"], &summary["skipped"]), (&json!(200), &json!(1)));
    assert!(ended.stderr.contains("line 101"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_of_a_value_that_the_cluster_refuses_exits_4_and_names_the_line() {
    let fake = Fake::with_limits(1, 10, 100);
    let at = fake.listen().await;
    let text = jsonl([("a".to_owned(), "v".to_owned()), ("b".to_owned(), "v".repeat(11))]);
    let ended = run_with(&at, &["-o", "json", "import", "-"], &text).await;
    assert_eq!(ended.code, 4, "{ended:?}");
    let error = ended.error();
    assert_eq!(error["kind"], "too_large");
    assert_eq!(
        error["error"],
        "standard input line 2: value is 11 bytes, limit is 10 bytes (limits.value on node 1)"
    );
    let ended = run_with(&at, &["import", "--skip-bad", "-"], &text).await;
    assert_eq!((ended.code, ended.text()), (0, "1\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_lost_the_cluster_exits_3() {
    let (fake, at) = cluster(2).await;
    fake.kill(1);
    fake.kill(2);
    let text = jsonl([("a".to_owned(), "v".to_owned())]);
    let arguments = ["-o", "json", "--timeout", "100ms", "import", "--patience", "300ms", "-"];
    let ended = run_with(&at, &arguments, &text).await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert_eq!(ended.json()["written"], 0);
    // Also when a line may have been stored: running it again is safe.
    let (fake, at) = cluster(1).await;
    assert_eq!(run(&at, &["put", "session", "registered"]).await.code, 0);
    fake.script(1, [Act::ApplyAndCut]);
    fake.always(1, None);
    fake.script(1, vec![Act::Fail(WireError::NoLeader { node: 1 }); 10_000]);
    let ended = run_with(&at, &arguments, &text).await;
    assert_eq!(ended.code, 3, "{ended:?}");
    assert_eq!(ended.error()["effect"], "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_export_prints_import_reads_back_byte_for_byte() {
    let fake = Fake::with_limits(1, 1 << 20, 7);
    let at = fake.listen().await;
    let mut text = jsonl((0..50).map(|number| (format!("k/{number:03}"), "wärme\t\n".to_owned())));
    text.extend_from_slice(b"{\"key_base64\":\"/wA=\",\"value_base64\":\"/v8=\"}\n");
    text.extend_from_slice(b"{\"key\":\"empty\",\"value\":\"\"}\n");
    assert_eq!(run_with(&at, &["import", "-"], &text).await.code, 0);
    let before = fake.contents();
    assert_eq!(before.len(), 52);
    let exported = run(&at, &["export"]).await;
    assert_eq!(exported.code, 0, "{exported:?}");
    let lines: Vec<&str> = exported.text().lines().collect();
    assert_eq!(lines[0], "{\"key\":\"empty\",\"value\":\"\"}");
    assert_eq!(lines[51], "{\"key_base64\":\"/wA=\",\"value_base64\":\"/v8=\"}");
    assert_eq!(run(&at, &["--yes", "del", "--prefix", ""]).await.code, 0);
    assert!(fake.contents().is_empty(), "all removed");
    assert_eq!(run_with(&at, &["import", "-"], &exported.stdout).await.code, 0);
    assert_eq!(fake.contents(), before);
    let part = run(&at, &["export", "--stale", "--prefix", "k/00", "--revision", "1"]).await;
    assert_eq!((part.code, part.text()), (0, ""), "before the first key of that prefix was there");
}

/// A running `kvctl pipe`.
struct Pipe {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Pipe {
    fn start(endpoints: &[String]) -> Self {
        let mut child = command(endpoints, &["pipe"]).spawn().expect("kvctl starts");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, answers }
    }

    fn ask(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("open");
        writeln!(stdin, "{line}").expect("read");
        stdin.flush().expect("read");
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    fn end(mut self) -> (i32, String) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.answers.read_to_string(&mut rest).expect("the rest");
        (self.child.wait().expect("ends").code().expect("not killed"), rest)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipe_answers_each_line_in_the_documented_form() {
    let (_fake, at) = cluster(2).await;
    let ended = tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe::start(&at);
        for (asked, answered) in [
            (
                r#"{"id":1,"op":"put","key":"a","value":"1"}"#,
                r#"{"id":1,"result":"ok","revision":2}"#,
            ),
            (r#"{"id":2,"op":"get","key":"a"}"#, r#"{"id":2,"result":"1","revision":2}"#),
            (
                r#"{"id":3,"op":"get","key":"b","consistency":"stale"}"#,
                r#"{"id":3,"result":null,"revision":2}"#,
            ),
            (
                r#"{"id":4,"op":"cas","key":"a","value":"2","expect":"1"}"#,
                r#"{"id":4,"result":true,"revision":3}"#,
            ),
            (
                r#"{"id":5,"op":"cas","key":"a","value":"3","expect":null}"#,
                r#"{"id":5,"result":false,"revision":3}"#,
            ),
            (
                r#"{"id":6,"op":"put","key":"a/b","value_base64":"/w=="}"#,
                r#"{"id":6,"result":"ok","revision":4}"#,
            ),
            (
                r#"{"id":"x","op":"get","key":"a/b"}"#,
                r#"{"id":"x","result_base64":"/w==","revision":4}"#,
            ),
            (
                r#"{"id":7,"op":"range","prefix":"a","limit":1}"#,
                r#"{"id":7,"result":[{"key":"a","value":"2","create_revision":2,"mod_revision":3,"version":2,"lease":0}],"more":true,"revision":4}"#,
            ),
            (
                r#"{"id":8,"op":"range","from":"x","to":"z"}"#,
                r#"{"id":8,"result":[],"more":false,"revision":4}"#,
            ),
            (r#"{"id":9,"op":"delete","key":"a"}"#, r#"{"id":9,"result":true,"revision":5}"#),
            (r#"{"id":10,"op":"delete","key":"a"}"#, r#"{"id":10,"result":false,"revision":5}"#),
        ] {
            pipe.ask(asked);
            assert_eq!(pipe.answer(), answered);
        }
        for bad in ["{", "[1]", "nonsense"] {
            pipe.ask(bad);
            let answer: Value = serde_json::from_str(&pipe.answer()).expect("json");
            assert_eq!((&answer["id"], &answer["kind"]), (&Value::Null, &json!("bad_input")));
            assert_eq!(answer["effect"], "none");
        }
        pipe.ask(r#"{"id":11,"op":"cas","key":"a","value":"x"}"#);
        let answer: Value = serde_json::from_str(&pipe.answer()).expect("json");
        assert_eq!((&answer["id"], &answer["kind"]), (&json!(11), &json!("bad_input")));
        pipe.end()
    });
    assert_eq!(ended.await.expect("not cancelled"), (0, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipe_answers_in_the_order_of_completion_and_waits_for_the_rest_at_the_end() {
    let (fake, at) = cluster(1).await;
    let gate = Arc::new(Semaphore::new(0));
    let ended = tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe::start(&at);
        pipe.ask(r#"{"id":0,"op":"put","key":"session","value":"registered"}"#);
        pipe.answer();
        fake.script(1, [Act::Hold(Arc::clone(&gate))]);
        pipe.ask(r#"{"id":1,"op":"put","key":"slow","value":"1"}"#);
        // The held write is at the node once the read behind it is answered: both use one
        // connection, and the script gave the hold to the first.
        while fake.asked().len() < 2 {
            std::thread::yield_now();
        }
        pipe.ask(r#"{"id":2,"op":"get","key":"session"}"#);
        assert!(pipe.answer().starts_with("{\"id\":2,"), "the quick one first");
        drop(pipe.child.stdin.take());
        gate.add_permits(1);
        pipe.end()
    });
    let (code, rest) = ended.await.expect("not cancelled");
    assert_eq!((code, rest.as_str()), (0, "{\"id\":1,\"result\":\"ok\",\"revision\":3}\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipe_tells_the_effect_and_keeps_to_the_time_of_each_request() {
    let (fake, at) = cluster(1).await;
    let ended = tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe::start(&at);
        pipe.ask(r#"{"id":0,"op":"put","key":"session","value":"registered"}"#);
        pipe.answer();
        fake.script(1, [Act::Never]);
        pipe.ask(r#"{"id":1,"op":"put","key":"a","value":"1","timeout_ms":100}"#);
        let answer: Value = serde_json::from_str(&pipe.answer()).expect("json");
        assert_eq!(
            (&answer["id"], &answer["kind"], &answer["effect"]),
            (&json!(1), &json!("outcome_unknown"), &json!("unknown"))
        );
        fake.script(1, vec![Act::Fail(WireError::NoLeader { node: 1 }); 1000]);
        pipe.ask(r#"{"id":2,"op":"put","key":"a","value":"1","timeout_ms":100}"#);
        let answer: Value = serde_json::from_str(&pipe.answer()).expect("json");
        assert_eq!(
            (&answer["id"], &answer["kind"], &answer["effect"]),
            (&json!(2), &json!("no_leader"), &json!("none"))
        );
        pipe.end()
    });
    assert_eq!(ended.await.expect("not cancelled").0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_all_members_and_its_exit_code_says_whether_they_work() {
    let (fake, at) = cluster(4).await;
    let ended = run(&at, &["-o", "json", "status"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let document = ended.json();
    assert_eq!(document["leader"], 1);
    assert_eq!((&document["term"], &document["healthy"]), (&json!(5), &json!(true)));
    assert_eq!(
        document["nodes"][1],
        json!({
            "id": 2, "client_addr": at[1], "peer_addr": "peer-2", "reachable": true, "voter": true,
            "role": "follower", "term": 5, "last_index": 9, "commit_index": 9, "applied_index": 9,
            "state_hash": "0123456789abcdef", "version": "0.1.0", "storage": "ok", "alarms": [],
            "elections": 1, "role_changes": 2, "connection_changes": 3, "forwarded": 4, "peers": [],
        })
    );

    fake.kill(3);
    let document = run(&at, &["-o", "json", "status"]).await.json();
    let dead = &document["nodes"][2];
    assert_eq!((&dead["id"], &dead["reachable"]), (&json!(3), &json!(false)));
    assert!(dead["error"].is_string() && dead["role"].is_null(), "{dead}");
    assert_eq!(document["healthy"], true, "three of four");

    fake.kill(4);
    let ended = run(&at, &["-o", "json", "status"]).await;
    assert_eq!((ended.code, &ended.json()["healthy"]), (6, &json!(false)), "two of four");

    fake.kill(1);
    fake.kill(2);
    let ended = run(&at, &["-o", "json", "status"]).await;
    assert_eq!(ended.code, 3, "{ended:?}");
    let document = ended.json();
    assert_eq!((&document["leader"], &document["nodes"][0]["id"]), (&Value::Null, &Value::Null));
    assert_eq!(run(&at, &["status"]).await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_of_one_endpoint_shows_the_whole_cluster_and_can_wait_for_a_leader() {
    let (fake, at) = cluster(3).await;
    fake.lead(0);
    assert_eq!(run(&at[..1], &["status"]).await.code, 6, "no leader");
    let waiting = {
        let at = at.clone();
        tokio::spawn(async move { run(&at[..1], &["-o", "json", "status", "--wait", "20s"]).await })
    };
    fake.lead(2);
    let ended = waiting.await.expect("not cancelled");
    assert_eq!(ended.code, 0, "{ended:?}");
    let document = ended.json();
    assert_eq!(document["leader"], 2);
    assert_eq!(document["nodes"].as_array().map(Vec::len), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_exit_codes_and_forms() {
    let (fake, at) = cluster(1).await;
    assert_eq!(run(&at, &["put", "session", "registered"]).await.code, 0);
    // Nobody leads: 3, nothing applied.
    fake.always(1, Some(Act::Fail(WireError::NoLeader { node: 1 })));
    let ended = run(&at, &["-o", "json", "--timeout", "100ms", "put", "k", "v"]).await;
    assert_eq!(ended.code, 3, "{ended:?}");
    let error = ended.error();
    assert_eq!((&error["kind"], &error["effect"]), (&json!("no_leader"), &json!("none")));
    assert_eq!(error["retryable"], true);
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("kvctl status")), "{error}");
    assert_eq!(run(&at, &["--timeout", "100ms", "get", "k"]).await.code, 3);
    // The answer is lost: 5.
    fake.always(1, None);
    fake.script(1, [Act::Never]);
    let ended = run(&at, &["--timeout", "300ms", "put", "k", "v"]).await;
    assert_eq!(ended.code, 5, "{ended:?}");
    assert!(ended.stderr.starts_with("error: write outcome unknown: "), "{ended:?}");
    assert!(ended.stderr.contains("\nhint: "), "{ended:?}");
    // Refused: 4.
    let big = "v".repeat((1 << 20) + 1);
    let ended = run_with(&at, &["put", "k", "-"], big.as_bytes()).await;
    assert_eq!(ended.code, 4, "{ended:?}");
    assert_eq!(run(&at, &["put", &"k".repeat(4097), "v"]).await.code, 4);
    // Bad usage: 2, in JSON if that was asked for.
    assert_eq!(run(&at, &["put", "", "v"]).await.code, 2);
    assert_eq!(run(&at, &["--timeout", "5", "get", "k"]).await.code, 2);
    assert_eq!(run(&at, &["-o", "raw", "put", "k", "v"]).await.code, 2);
    assert_eq!(run(&["nowhere".to_owned()], &["get", "k"]).await.code, 2);
    let ended = run(&at, &["-o", "json", "fly"]).await;
    assert_eq!((ended.code, &ended.error()["kind"]), (2, &json!("bad_input")));
    assert_eq!(run(&at, &["--help"]).await.code, 0);
    let ended = run(&at, &["completions", "bash"]).await;
    assert!(ended.code == 0 && ended.text().contains("kvctl"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_output_ends_quietly() {
    let (_fake, at) = cluster(1).await;
    let text = jsonl((0..5000).map(|number| (format!("k/{number:05}"), "v".repeat(100))));
    assert_eq!(run_with(&at, &["import", "-"], &text).await.code, 0);
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command(&at, &["export"]).spawn().expect("kvctl starts");
        let mut first = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut first).expect("a line");
        drop(stdout);
        child.wait_with_output().expect("ends")
    });
    let output = ended.await.expect("not cancelled");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_command_exits_130() {
    let (_fake, at) = cluster(1).await;
    let code = tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe::start(&at);
        pipe.ask(r#"{"id":1,"op":"get","key":"a"}"#);
        pipe.answer();
        let id = pipe.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().expect("kill runs");
        assert!(sent.success(), "the signal is sent");
        // Standard input stays open (waiting would close it): only the signal can end it.
        let stdin = pipe.child.stdin.take();
        let code = pipe.child.wait().expect("ends").code();
        drop(stdin);
        code
    });
    assert_eq!(code.await.expect("not cancelled"), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_verifies_and_cleans_up() {
    let (fake, at) = cluster(3).await;
    for (workload, more) in [("put", &[][..]), ("mixed", &["--read-percent", "80"]), ("range", &[])]
    {
        let mut arguments =
            vec!["-o", "json", "bench", workload, "--seconds", "1", "--clients", "16"];
        arguments.extend_from_slice(more);
        let ended = run(&at, &arguments).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let document = ended.json();
        let fields: Vec<&str> =
            document.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(fields.len(), 16, "{fields:?}");
        assert_eq!((&document["workload"], &document["nodes"]), (&json!(workload), &json!(3)));
        assert_eq!((&document["clients"], &document["connections"]), (&json!(16), &json!(8)));
        assert_eq!((&document["errors"], &document["value_bytes"]), (&json!(0), &json!(256)));
        assert!(document["ops"].as_u64() > Some(0), "{document}");
        assert!(document["p50_us"].as_u64() <= document["max_us"].as_u64(), "{document}");
        assert!(document["verified"].as_u64() > Some(500), "{document}");
        assert!(fake.contents().is_empty(), "its keys are removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_finds_out_that_acknowledged_writes_are_gone() {
    let (fake, at) = cluster(1).await;
    assert_eq!(run(&at, &["put", "session", "registered"]).await.code, 0);
    fake.always(1, Some(Act::Lie));
    let ended = run(&at, &["-o", "json", "bench", "put", "--seconds", "1", "--clients", "2"]).await;
    assert_eq!(ended.code, 6, "{ended:?}");
    assert!(ended.stderr.contains("was acknowledged last"), "{}", ended.stderr);
}
