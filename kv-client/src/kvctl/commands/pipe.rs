//! `pipe`: JSON requests, one a line, from a program that keeps `kvctl` running.
//!
//! ```text
//! standard input ──reader thread──► requests, at most 1,024 under way ──► writer thread ──► standard output
//! ```
//!
//! A permit is taken before a line is read and given back when its answer has been handed to the
//! writer, so that no more than 1,024 are under way and input waits. Answers leave in the order of
//! completion, flushed as soon as no other is ready.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Client, Conditional, Consistency, Error, KeyRange};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::builder;
use crate::kvctl::args::{Format, Global};
use crate::kvctl::failure::Failure;
use crate::kvctl::json::{Object, item, parse_object, take_bytes, type_of};

/// Requests under way at most.
const UNDER_WAY: usize = 1024;
/// The longest line in bytes: the largest value in its longest JSON form.
const LINE_BYTES_MAX: usize = 100 << 20;

/// A line of input, when it was read, and the right to work on it.
struct Input {
    line: io::Result<Vec<u8>>,
    read_at: Instant,
    permit: OwnedSemaphorePermit,
}

pub(crate) async fn pipe(global: &Global) -> Result<(), Failure> {
    if !matches!(global.output, None | Some(Format::Json)) {
        return Err(Failure::usage("pipe always speaks JSON", "leave -o away"));
    }
    let kv = builder(global).connect_lazily().map_err(Failure::Read)?;
    let (input_sender, mut input) = mpsc::channel(UNDER_WAY);
    let (answers, answer_receiver) = mpsc::channel(UNDER_WAY);
    let (writer_ended, mut written) = oneshot::channel();
    let permits = Arc::new(Semaphore::new(UNDER_WAY));
    spawn("pipe input", move || read_lines(&permits, &input_sender))?;
    spawn("pipe output", move || {
        // The receiver is gone only if the command has ended before.
        drop(writer_ended.send(write_lines(answer_receiver)));
    })?;

    let mut answers = Some(answers);
    let mut under_way = FuturesUnordered::new();
    let mut reading = true;
    let mut input_failed = None;
    loop {
        tokio::select! {
            biased;
            ended = &mut written => {
                // Before the end of input that is a closed or failing standard output.
                let ended = ended.unwrap_or_else(|_| Err(io::Error::other("the writer has died")));
                ended.map_err(Failure::output)?;
                return input_failed.map_or(Ok(()), Err);
            }
            Some((line, permit)) = under_way.next(), if !under_way.is_empty() => {
                if let Some(answers) = &answers {
                    // A closed channel shows as the writer's end in the next round.
                    if answers.send(line).await.is_ok() {
                        drop(permit);
                    }
                }
            }
            next = input.recv(), if reading => match next {
                Some(Input { line: Ok(line), read_at, permit }) => {
                    let (kv, timeout) = (kv.clone(), global.timeout);
                    under_way.push(async move {
                        (answer(&kv, &line, read_at, timeout).await, permit)
                    });
                }
                Some(Input { line: Err(error), .. }) => {
                    input_failed = Some(Failure::io("cannot read standard input", error));
                    reading = false;
                }
                None => reading = false,
            },
        }
        if !reading && under_way.is_empty() {
            // The writer ends once it has written what is left.
            answers = None;
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        Ok(_detached) => Ok(()),
        Err(error) => Err(Failure::io("cannot start a thread", error)),
    }
}

fn read_lines(permits: &Arc<Semaphore>, sender: &mpsc::Sender<Input>) {
    let mut input = io::stdin().lock();
    loop {
        let Ok(permit) = futures::executor::block_on(Arc::clone(permits).acquire_owned()) else {
            return;
        };
        let mut line = Vec::new();
        let read = (&mut input).take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line);
        let read_at = Instant::now();
        let line = match read {
            Ok(0) => return,
            Ok(_) if line.len() > LINE_BYTES_MAX => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line is longer than {LINE_BYTES_MAX} bytes"),
            )),
            Ok(_) if line.trim_ascii().is_empty() => continue,
            Ok(_) => Ok(line),
            Err(error) => Err(error),
        };
        let last = line.is_err();
        if sender.blocking_send(Input { line, read_at, permit }).is_err() || last {
            return;
        }
    }
}

