//! What goes wrong, and when: faults drawn one after the other, each with its end.
//!
//! Any number of nodes may be down, paused or cut off at a time: what was synced survives every crash, so
//! nothing here exceeds what the protocol promises to survive. Only progress may stop, and the quiet phase
//! at the end of a run demands it back.

use lsm_store::vfs::{CrashPolicy, Fault, FaultKind as VfsFault, FaultWhen, OpSet};

use super::plan::FaultKind;
use super::world::{Event, World};

impl World {
    /// Faults begin.
    pub fn start_faults(&mut self) {
        self.faults_on = true;
        if !self.plan.faults.is_empty() {
            let delay = self.plan.fault_interval.draw(&mut self.random);
            self.schedule(delay, Event::Fault);
        }
    }

    pub(super) fn next_fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let kind = *self.random.pick(&self.plan.faults);
        let node = self.random.index(self.nodes.len());
        self.fault(kind, node);
        let delay = self.plan.fault_interval.draw(&mut self.random);
        self.schedule(delay, Event::Fault);
    }

    /// A node that is down starts again after a while.
    pub(super) fn start_later(&mut self, node: usize) {
        let delay = self.plan.fault_length.draw(&mut self.random);
        let boot = self.nodes[node].boot;
        self.schedule(delay, Event::Start { node, boot });
    }

    fn crash_and_restart(&mut self, node: usize) {
        if self.nodes[node].machine.is_none() {
            return;
        }
        if self.random.chance(200) {
            self.kill(node);
        } else {
            let policy = *self.random.pick(&CrashPolicy::ALL);
            self.crash(node, policy);
        }
        self.start_later(node);
    }

    fn pause_for_a_while(&mut self, node: usize) {
        self.pause(node);
        let delay = self.plan.fault_length.draw(&mut self.random);
        self.schedule(delay, Event::Resume { node });
    }

    fn heal_network_later(&mut self) {
        self.counts.cuts += 1;
        let delay = self.plan.fault_length.draw(&mut self.random);
        self.schedule(delay, Event::HealNetwork);
    }

    fn fault(&mut self, kind: FaultKind, node: usize) {
        self.trace.line(self.now, || format!("fault: {kind:?} at {node}"));
        let leader = self.leader();
        let nodes = self.nodes.len();
        match kind {
            FaultKind::Crash => self.crash_and_restart(node),
            FaultKind::CrashInWrite => {
                let calls = self.random.below(12);
                let disk = &self.nodes[node].disk;
                disk.crash_at(disk.mutating_calls() + calls);
            }
            FaultKind::CrashAll => (0..nodes).for_each(|node| self.crash_and_restart(node)),
            FaultKind::CrashLeader => {
                if let Some(leader) = leader {
                    self.crash_and_restart(leader);
                }
            }
            FaultKind::Pause => self.pause_for_a_while(node),
            FaultKind::PauseLeader => {
                if let Some(leader) = leader {
                    self.pause_for_a_while(leader);
                }
            }
            FaultKind::Partition => {
                let group: Vec<_> = (0..nodes).filter(|_| self.random.chance(500)).collect();
                self.network.partition(&group);
                self.heal_network_later();
            }
            FaultKind::IsolateLeader => {
                if let Some(leader) = leader {
                    self.network.partition(&[leader]);
                    self.heal_network_later();
                }
            }
            FaultKind::CutOneWay => {
                let to = (node + 1 + self.random.index(nodes - 1)) % nodes;
                self.network.set_cut(node, to, true);
                self.heal_network_later();
            }
            FaultKind::Deaf => {
                let hears_nobody = self.random.chance(500);
                for other in (0..nodes).filter(|&other| other != node) {
                    let (from, to) = if hears_nobody { (other, node) } else { (node, other) };
                    self.network.set_cut(from, to, true);
                }
                self.heal_network_later();
            }
            FaultKind::BadNetwork => {
                self.network.set_quality(self.plan.bad_network);
                self.heal_network_later();
            }
            FaultKind::SyncFails => {
                self.counts.failed_syncs += 1;
                let path_contains = String::new();
                let when = FaultWhen::Always;
                let ops = if self.random.chance(700) { OpSet::SYNCS } else { OpSet::WRITES };
                let kind = if self.random.chance(500) { VfsFault::Io } else { VfsFault::NoSpace };
                let fault = Fault { ops, when, kind, path_contains };
                self.nodes[node].disk.add_fault(fault);
            }
            FaultKind::SlowDisk => {
                self.counts.other_faults += 1;
                self.nodes[node].disk_slowness = self.random.between(5, 60);
                let delay = self.plan.fault_length.draw(&mut self.random);
                self.schedule(delay, Event::HealDisk { node });
            }
            FaultKind::ClockRate => {
                self.counts.other_faults += 1;
                let rate = self.random.between(900, 1_100);
                let now = self.now;
                self.nodes[node].clock.set_rate(now, rate);
                // Its next deadline comes at another time now.
                self.wake_soon(node);
            }
        }
    }

    /// Everything is well again: links whole, disks and clocks as they should be, all nodes up.
    pub fn heal(&mut self) {
        self.faults_on = false;
        self.trace.line(self.now, || "everything is well again".to_owned());
        let calm = super::plan::Plan::calm(self.nodes.len());
        self.plan.network = calm.network;
        self.plan.log_latency = calm.log_latency;
        self.plan.apply_latency = calm.apply_latency;
        self.plan.fetch_latency = calm.fetch_latency;
        self.plan.report_latency = calm.report_latency;
        self.plan.consensus_latency = calm.consensus_latency;
        self.network.heal();
        self.network.set_quality(calm.network);
        for node in 0..self.nodes.len() {
            let now = self.now;
            self.nodes[node].disk_slowness = 1;
            self.nodes[node].clock.set_rate(now, 1000);
            let disk = &self.nodes[node].disk;
            // A sync that failed has lost what was unsynced: such a node cannot go on, and will see it.
            disk.clear_faults();
            disk.crash_at(u64::MAX);
            self.resume(node);
            self.wake_soon(node);
        }
        self.start_all();
    }
}
