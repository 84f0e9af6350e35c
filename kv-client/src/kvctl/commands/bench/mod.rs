//! `bench`: callers in closed loops, measured from outside.
//!
//! Each caller has one request at a time, so a slow answer also delays the next question: the
//! latencies are those of callers who wait, and `ops_per_s` is what that many of them get done.
//!
//! Callers are spread over K connections, connections over the endpoints that answer, the leader
//! first; each connection is a client of its own that knows one endpoint. Every key has one writer, who knows
//! what it must hold; a sample of them is read back at the end (`check`).

mod check;
mod server_cpu;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{Client, prefix};
use hdrhistogram::Histogram;

use self::server_cpu::Servers;
use self::worker::{Keys, Tally, Worker};
use super::builder;
use crate::kvctl::args::{Bench, Format, Global, Workload};
use crate::kvctl::failure::Failure;
use crate::kvctl::json::Object;
use crate::kvctl::output::{Output, narrate};

/// Keys of a run at least: with fewer the store's caches would be measured.
const KEYS_MIN: u64 = 10_000;
/// Connections unless given.
const CONNECTIONS: u32 = 8;
/// Puts under way while the keys are first written.
const PRELOAD_CONCURRENCY: usize = 256;
/// Longer latencies are counted as this.
const LATENCY_MAX_US: u64 = 600_000_000;

pub(crate) async fn bench(global: &Global, asked: Bench) -> Result<(), Failure> {
    let mut output = Output::new(global.output)?;
    let Cluster { endpoints, members, addresses } = reachable(global).await?;
    let connections = asked.connections.unwrap_or(CONNECTIONS).min(asked.clients) as usize;
    let clients = (0..connections)
        .map(|number| {
            let endpoint = endpoints[number % endpoints.len()].clone();
            Client::builder().endpoints([endpoint]).timeout(global.timeout).connect_lazily()
        })
        .collect::<Result<Vec<Client>, _>>()
        .map_err(Failure::Read)?;
    let callers = u64::from(asked.clients);
    let keys = Arc::new(Keys::new(run_name(), callers, KEYS_MIN.div_ceil(callers)));
    narrate(&format!(
        "{} callers over {connections} connections to {} of {members} nodes, {} keys under {}",
        asked.clients,
        endpoints.len().min(connections),
        keys.count(),
        keys.prefix(),
    ));

    let everyone = builder(global).connect_lazily().map_err(Failure::Read)?;
    let measured = tokio::select! {
        measured = measure(&asked, &keys, &clients, &addresses) => measured,
        _interrupted = tokio::signal::ctrl_c() => {
            narrate(&format!(
                "interrupted; its keys remain: kvctl --yes del --prefix {}",
                keys.prefix()
            ));
            return Err(Failure::Interrupted);
        }
    };
    let checked = match &measured {
        Ok(measured) => {
            check::read_back(&everyone, &keys, &measured.tally, preloads(asked.workload)).await
        }
        Err(_) => Ok(0),
    };
    if asked.keep {
        narrate(&format!("keys kept under {}", keys.prefix()));
    } else {
        let removed = everyone.delete(prefix(keys.prefix())).timeout(Duration::from_secs(30)).await;
        if let Err(error) = removed {
            narrate(&format!("keys under {} could not be removed: {error}", keys.prefix()));
        }
    }
    let measured = measured?;
    let (verified, mismatch) = match checked {
        Ok(verified) => (verified, None),
        Err(check::Unverified::Mismatch(text)) => (0, Some(text)),
        Err(check::Unverified::Failed(error)) => return Err(Failure::Read(error)),
    };
    report(&mut output, &asked, connections, members, &measured, verified)?;
    if let Some(text) = mismatch {
        narrate(&format!("error: {text}"));
        return Err(Failure::Problem);
    }
    match measured.tally.first_error {
        // Nothing was measured at all.
        Some(error) if measured.tally.ops == 0 => Err(Failure::Read(error)),
        Some(_) | None => Ok(()),
    }
}

/// What a benchmark needs to know of the cluster.
struct Cluster {
    /// The endpoints that answer, the leader first, then in the order given.
    endpoints: Vec<String>,
    /// How many members it has.
    members: usize,
    /// Where they are reached.
    addresses: Vec<String>,
}

async fn reachable(global: &Global) -> Result<Cluster, Failure> {
    let kv = builder(global).connect_lazily().map_err(Failure::Read)?;
    let status = kv.cluster().status().await.map_err(Failure::Read)?;
    let answered = |endpoint: &String| {
        status.nodes.iter().any(|node| node.is_reachable() && node.client_addr == *endpoint)
    };
    let given: Vec<String> = global.endpoints.iter().map(|it| it.trim().to_owned()).collect();
    let mut endpoints: Vec<String> = given.iter().filter(|it| answered(it)).cloned().collect();
    let leads = |endpoint: &String| {
        status.nodes.iter().any(|node| node.id == status.leader && node.client_addr == *endpoint)
    };
    if let Some(place) = endpoints.iter().position(leads) {
        endpoints.rotate_left(place);
    }
    if endpoints.is_empty() {
        // They answer under names that the members do not use; all are taken as given.
        endpoints = given;
    }
    let known = status.nodes.iter().filter(|node| node.id.is_some());
    let addresses: Vec<String> = known.map(|node| node.client_addr.clone()).collect();
    Ok(Cluster { endpoints, members: addresses.len(), addresses })
}