fn write_lines(mut answers: mpsc::Receiver<String>) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    while let Some(line) = answers.blocking_recv() {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        while let Ok(line) = answers.try_recv() {
            out.write_all(line.as_bytes())?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
    out.flush()
}

/// A request as it is understood.
#[derive(Debug, PartialEq)]
enum Operation {
    Put { key: Bytes, value: Bytes },
    Get { key: Bytes },
    Delete { key: Bytes },
    Cas { key: Bytes, value: Bytes, expect: Option<Bytes> },
    Range { range: KeyRange, limit: Option<u64> },
}

#[derive(Debug, PartialEq)]
struct Request {
    operation: Operation,
    timeout: Option<Duration>,
    consistency: Consistency,
}

async fn answer(kv: &Client, line: &[u8], read_at: Instant, timeout: Duration) -> String {
    let (id, request) = match parse(line) {
        Ok(parsed) => parsed,
        Err((id, reason)) => {
            return Object::new()
                .with("id", id)
                .with("error", reason)
                .with("kind", "bad_input")
                .with("effect", "none")
                .to_line();
        }
    };
    let left = request.timeout.unwrap_or(timeout).saturating_sub(read_at.elapsed());
    let object = Object::new().with("id", id);
    match perform(kv, request, left, object.clone()).await {
        Ok(answer) => answer.to_line(),
        Err(error) => object
            .with("error", error.to_string())
            .with("kind", error.kind().as_str())
            .with("effect", error.effect().as_str())
            .to_line(),
    }
}

async fn perform(
    kv: &Client,
    request: Request,
    timeout: Duration,
    answer: Object,
) -> Result<Object, Error> {
    let Request { operation, consistency, .. } = request;
    Ok(match operation {
        Operation::Put { key, value } => {
            let written = kv.put(key, value).timeout(timeout).await?;
            answer.with("result", "ok").with("revision", written.revision)
        }
        Operation::Get { key } => {
            let get = kv.get(key).consistency(consistency).timeout(timeout);
            let read = get.with_revision().await?;
            let answer = match &read.found {
                Some(found) => answer.with_bytes("result", &found.value),
                None => answer.with("result", Value::Null),
            };
            answer.with("revision", read.revision)
        }
        Operation::Delete { key } => {
            let deleted = kv.delete(key).timeout(timeout).await?;
            answer.with("result", deleted.count > 0).with("revision", deleted.revision)
        }
        Operation::Cas { key, value, expect } => {
            let put = kv.put(key, value).timeout(timeout);
            let put = match expect {
                Some(expected) => put.if_value(expected),
                None => put.if_absent(),
            };
            match put.await? {
                Conditional::Applied(written) => {
                    answer.with("result", true).with("revision", written.revision)
                }
                Conditional::Refused { revision, .. } => {
                    answer.with("result", false).with("revision", revision)
                }
            }
        }
        Operation::Range { range, limit } => {
            let page = kv.range(range).consistency(consistency).timeout(timeout);
            let page = match limit {
                Some(limit) => page.limit(limit),
                None => page,
            };
            let page = page.await?;
            let items = page.items.iter().map(|found| item(found, false)).collect();
            answer
                .with_list("result", items)
                .with("more", page.next.is_some())
                .with("revision", page.revision)
        }
    })
}

/// Understands a line. An error comes with the request's id if that could be read.
fn parse(line: &[u8]) -> Result<(Value, Request), (Value, String)> {
    let mut fields = parse_object(line).map_err(|reason| (Value::Null, reason))?;
    let id = fields.remove("id").unwrap_or(Value::Null);
    match understand(fields) {
        Ok(request) => Ok((id, request)),
        Err(reason) => Err((id, reason)),
    }
}

fn understand(mut fields: Map<String, Value>) -> Result<Request, String> {
    let op = take_text(&mut fields, "op")?.ok_or("no \"op\": put, get, delete, cas or range")?;
    let timeout = take_number(&mut fields, "timeout_ms")?.map(Duration::from_millis);
    let consistency = take_text(&mut fields, "consistency")?;
    let consistency = match consistency.as_deref() {
        None | Some("linearizable") => Consistency::Linearizable,
        Some("session") => Consistency::Session,
        Some("stale") => Consistency::Stale { max_age: None },
        Some(other) => {
            return Err(format!("consistency {other:?} is none of linearizable, session, stale"));
        }
    };
    let mut required =
        |name: &str| take_bytes(&mut fields, name)?.ok_or_else(|| format!("{op} needs \"{name}\""));
    let operation = match op.as_str() {
        "put" => Operation::Put { key: required("key")?, value: required("value")? },
        "get" => Operation::Get { key: required("key")? },
        "delete" => Operation::Delete { key: required("key")? },
        "cas" => {
            let (key, value) = (required("key")?, required("value")?);
            Operation::Cas { key, value, expect: take_expect(&mut fields)? }
        }
        "range" => {
            let prefix = take_bytes(&mut fields, "prefix")?;
            let from = take_bytes(&mut fields, "from")?;
            let to = take_bytes(&mut fields, "to")?;
            let limit = take_number(&mut fields, "limit")?;
            if limit == Some(0) {
                return Err("\"limit\" must be above zero".to_owned());
            }
            let range = match (prefix, from, to) {
                (Some(prefix), None, None) => crate::prefix(prefix),
                (None, from, to) => KeyRange { start: from.unwrap_or_default(), end: to },
                (Some(_), _, _) => {
                    return Err("\"prefix\" excludes \"from\" and \"to\"".to_owned());
                }
            };
            Operation::Range { range, limit }
        }
        other => return Err(format!("op {other:?} is none of put, get, delete, cas, range")),
    };
    // A field that nobody looked at is most likely misspelled, and its meaning would be lost.
    if let Some(unknown) = fields.keys().next() {
        return Err(format!("{op} has no field {unknown:?}"));
    }
    Ok(Request { operation, timeout, consistency })
}

/// What a cas expects: bytes, or null for "must be absent". To leave it out is an error.
fn take_expect(fields: &mut Map<String, Value>) -> Result<Option<Bytes>, String> {
    if fields.get("expect") == Some(&Value::Null) {
        fields.remove("expect");
        return Ok(None);
    }
    match take_bytes(fields, "expect")? {
        Some(expected) => Ok(Some(expected)),
        None => Err("cas needs \"expect\"; null means that the key must be absent".to_owned()),
    }
}

fn take_text(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match fields.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("\"{name}\" must be a string, not {}", type_of(&other))),
    }
}

