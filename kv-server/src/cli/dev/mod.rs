//! `kv-server dev`: a whole cluster on this machine, each node a process of its own.
//!
//! Standard output is a contract with scripts:
//!
//! ```text
//! node: id=1 pid=4711 endpoint=127.0.0.1:3331 restart: COMMAND   each node, at the start
//! leader: node=2 term=1                                   each time a node leads a new term
//! ready: leader=2 endpoints=127.0.0.1:3331,…              once: all nodes follow the first leader
//! down: node=2 restart: COMMAND                           each time a child has died
//! ```
//!
//! Deaths are events. Leaders are learned by asking every node for its status: every 10 ms while it is
//! not known who leads, every 100 ms otherwise, so a change without a death is seen after at most
//! 100 ms plus one question.
//!
//! Nothing is restarted here, and only our own children are ever signalled. A node that somebody
//! starts by hand with the printed command is followed like the others and outlives us.

mod children;
mod demo;
mod layout;
mod watch;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf, absolute},
    sync::Arc,
    time::Duration,
};

use clap::ArgMatches;
use raft_core::NodeId;
use raft_rpc::NodeStatus;
use tokio::{
    runtime,
    sync::{mpsc, watch as signal},
};

use self::{
    children::{Children, Death},
    layout::{Layout, NodePlan},
    watch::{News, Watch},
};
use super::{exit, output, probe::Probe, signals::StopSignals};

/// Between two questions to a node while it is not known who leads.
const POLL_UNSETTLED: Duration = Duration::from_millis(10);
/// Between two questions to a node while all is well.
const POLL_SETTLED: Duration = Duration::from_millis(100);
/// Where data goes if nobody says.
const DEFAULT_DIRECTORY: &str = "kv-data";
/// Fewest nodes of which one may die.
const DEMO_NODES_MIN: u16 = 3;
/// Lines of a node's log that are shown when it dies before the cluster was ready.
const LOG_TAIL_LINES: usize = 5;
/// What a node says when its directory is of a cluster with another list of members.
const OTHER_CLUSTER: &str = "belongs to cluster";

/// Runs `kv-server dev`.
pub(super) fn run(matches: &ArgMatches) -> exit::Code {
    let count = matches.get_one::<u16>("nodes").copied().unwrap_or_default();
    let base_port = matches.get_one::<u16>("base-port").copied().unwrap_or_default();
    let verbose = matches.get_flag("verbose");
    let demo = matches.get_flag("demo");
    if demo && count < DEMO_NODES_MIN {
        output::narrate(&format!(
            "error: the demo kills a node, so it needs at least {DEMO_NODES_MIN}, not {count}"
        ));
        return exit::USAGE;
    }
    let given = matches.get_one::<String>("data-dir").map(PathBuf::from);
    // The temporary directory lives until everything has stopped.
    let (directory, _temporary) = match (given, demo) {
        (Some(directory), _) => (directory, None),
        (None, false) => (PathBuf::from(DEFAULT_DIRECTORY), None),
        (None, true) => match tempfile::Builder::new().prefix("kv-demo-").tempdir() {
            Ok(temporary) => (temporary.path().to_owned(), Some(temporary)),
            Err(error) => return refuse(&format!("cannot make a temporary directory: {error}")),
        },
    };
    let layout = match plan(&directory, count, base_port) {
        Ok(layout) => layout,
        Err((code, message)) => {
            output::narrate(&format!("error: {message}"));
            return code;
        }
    };
    // One thread: there is little to do, and children are started from a thread that stays.
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&format!("cannot start the runtime: {error}")),
    };
    runtime.block_on(async {
        match StopSignals::listen() {
            Ok(signals) if demo => demo::run(layout, verbose, signals).await,
            Ok(signals) => follow(layout, verbose, signals).await,
            Err(error) => refuse(&format!("cannot listen for signals: {error}")),
        }
    })
}

fn refuse(message: &str) -> exit::Code {
    output::narrate(&format!("error: {message}"));
    exit::REFUSED
}

/// The nodes, with everything checked that can be before the first starts.
fn plan(directory: &Path, count: u16, base_port: u16) -> Result<Arc<Layout>, (exit::Code, String)> {
    let refused = |message| (exit::REFUSED, message);
    let program = env::current_exe()
        .map_err(|error| refused(format!("cannot find this program's own file: {error}")))?;
    let directory = absolute(directory).map_err(|error| {
        refused(format!("cannot make {} absolute: {error}", directory.display()))
    })?;
    let layout = Layout::new(&program, &directory, count, base_port)
        .map_err(|message| (exit::USAGE, message))?;
    layout.check_ports().map_err(refused)?;
    Ok(Arc::new(layout))
}