/// A name that no other run has.
fn run_name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", since.as_micros(), std::process::id())
}

/// Whether the keys are written before the measurement, so that reads find something.
fn preloads(workload: Workload) -> bool {
    match workload {
        Workload::Put => false,
        Workload::Get | Workload::Mixed | Workload::Range => true,
    }
}

/// What was measured.
struct Measured {
    tally: Tally,
    elapsed: Duration,
    /// Of all servers together, if it could be had.
    server_cpu_us: Option<u64>,
}

async fn measure(
    asked: &Bench,
    keys: &Arc<Keys>,
    clients: &[Client],
    addresses: &[String],
) -> Result<Measured, Failure> {
    if preloads(asked.workload) {
        worker::preload(keys, clients, asked.value_bytes as usize, PRELOAD_CONCURRENCY)
            .await
            .map_err(Failure::Write)?;
    }
    let servers = Servers::find(addresses.iter().map(String::as_str));
    let used_before = servers.as_ref().and_then(Servers::used_us);
    let start = Instant::now();
    let until = start + Duration::from_secs(u64::from(asked.seconds));
    let workers: Vec<_> = (0..u64::from(asked.clients))
        .zip(clients.iter().cycle())
        .map(|(caller, client)| {
            let worker = Worker::new(caller, client.clone(), Arc::clone(keys), asked);
            tokio::spawn(worker.run(until))
        })
        .collect();
    let mut tally = Tally::new(LATENCY_MAX_US).map_err(|error| {
        Failure::usage(format!("the histogram can't be made: {error}"), "report this")
    })?;
    for worker in workers {
        match worker.await {
            Ok(part) => tally.add(part),
            Err(error) => return Err(Failure::io("a caller died", std::io::Error::other(error))),
        }
    }
    let elapsed = start.elapsed();
    let used_after = servers.as_ref().and_then(Servers::used_us);
    let server_cpu_us =
        used_after.zip(used_before).map(|(after, before)| after.saturating_sub(before));
    Ok(Measured { tally, elapsed, server_cpu_us })
}

fn report(
    output: &mut Output,
    asked: &Bench,
    connections: usize,
    members: usize,
    measured: &Measured,
    verified: u64,
) -> Result<(), Failure> {
    let Measured { tally, elapsed, server_cpu_us } = measured;
    if let Some(error) = &tally.first_error {
        narrate(&format!("the first error was: {error}"));
    }
    let workload = match asked.workload {
        Workload::Put => "put",
        Workload::Get => "get",
        Workload::Mixed => "mixed",
        Workload::Range => "range",
    };
    let seconds = elapsed.as_secs_f64();
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let per_second = tally.ops as f64 / seconds.max(0.001);
    #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
    let server_cpu_us_per_op = server_cpu_us
        .filter(|_| tally.ops > 0)
        .map(|used| (used as f64 / tally.ops as f64 * 10.0).round() / 10.0);
    let quantile = |quantile: f64| quantile_us(&tally.latencies, quantile);
    if output.format() == Format::Json {
        let object = Object::new()
            .with("workload", workload)
            .with("clients", asked.clients)
            .with("connections", connections)
            .with("nodes", members)
            .with("value_bytes", asked.value_bytes)
            .with("seconds", rounded(seconds))
            .with("ops", tally.ops)
            .with("ops_per_s", rounded(per_second))
            .with("p50_us", quantile(0.5))
            .with("p90_us", quantile(0.9))
            .with("p99_us", quantile(0.99))
            .with("p999_us", quantile(0.999))
            .with("max_us", tally.latencies.max())
            .with("errors", tally.errors)
            .with("server_cpu_us_per_op", server_cpu_us_per_op)
            .with("verified", verified);
        output.line(&object.to_line())?;
        return output.flush();
    }
    let rows = [
        ("workload", workload.to_owned()),
        ("operations", tally.ops.to_string()),
        ("per second", format!("{per_second:.0}")),
        ("p50", format!("{} µs", quantile(0.5))),
        ("p90", format!("{} µs", quantile(0.9))),
        ("p99", format!("{} µs", quantile(0.99))),
        ("p99.9", format!("{} µs", quantile(0.999))),
        ("max", format!("{} µs", tally.latencies.max())),
        ("errors", tally.errors.to_string()),
        (
            "server CPU per operation",
            server_cpu_us_per_op.map_or_else(|| "unknown".to_owned(), |used| format!("{used} µs")),
        ),
        ("verified", verified.to_string()),
    ];
    if output.format() == Format::Table {
        let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        output.table(&["measure", "value"], rows)?;
    } else {
        for (name, value) in rows {
            output.line(&format!("{name}\t{value}"))?;
        }
    }
    output.flush()
}

fn quantile_us(latencies: &Histogram<u64>, quantile: f64) -> u64 {
    latencies.value_at_quantile(quantile).min(latencies.max())
}
