//! The nodes as child processes: started, signalled, waited for, and never left behind.
//!
//! ```text
//!   Children ──Order──► task of node 1 ─owns─► Child ──exit──► Death ──► whoever follows the cluster
//!            ──Order──► task of node 2 …
//! ```
//!
//! Invariants
//! 1. A signal goes to a process that has not been reaped: the task that waits for a child is the only
//!    one that signals it, so a number used again by a stranger is never hit.
//! 2. A child ends with us in every case: told to when we stop; killed when its task is dropped; and by
//!    the end of its standard input if we are killed ourselves.
//! 3. Children are in process groups of their own: Ctrl-C reaches only us, and we stop them in order.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use raft_core::NodeId;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::layout::{Layout, NodePlan};
use crate::cli::output;

/// How long a child may take to stop in order before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long a process may take to stand still after SIGSTOP.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);
/// How often that is looked at: the system has no event for it but a signal to all of us.
const FREEZE_POLL: Duration = Duration::from_millis(1);

/// A child has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Death {
    pub(crate) node: NodeId,
    pub(crate) status: ExitStatus,
}

/// What a child's task is asked to do.
#[derive(Debug)]
enum Order {
    /// Send a signal; the answer is whether it could be sent.
    Signal(Signal, oneshot::Sender<Result<(), String>>),
    /// Send SIGSTOP and answer when the process stands still.
    Freeze(oneshot::Sender<Result<(), String>>),
    /// Let it go on if it stands still, end its standard input and ask it to stop.
    Stop,
    /// SIGKILL.
    Kill,
}

#[derive(Debug)]
struct Running {
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

/// The children of this process.
#[derive(Debug)]
pub(crate) struct Children {
    layout: Arc<Layout>,
    verbose: bool,
    running: BTreeMap<NodeId, Running>,
    deaths: mpsc::Sender<Death>,
}

impl Children {
    /// No children yet. The receiver learns of every death, also of those asked for.
    pub(crate) fn new(layout: Arc<Layout>, verbose: bool) -> (Self, mpsc::Receiver<Death>) {
        // Room for more deaths than there are nodes, so that no task waits for a reader that is busy stopping others.
        let (deaths, receiver) = mpsc::channel(layout.nodes.len() * 4);
        (Self { layout, verbose, running: BTreeMap::new(), deaths }, receiver)
    }

    /// Starts a node and gives back the id of its process.
    ///
    /// # Errors
    /// If it runs already, or its directory, its log or the process cannot be made.
    pub(crate) fn start(&mut self, node: NodeId) -> Result<u32, String> {
        let plan = self.plan(node)?.clone();
        if self.running.get(&node).is_some_and(|running| !running.task.is_finished()) {
            return Err(format!("node {node} runs already"));
        }
        let directory = plan.directory.display();
        fs::create_dir_all(&plan.directory)
            .map_err(|error| format!("cannot make the directory {directory}: {error}"))?;
        let log_file = plan.log_file();
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&log_file)
            .map_err(|error| format!("cannot open {}: {error}", log_file.display()))?;
        let child = self.spawn(&plan, &log)?;
        let pid = child.id().unwrap_or_default();
        let (orders, receiver) = mpsc::channel(4);
        let deaths = self.deaths.clone();
        let task = tokio::spawn(attend(node, child, receiver, deaths, self.verbose.then_some(log)));
        self.running.insert(node, Running { orders, task });
        Ok(pid)
    }

