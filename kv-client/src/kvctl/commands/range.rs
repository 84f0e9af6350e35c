//! `range`: keys and values in key order, or how many there are.

use futures::StreamExt as _;

use super::{bounds_range, client, consistency};
use crate::kvctl::args::{Format, Global, Range};
use crate::kvctl::failure::Failure;
use crate::kvctl::json::{Object, item};
use crate::kvctl::output::{Output, cell, escape};

pub(crate) async fn range(global: &Global, asked: Range) -> Result<(), Failure> {
    let mut output = Output::new(global.output)?;
    let kv = client(global)?;
    let consistency = consistency(&asked.stale);
    let range = bounds_range(asked.bounds);
    if asked.count {
        let operation = kv.count(range).consistency(consistency);
        let operation = match asked.revision {
            Some(revision) => operation.at(revision),
            None => operation,
        };
        let counted = operation.await.map_err(Failure::Read)?;
        output.line(&match output.format() {
            Format::Json => Object::new()
                .with("count", counted.count)
                .with("revision", counted.revision)
                .to_line(),
            Format::Table => format!("{} keys at revision {}", counted.count, counted.revision),
            Format::Plain | Format::Raw => counted.count.to_string(),
        })?;
        return output.flush();
    }
    if asked.limit == Some(0) {
        return output.flush();
    }
    let mut operation = kv.range(range).consistency(consistency);
    if let Some(limit) = asked.limit {
        operation = operation.limit(limit);
    }
    if let Some(revision) = asked.revision {
        operation = operation.at(revision);
    }
    if asked.keys_only {
        operation = operation.keys_only();
    }
    if asked.reverse {
        operation = operation.reverse();
    }
    let mut items = operation.stream();
    let mut rows = Vec::new();
    while let Some(found) = items.next().await {
        let found = found.map_err(Failure::Read)?;
        match output.format() {
            Format::Json => output.line(&item(&found, asked.keys_only).to_line())?,
            Format::Plain | Format::Raw if asked.keys_only => output.line(&escape(&found.key))?,
            Format::Plain | Format::Raw => {
                output.line(&format!("{}\t{}", escape(&found.key), escape(&found.value)))?;
            }
            Format::Table => {
                let mut row = vec![cell(&found.key)];
                if !asked.keys_only {
                    row.push(cell(&found.value));
                }
                row.push(found.mod_revision.to_string());
                row.push(found.version.to_string());
                rows.push(row);
            }
        }
    }
    if output.format() == Format::Table {
        let header: &[&str] = if asked.keys_only {
            &["key", "revision", "version"]
        } else {
            &["key", "value", "revision", "version"]
        };
        output.table(header, rows)?;
    }
    output.flush()
}
