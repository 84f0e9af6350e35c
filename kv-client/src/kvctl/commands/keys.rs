//! `put`, `get`, `del`: one key, or all with a prefix.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use crate::{Client, Conditional, Deleted, KeyValue, VALUE_BYTES_MAX, Written};
use bytes::Bytes;

use super::{bytes, client, consistency, prefix_range};
use crate::kvctl::args::{Del, Format, Get, Global, Put};
use crate::kvctl::failure::Failure;
use crate::kvctl::json::{Object, item};
use crate::kvctl::output::{Output, cell, escape, narrate};

pub(crate) async fn put(global: &Global, put: Put) -> Result<(), Failure> {
    let mut output = Output::new(global.output)?;
    let value = match (put.value, put.file) {
        (Some(value), _) if value == "-" => {
            read_all(io::stdin().lock()).map_err(|error| Failure::io("standard input", error))?
        }
        (Some(value), _) => bytes(value),
        (None, Some(path)) => std::fs::File::open(&path)
            .and_then(read_all)
            .map_err(|error| Failure::io(path.display().to_string(), error))?,
        (None, None) => return Err(Failure::usage("no value was given", "kvctl put --help")),
    };
    let kv = client(global)?;
    let operation = kv.put(bytes(put.key), value);
    let operation = if put.prev { operation.previous() } else { operation };
    let conditional = match (put.if_absent, put.if_revision, put.if_value) {
        (true, _, _) => operation.if_absent(),
        (false, Some(revision), _) => operation.if_revision(revision),
        (false, None, Some(expected)) => operation.if_value(bytes(expected)),
        (false, None, None) => {
            let written = operation.await.map_err(Failure::Write)?;
            return print_written(&mut output, &written, put.prev);
        }
    };
    match conditional.await.map_err(Failure::Write)? {
        Conditional::Applied(written) => print_written(&mut output, &written, put.prev),
        Conditional::Refused { current, .. } => {
            print_refused(&mut output, current.as_ref())?;
            Err(Failure::No)
        }
    }
}

/// Reads a value to its end, or a byte beyond what any node could take, which the client refuses.
fn read_all(reader: impl io::Read) -> io::Result<Bytes> {
    let mut value = Vec::new();
    reader.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value)?;
    Ok(Bytes::from(value))
}

fn print_written(output: &mut Output, written: &Written, previous: bool) -> Result<(), Failure> {
    match output.format() {
        Format::Json => {
            let object = Object::new().with("revision", written.revision);
            let object = if previous {
                object.with_object("previous", written.previous.as_ref().map(|it| item(it, false)))
            } else {
                object
            };
            output.line(&object.to_line())?;
        }
        Format::Plain | Format::Raw => match &written.previous {
            Some(old) if previous => {
                output.line(&format!("{}\t{}", written.revision, escape(&old.value)))?;
            }
            Some(_) | None => output.line(&written.revision.to_string())?,
        },
        Format::Table => {
            output.line(&format!("stored at revision {}", written.revision))?;
            if previous {
                match &written.previous {
                    Some(old) => output.line(&format!("before: {}", cell(&old.value)))?,
                    None => output.line("before: no such key")?,
                }
            }
        }
    }
    output.flush()
}

fn print_refused(output: &mut Output, current: Option<&KeyValue>) -> Result<(), Failure> {
    if output.format() == Format::Json {
        let object = Object::new()
            .with("applied", false)
            .with_object("current", current.map(|it| item(it, false)));
        output.line(&object.to_line())?;
        return output.flush();
    }
    narrate(&match current {
        Some(current) => format!(
            "condition did not hold: the key holds {} (changed at revision {})",
            cell(&current.value),
            current.mod_revision
        ),
        None => "condition did not hold: no such key".to_owned(),
    });
    Ok(())
}

pub(crate) async fn get(global: &Global, get: Get) -> Result<(), Failure> {
    let kv = client(global)?;
    let operation = kv.get(bytes(get.key)).consistency(consistency(&get.stale));
    let operation = match get.revision {
        Some(revision) => operation.at(revision),
        None => operation,
    };
    let read = operation.with_revision().await.map_err(Failure::Read)?;
    let Some(found) = read.found else { return Err(Failure::No) };
    let mut output = Output::with_format(global.output.unwrap_or(Format::Plain));
    match output.format() {
        Format::Plain => {
            output.bytes(&found.value)?;
            output.bytes(b"\n")?;
        }
        Format::Raw => output.bytes(&found.value)?,
        Format::Json => {
            output.line(&item(&found, false).with("revision", read.revision).to_line())?;
        }
        Format::Table => {
            let row = vec![
                cell(&found.key),
                cell(&found.value),
                found.mod_revision.to_string(),
                found.version.to_string(),
            ];
            output.table(&["key", "value", "revision", "version"], vec![row])?;
        }
    }
    output.flush()
}

pub(crate) async fn del(global: &Global, del: Del) -> Result<(), Failure> {
    let mut output = Output::new(global.output)?;
    let kv = client(global)?;
    let deleted = match (del.key, del.prefix) {
        (Some(key), _) => kv.delete(bytes(key)).await.map_err(Failure::Write)?,
        (None, Some(prefix)) => {
            if !global.yes {
                confirm(&kv, &prefix).await?;
            }
            kv.delete(prefix_range(Some(&prefix))).await.map_err(Failure::Write)?
        }
        (None, None) => return Err(Failure::usage("no key was given", "kvctl del --help")),
    };
    print_deleted(&mut output, &deleted)
}

/// Says how much would be removed and asks whether to go on.
async fn confirm(kv: &Client, prefix: &std::ffi::OsStr) -> Result<(), Failure> {
    let shown = escape(prefix.as_bytes());
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            format!(
                "removing all keys with prefix \"{shown}\" needs a yes, and nobody can be asked"
            ),
            "standard input is no terminal; add --yes if you mean it",
        ));
    }
    let counted = kv.count(prefix_range(Some(prefix))).await.map_err(Failure::Read)?;
    let mut error_output = io::stderr().lock();
    write!(error_output, "remove {} keys with prefix \"{shown}\"? [y/N] ", counted.count)
        .and_then(|()| error_output.flush())
        .map_err(|error| Failure::io("standard error", error))?;
    drop(error_output);
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let answer = match answer.await {
        Ok(line) => line.map_err(|error| Failure::io("standard input", error))?,
        Err(error) => return Err(Failure::io("standard input", io::Error::other(error))),
    };
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    narrate("nothing was removed");
    Err(Failure::No)
}

fn print_deleted(output: &mut Output, deleted: &Deleted) -> Result<(), Failure> {
    match output.format() {
        Format::Json => {
            let object =
                Object::new().with("revision", deleted.revision).with("deleted", deleted.count);
            output.line(&object.to_line())?;
        }
        Format::Plain | Format::Raw => output.line(&deleted.count.to_string())?,
        Format::Table => output.line(&match deleted.count {
            0 => "nothing to remove".to_owned(),
            1 => format!("removed 1 key at revision {}", deleted.revision),
            count => format!("removed {count} keys at revision {}", deleted.revision),
        })?,
    }
    output.flush()
}
