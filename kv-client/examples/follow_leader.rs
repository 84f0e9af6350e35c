//! Writes once in a while and says who leads, so that one can watch a client live through a change
//! of the leader:
//!
//! ```text
//! cargo run --release --bin kv-server -- dev
//! cargo run --release -p kv-client --example follow_leader      # then kill -9 the leader
//! ```

use std::error::Error;
use std::io::Write as _;
use std::time::Duration;

use kv_client::{Client, Effect};
use tokio::time::{Instant, MissedTickBehavior};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoints = (3331..=3334).map(|port| format!("127.0.0.1:{port}"));
    let kv =
        Client::builder().endpoints(endpoints).timeout(Duration::from_secs(10)).connect().await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leader = None;
    for number in 0_u64.. {
        ticks.tick().await;
        let start = Instant::now();
        match kv.put("follow/counter", number.to_string()).await {
            Ok(written) => {
                let took = start.elapsed();
                if took > Duration::from_millis(50) {
                    let revision = written.revision;
                    writeln!(
                        std::io::stdout(),
                        "write {number} took {took:?}, revision {revision}"
                    )?;
                }
            }
            // A write without an answer may have taken effect; this one may simply be repeated.
            Err(error) if error.effect() == Effect::Unknown => {
                writeln!(std::io::stdout(), "write {number}: {error}")?;
            }
            Err(error) => return Err(error.into()),
        }
        let status = kv.cluster().report().await;
        if status.leader != leader {
            writeln!(std::io::stdout(), "leader {:?}, term {}", status.leader, status.term)?;
            leader = status.leader;
        }
    }
    Ok(())
}
