//! The five-minute tour of the client, against a cluster on this machine:
//!
//! ```text
//! cargo run --release --bin kv-server -- dev
//! cargo run --release -p kv-client --example quickstart
//! ```

use std::error::Error;
use std::io::Write as _;

use futures::TryStreamExt as _;
use kv_client::{Client, Conditional, Consistency, prefix};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let kv = Client::connect((3331..=3334).map(|port| format!("127.0.0.1:{port}"))).await?;

    // Write and read. On return a write is durable on a majority of the nodes.
    let written = kv.put("tour/greeting", "hello").await?;
    writeln!(out, "written at revision {}", written.revision)?;
    let found = kv.get("tour/greeting").await?.ok_or("it was written just now")?;
    writeln!(out, "read {:?}, version {}", found.value, found.version)?;

    // The past stays readable.
    kv.put("tour/greeting", "hello again").await?;
    let before = kv.get("tour/greeting").at(written.revision).await?;
    writeln!(out, "at revision {}: {:?}", written.revision, before.map(|item| item.value))?;

    // A condition that does not hold is an answer, not an error.
    match kv.put("tour/job", "mine").if_absent().await? {
        Conditional::Applied(written) => writeln!(out, "took the job at {}", written.revision)?,
        Conditional::Refused { current, .. } => writeln!(out, "somebody has it: {current:?}")?,
    }

    // Calls made together travel together.
    let writes = (0..100)
        .map(|number| kv.put(format!("tour/item/{number:03}"), number.to_string()).into_future());
    futures::future::try_join_all(writes).await?;

    // A listing of any length is one consistent view.
    let items: Vec<_> = kv.range(prefix("tour/item/")).keys_only().stream().try_collect().await?;
    writeln!(out, "{} items, the last is {:?}", items.len(), items.last().map(|item| &item.key))?;

    // Never older than what this client has seen, without asking the leader.
    let session = kv.get("tour/item/042").consistency(Consistency::Session).await?;
    writeln!(out, "item 42 is {:?}", session.map(|item| item.value))?;

    let deleted = kv.delete(prefix("tour/")).await?;
    writeln!(out, "removed {} keys at revision {}", deleted.count, deleted.revision)?;
    Ok(())
}
