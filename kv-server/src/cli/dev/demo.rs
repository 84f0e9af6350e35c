//! `kv-server dev --demo`: the founding scenario on real processes, a line a step.
//!
//! Standard output holds nothing but those lines. However it ends, by its last step, a failure, a
//! signal, the deadline, no child is left: they are stopped here, killed when their tasks are dropped
//! (a panic unwinds through this), and end with our end of their standard input otherwise.

use std::{cell::Cell, collections::BTreeMap, sync::Arc, time::Duration};

use raft_core::NodeId;

use super::{LogOfStart, children::Children, layout::Layout};
use crate::cli::{
    exit, output,
    scenario::{self, Limits, Nodes, Outcome, Step},
    signals::StopSignals,
};

/// The whole scenario; stopping the nodes comes on top, and all of it stays below 30 s.
const TIME_LIMIT: Duration = Duration::from_secs(19);

/// The children of this process as the scenario's nodes.
struct DemoNodes {
    layout: Arc<Layout>,
    children: Children,
}

impl Nodes for DemoNodes {
    fn endpoints(&self) -> BTreeMap<NodeId, String> {
        self.layout.nodes.iter().map(|node| (node.id, node.client.to_string())).collect()
    }

    fn start(&mut self, node: NodeId) -> Result<(), String> {
        self.children.start(node).map(|_pid| ())
    }

    async fn kill(&mut self, node: NodeId) -> Result<(), String> {
        self.children.kill(node).await
    }

    async fn freeze(&mut self, node: NodeId) -> Result<(), String> {
        self.children.freeze(node).await
    }

    async fn thaw(&mut self, node: NodeId) -> Result<(), String> {
        self.children.thaw(node).await
    }
}

/// Plays the demo and stops everything it started.
pub(super) async fn run(
    layout: Arc<Layout>,
    verbose: bool,
    mut signals: StopSignals,
) -> exit::Code {
    let logs: Vec<LogOfStart> = layout.nodes.iter().map(LogOfStart::of).collect();
    let (children, mut deaths) = Children::new(Arc::clone(&layout), verbose);
    let mut nodes = DemoNodes { layout: Arc::clone(&layout), children };
    let reported = Cell::new(0);
    let play = scenario::play(&mut nodes, Limits::DEMO, |step, outcome| {
        reported.set(reported.get() + 1);
        output::out(&outcome.line(step));
    });
    let ended = tokio::select! {
        held = play => Ok(held),
        name = signals.next() => Err(format!("interrupted by {name}")),
        () = tokio::time::sleep(TIME_LIMIT) => {
            Err(format!("the demo took longer than {} s", TIME_LIMIT.as_secs()))
        }
        // Deaths are part of the play; what matters of them shows in its steps.
        () = async { while deaths.recv().await.is_some() {} } => Err("no node is left".to_owned()),
    };
    if let Err(reason) = &ended {
        report_rest(reported.get(), reason);
    }
    nodes.children.stop_all().await;
    if ended == Ok(true) {
        return exit::DONE;
    }
    for (node, log) in layout.nodes.iter().zip(logs) {
        for line in log.tail() {
            output::narrate(&format!("node {} | {line}", node.id));
        }
    }
    exit::REFUSED
}

/// A line for each step that has none yet: the first was cut short, the others were not reached.
fn report_rest(reported: usize, reason: &str) {
    let mut cut_short = None;
    for step in Step::ALL.into_iter().skip(reported) {
        let outcome = match cut_short {
            None => Outcome::Failed(reason.to_owned()),
            Some(earlier) => Outcome::NotReached(earlier),
        };
        cut_short = cut_short.or(Some(step));
        output::out(&outcome.line(step));
    }
}