    fn spawn(&self, plan: &NodePlan, log: &File) -> Result<Child, String> {
        let program = self.layout.program();
        let failed = |error| format!("cannot start {}: {error}", program.display());
        let (out, err) = if self.verbose {
            (Stdio::null(), Stdio::piped())
        } else {
            (Stdio::null(), Stdio::from(log.try_clone().map_err(failed)?))
        };
        Command::new(program)
            .args(self.layout.arguments(plan))
            .arg("--exit-on-stdin-close")
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)
    }

    /// Kills a node with SIGKILL and returns when its process is gone.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) async fn kill(&mut self, node: NodeId) -> Result<(), String> {
        let running =
            self.running.remove(&node).ok_or_else(|| format!("node {node} does not run"))?;
        // A closed channel means that it has ended by itself, which the wait below sees.
        drop(running.orders.send(Order::Kill).await);
        running.task.await.map_err(|error| format!("waiting for node {node}: {error}"))
    }

    /// Stops a node with SIGSTOP and returns when it stands still.
    ///
    /// # Errors
    /// If it does not run or does not stop.
    pub(crate) async fn freeze(&self, node: NodeId) -> Result<(), String> {
        self.order(node, Order::Freeze).await
    }

    /// Lets a node go on with SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) async fn thaw(&self, node: NodeId) -> Result<(), String> {
        self.order(node, |answer| Order::Signal(Signal::CONT, answer)).await
    }

    async fn order(
        &self,
        node: NodeId,
        order: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Order,
    ) -> Result<(), String> {
        let gone = || format!("node {node} does not run");
        let running = self.running.get(&node).ok_or_else(gone)?;
        let (answer, receiver) = oneshot::channel();
        running.orders.send(order(answer)).await.map_err(|_closed| gone())?;
        receiver.await.map_err(|_closed| gone())?
    }

    /// Stops every child that still runs, in order first and by force after a grace period; returns
    /// when all are gone.
    pub(crate) async fn stop_all(&mut self) {
        let running = std::mem::take(&mut self.running);
        for child in running.values() {
            drop(child.orders.send(Order::Stop).await);
        }
        let deadline = tokio::time::Instant::now() + STOP_GRACE;
        for (node, mut child) in running {
            if tokio::time::timeout_at(deadline, &mut child.task).await.is_err() {
                output::narrate(&format!("node {node} does not stop and is killed"));
                drop(child.orders.send(Order::Kill).await);
                drop(child.task.await);
            }
        }
    }

    fn plan(&self, node: NodeId) -> Result<&NodePlan, String> {
        let found = self.layout.nodes.iter().find(|plan| plan.id == node);
        found.ok_or_else(|| format!("there is no node {node}"))
    }
}

/// Owns one child until it has ended.
async fn attend(
    node: NodeId,
    mut child: Child,
    mut orders: mpsc::Receiver<Order>,
    deaths: mpsc::Sender<Death>,
    log: Option<File>,
) {
    let copying =
        log.zip(child.stderr.take()).map(|(log, stderr)| tokio::spawn(copy_log(node, stderr, log)));
    // Its standard input stays open as long as this is held.
    let mut stdin = child.stdin.take();
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            Some(order) = orders.recv() => match order {
                Order::Signal(signal, answer) => drop(answer.send(send(&child, signal))),
                Order::Freeze(answer) => {
                    let frozen = match send(&child, Signal::STOP) {
                        Ok(()) => until_stopped(&child).await,
                        Err(error) => Err(error),
                    };
                    drop(answer.send(frozen));
                }
                Order::Stop => {
                    drop(stdin.take());
                    // It may have ended in this very moment; then there is nothing to stop.
                    drop(send(&child, Signal::CONT));
                    drop(send(&child, Signal::TERM));
                }
                Order::Kill => drop(send(&child, Signal::KILL)),
            },
        }
    };
    if let Some(copying) = copying {
        drop(copying.await);
    }
    if let Ok(status) = status {
        let told = deaths.send(Death { node, status }).await;
        // Nobody listens any more once everything is being stopped.
        debug_assert!(told.is_ok() || deaths.is_closed(), "a death was lost");
    }
}

fn pid(child: &Child) -> Result<Pid, String> {
    child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
        .ok_or_else(|| "the process has ended".to_owned())
}

fn send(child: &Child, signal: Signal) -> Result<(), String> {
    kill_process(pid(child)?, signal).map_err(|error| format!("cannot signal the process: {error}"))
}

/// Waits until all threads of a process that got SIGSTOP stand still.
async fn until_stopped(child: &Child) -> Result<(), String> {
    let pid = pid(child)?;
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let deadline = tokio::time::Instant::now() + FREEZE_LIMIT;
    while tokio::time::Instant::now() < deadline {
        match waitid(WaitId::Pid(pid), options) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => tokio::time::sleep(FREEZE_POLL).await,
            Err(error) => return Err(format!("waiting for SIGSTOP to take effect: {error}")),
        }
    }
    Err("the process still runs after SIGSTOP".to_owned())
}

/// Copies the log of a node to its file and, marked with the node, to our standard error.
async fn copy_log(node: NodeId, stderr: impl AsyncRead + Unpin, mut log: File) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        drop(writeln!(log, "{line}"));
        output::narrate(&format!("node {node} | {line}"));
    }
}
