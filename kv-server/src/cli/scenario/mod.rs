//! The founding scenario in named steps: what `dev --demo` plays and the integration tests assert.
//!
//! ```text
//! elect       all nodes start; one leads
//! put-1       key-01 = content 01 through node 1
//! put-2       key-02 = content 02 through node 2, which follows (or the next that does) and forwards it
//! get-3       key-02 from node 3
//! kill        SIGKILL to the leader
//! re-elect    another node leads                                              time: from the kill
//! first-write key-03 = content 03 is accepted                                 time: from the kill
//! read-all    every node that lives has all three
//! freeze      the killed node is started again; SIGSTOP to the leader while a put waits on it;
//!             another node leads                                              time: from the SIGSTOP
//! step-down   SIGCONT: the old leader answers with the new leader's value, follows at the higher term,
//!             and the waiting put ends with the truth about its effect        time: from the SIGCONT
//! rejoin      the killed node holds everything, equal to the others           time: from its start
//! ```
//!
//! The killed node has to be back before a second one is stopped: four nodes tolerate one failure, so
//! with one dead and one frozen nobody could be elected. Its catching up is timed then, and `rejoin`
//! checks at the end that it holds also what was written since.
//!
//! Who starts, kills and freezes processes is given as [`Nodes`]: the children of `dev`, or those of a
//! test. Every wait is for a condition, asked of the nodes themselves, with a deadline.

mod steps;

use std::{collections::BTreeMap, fmt, future::Future, time::Duration};

use raft_core::NodeId;

/// A step of the scenario. The names are a contract with scripts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    /// All nodes start, one leads.
    Elect,
    /// A put through node 1.
    Put1,
    /// A put through a follower.
    Put2,
    /// A get from node 3.
    Get3,
    /// The leader is killed.
    Kill,
    /// Another leads.
    ReElect,
    /// A put is accepted again.
    FirstWrite,
    /// Every node that lives has everything.
    ReadAll,
    /// The leader is stopped while a put waits on it; another leads.
    Freeze,
    /// The stopped one goes on and follows.
    StepDown,
    /// The killed node has everything.
    Rejoin,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Self; 11] = [
        Self::Elect,
        Self::Put1,
        Self::Put2,
        Self::Get3,
        Self::Kill,
        Self::ReElect,
        Self::FirstWrite,
        Self::ReadAll,
        Self::Freeze,
        Self::StepDown,
        Self::Rejoin,
    ];

    /// Its name in the demo's output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Elect => "elect",
            Self::Put1 => "put-1",
            Self::Put2 => "put-2",
            Self::Get3 => "get-3",
            Self::Kill => "kill",
            Self::ReElect => "re-elect",
            Self::FirstWrite => "first-write",
            Self::ReadAll => "read-all",
            Self::Freeze => "freeze",
            Self::StepDown => "step-down",
            Self::Rejoin => "rejoin",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The processes of a cluster whose nodes are not started yet.
///
/// All errors are for people. A node that was started may be killed, and started again; a frozen one
/// goes on by `thaw` alone.
pub trait Nodes {
    /// Where clients reach each node, at least three of them.
    fn endpoints(&self) -> BTreeMap<NodeId, String>;
    /// Starts a node, without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    fn start(&mut self, node: NodeId) -> Result<(), String>;
    /// Ends a node by SIGKILL and returns when its process is gone.
    fn kill(&mut self, node: NodeId) -> impl Future<Output = Result<(), String>>;
    /// Stops a node by SIGSTOP and returns when it stands still.
    fn freeze(&mut self, node: NodeId) -> impl Future<Output = Result<(), String>>;
    /// Lets a stopped node go on by SIGCONT.
    fn thaw(&mut self, node: NodeId) -> impl Future<Output = Result<(), String>>;
}

/// How long things may take before their step fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// From the last node's start to the first leader.
    pub elect: Duration,
    /// Any other wait.
    pub step: Duration,
}

impl Limits {
    /// What the demo holds itself to: a leader within a second.
    pub const DEMO: Self = Self { elect: Duration::from_secs(1), step: Duration::from_secs(5) };
}

/// How a step went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It held; how long it took, see the list of steps for from when on.
    Held(Duration),
    /// It did not; why.
    Failed(String),
    /// It was not played, because this step before it failed.
    NotReached(Step),
}

impl Outcome {
    /// Whether the step held.
    #[must_use]
    pub const fn held(&self) -> bool {
        matches!(self, Self::Held(_))
    }

    /// The demo's line: `ok STEP MS ms` or `FAILED STEP reason`.
    #[must_use]
    pub fn line(&self, step: Step) -> String {
        match self {
            Self::Held(took) => format!("ok {step} {} ms", took.as_millis()),
            // One line, whatever an error may hold.
            Self::Failed(reason) => format!("FAILED {step} {}", reason.replace('\n', "; ")),
            Self::NotReached(earlier) => format!("FAILED {step} not reached: {earlier} failed"),
        }
    }
}

/// Plays every step on `nodes`, tells `report` of each as it ends, and gives back whether all held.
///
/// After a step that failed the others are only reported. Leaves the nodes as they are then, perhaps
/// frozen: whoever started them ends them.
pub async fn play<N: Nodes>(
    nodes: &mut N,
    limits: Limits,
    mut report: impl FnMut(Step, &Outcome),
) -> bool {
    let mut scenario = steps::Scenario::new(nodes, limits);
    let mut failed: Option<Step> = None;
    for step in Step::ALL {
        let outcome = match failed {
            Some(earlier) => Outcome::NotReached(earlier),
            None => match scenario.play(step).await {
                Ok(took) => Outcome::Held(took),
                Err(reason) => Outcome::Failed(reason),
            },
        };
        report(step, &outcome);
        if !outcome.held() {
            failed = failed.or(Some(step));
        }
    }
    failed.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_contract_in_its_order() {
        let names: Vec<&str> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(
            names.join(" "),
            "elect put-1 put-2 get-3 kill re-elect first-write read-all freeze step-down rejoin"
        );
    }

    #[test]
    fn a_line_says_how_a_step_went_and_stays_one_line() {
        assert_eq!(Outcome::Held(Duration::from_micros(12_900)).line(Step::Put2), "ok put-2 12 ms");
        assert_eq!(
            Outcome::Failed("no\nleader".to_owned()).line(Step::ReElect),
            "FAILED re-elect no; leader"
        );
        assert_eq!(
            Outcome::NotReached(Step::Elect).line(Step::Put1),
            "FAILED put-1 not reached: elect failed"
        );
    }
}