fn take_number(fields: &mut Map<String, Value>, name: &str) -> Result<Option<u64>, String> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => match number.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(format!("\"{name}\" must be a whole number from 0, not {number}")),
        },
        Some(other) => Err(format!("\"{name}\" must be a number, not {}", type_of(&other))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(line: &str) -> (Value, Request) {
        parse(line.as_bytes()).expect("the line is good")
    }

    fn refused(line: &str) -> (Value, String) {
        parse(line.as_bytes()).expect_err("the line is bad")
    }

    #[test]
    fn every_operation_is_understood() {
        let (id, request) = parsed(r#"{"id":1,"op":"put","key":"a","value":"b","timeout_ms":20}"#);
        assert_eq!(id, json!(1));
        assert_eq!(request.timeout, Some(Duration::from_millis(20)));
        assert_eq!(request.operation, Operation::Put { key: "a".into(), value: "b".into() });
        let (id, request) =
            parsed(r#"{"id":"x","op":"get","key_base64":"/w==","consistency":"stale"}"#);
        assert_eq!(id, json!("x"));
        assert_eq!(request.operation, Operation::Get { key: Bytes::from_static(b"\xff") });
        assert_eq!(request.consistency, Consistency::Stale { max_age: None });
        let (_, request) = parsed(r#"{"id":2,"op":"range","prefix":"a","limit":3}"#);
        let range = crate::prefix("a");
        assert_eq!(request.operation, Operation::Range { range, limit: Some(3) });
    }

    #[test]
    fn a_cas_must_say_what_it_expects() {
        let (_, request) = parsed(r#"{"id":1,"op":"cas","key":"a","value":"b","expect":null}"#);
        let expected = Operation::Cas { key: "a".into(), value: "b".into(), expect: None };
        assert_eq!(request.operation, expected);
        let (_, request) = parsed(r#"{"id":1,"op":"cas","key":"a","value":"b","expect":""}"#);
        let Operation::Cas { expect, .. } = request.operation else { panic!("a cas") };
        assert_eq!(expect, Some(Bytes::new()), "an empty value is not an absent key");
        let (id, reason) = refused(r#"{"id":7,"op":"cas","key":"a","value":"b"}"#);
        assert_eq!(id, json!(7), "the id is known although the request is bad");
        assert!(reason.contains("expect"), "{reason}");
    }

    #[test]
    fn malformed_lines_are_named_without_an_id_and_bad_requests_with_theirs() {
        assert_eq!(refused("{").0, Value::Null);
        assert_eq!(refused("[]").0, Value::Null);
        for (line, word) in [
            (r#"{"id":3}"#, "op"),
            (r#"{"id":3,"op":"fly"}"#, "fly"),
            (r#"{"id":3,"op":"get"}"#, "key"),
            (r#"{"id":3,"op":"get","key":4}"#, "key"),
            (r#"{"id":3,"op":"get","key":"a","timeout_ms":-1}"#, "timeout_ms"),
            (r#"{"id":3,"op":"get","key":"a","consistency":"strong"}"#, "strong"),
            (r#"{"id":3,"op":"get","key":"a","valeu":"b"}"#, "valeu"),
            (r#"{"id":3,"op":"range","prefix":"a","from":"b"}"#, "prefix"),
        ] {
            let (id, reason) = refused(line);
            assert_eq!(id, json!(3), "{line}");
            assert!(reason.contains(word), "{line}: {reason}");
        }
    }
}
