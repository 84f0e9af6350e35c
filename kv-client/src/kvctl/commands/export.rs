//! `export`: every key and value as a line of JSON, in key order, at one revision. What it prints
//! is what `import` reads; together they are exact to the byte.

use std::io::IsTerminal as _;

use futures::StreamExt as _;

use super::{client, consistency, prefix_range};
use crate::kvctl::args::{Export, Format, Global};
use crate::kvctl::failure::Failure;
use crate::kvctl::json::pair;
use crate::kvctl::output::{Output, narrate};

pub(crate) async fn export(global: &Global, asked: Export) -> Result<(), Failure> {
    if !matches!(global.output, None | Some(Format::Json)) {
        return Err(Failure::usage("export always prints JSON lines", "leave -o away"));
    }
    let mut output = Output::with_format(Format::Json);
    let kv = client(global)?;
    let mut operation =
        kv.range(prefix_range(asked.prefix.as_deref())).consistency(consistency(&asked.stale));
    if let Some(revision) = asked.revision {
        operation = operation.at(revision);
    }
    let mut items = operation.stream();
    let mut count = 0_u64;
    while let Some(found) = items.next().await {
        output.line(&pair(&found.map_err(Failure::Read)?).to_line())?;
        count += 1;
    }
    output.flush()?;
    if std::io::stderr().is_terminal() {
        let revision = items.revision().map_or_else(String::new, |at| format!(" at revision {at}"));
        narrate(&format!("exported {count} keys{revision}"));
    }
    Ok(())
}