/// Starts the nodes and says what happens to them until told to stop.
async fn follow(layout: Arc<Layout>, verbose: bool, mut signals: StopSignals) -> exit::Code {
    let (mut children, mut deaths) = Children::new(Arc::clone(&layout), verbose);
    let mut listed = Vec::new();
    let mut logs = BTreeMap::new();
    for node in &layout.nodes {
        logs.insert(node.id, LogOfStart::of(node));
        match children.start(node.id) {
            Ok(pid) => listed.push(format!(
                "node: id={} pid={pid} endpoint={} restart: {}",
                node.id,
                node.client,
                layout.restart_command(node)
            )),
            Err(message) => {
                children.stop_all().await;
                return refuse(&message);
            }
        }
    }
    for line in listed {
        output::out(&line);
    }
    let mut watch = Watch::new(layout.nodes.iter().map(|node| node.id), layout.endpoints());
    let (interval, asked) = signal::channel(POLL_UNSETTLED);
    let mut answers = ask_all(&layout, &asked);
    let stop = loop {
        tokio::select! {
            name = signals.next() => break name,
            Some(death) = deaths.recv() => {
                watch.died(death.node);
                let log = logs.get(&death.node).filter(|_| !watch.is_ready());
                report_death(&layout, death, log);
            }
            Some((node, status)) = answers.recv() => {
                for news in watch.observe(node, status.as_ref()) {
                    report(&news);
                }
            }
        }
        let wanted = if watch.is_unsettled() { POLL_UNSETTLED } else { POLL_SETTLED };
        interval.send_if_modified(|interval| std::mem::replace(interval, wanted) != wanted);
    };
    output::narrate(&format!("{stop}: stopping the nodes"));
    children.stop_all().await;
    for node in watch.foreign() {
        output::narrate(&format!("node {node} was started by hand and goes on"));
    }
    exit::DONE
}

fn report(news: &News) {
    if let Some(line) = news.line() {
        output::out(&line);
        return;
    }
    match news {
        News::Back { node } => output::narrate(&format!("node {node} answers again")),
        News::Gone { node } => output::narrate(&format!("node {node} answers no more")),
        News::Leader { .. } | News::Ready { .. } => {}
    }
}

/// Says that a node died; before the cluster was ready also what its `log` says, since nobody should have
/// to look for the reason why a node does not even come up.
fn report_death(layout: &Layout, death: Death, log: Option<&LogOfStart>) {
    let Some(node) = layout.nodes.iter().find(|node| node.id == death.node) else { return };
    output::narrate(&format!("node {}: {}", node.id, death.status));
    let lines = log.map(LogOfStart::tail).unwrap_or_default();
    for line in &lines {
        output::narrate(&format!("node {} | {line}", node.id));
    }
    if lines.iter().any(|line| line.contains(OTHER_CLUSTER)) {
        output::narrate(
            "the data was written with another --nodes or --base-port: give those, or another --data-dir",
        );
    }
    output::out(&format!("down: node={} restart: {}", node.id, layout.restart_command(node)));
}

/// What a node has logged since we started it; the file may hold earlier starts too.
#[derive(Debug)]
struct LogOfStart {
    file: PathBuf,
    from: u64,
}

impl LogOfStart {
    /// To be made before the node starts.
    fn of(node: &NodePlan) -> Self {
        let file = node.log_file();
        let from = fs::metadata(&file).map_or(0, |metadata| metadata.len());
        Self { file, from }
    }

    /// Its last lines; none if it cannot be read, which is no reason to fail.
    fn tail(&self) -> Vec<String> {
        let text = fs::read(&self.file).unwrap_or_default();
        let from = usize::try_from(self.from).unwrap_or(usize::MAX);
        let text = String::from_utf8_lossy(text.get(from..).unwrap_or_default());
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_TAIL_LINES);
        lines.iter().skip(skipped).map(ToString::to_string).collect()
    }
}

/// Asks every node for its status, again and again, at the interval in `interval`.
fn ask_all(
    layout: &Layout,
    interval: &signal::Receiver<Duration>,
) -> mpsc::Receiver<(NodeId, Option<NodeStatus>)> {
    // One answer of each node may wait; then the asker waits too.
    let (answers, receiver) = mpsc::channel(layout.nodes.len());
    for node in &layout.nodes {
        let mut probe = Probe::new(node.client.to_string());
        let (id, answers, mut interval) = (node.id, answers.clone(), interval.clone());
        tokio::spawn(async move {
            loop {
                let status = probe.status().await.ok();
                if answers.send((id, status)).await.is_err() {
                    return;
                }
                let pause = *interval.borrow_and_update();
                // Cut short when the interval changes: somebody has died.
                drop(tokio::time::timeout(pause, interval.changed()).await);
            }
        });
    }
    receiver
}
