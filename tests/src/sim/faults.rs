//! What goes wrong, and when: the faults of the plan, each with its end.
//!
//! Any number of nodes may be down, paused or cut off at a time: what was synced survives every crash, so
//! none of that exceeds what the protocol promises to survive. Only progress may stop, and the quiet phase
//! at the end of a run demands it back.
//!
//! Damage and wiped disks do take what was synced, so they have a budget: of a run's nodes a minority at
//! most, those that remain being a quorum with everything. A damaged node may stop, or not start, by name;
//! what it must not do is to serve or vote as if nothing were missing, which the checkers see. A node that
//! does not start for damage, or has lost its disk, stays away, and so does every damaged one from the
//! quiet phase on.

use lsm_store::vfs::{CrashPolicy, Fault, FaultKind as VfsFault, FaultWhen, MemVfs, OpSet};

use super::disk;
use super::node::Fate;
use super::plan::{FaultKind, PlannedFault};
use super::random::Random;
use super::world::{Event, World};

/// A clock jumps ahead by at most so much, in microseconds: longer than sessions live.
const CLOCK_JUMP_MAX: u64 = 7_200_000_000;

impl World {
    /// Faults begin.
    pub fn start_faults(&mut self) {
        self.faults_on = true;
        for (number, planned) in (0..).zip(self.plan.faults.clone()) {
            if !self.withheld.fault(number) {
                self.schedule(planned.at, Event::Fault { planned });
            }
        }
    }

    /// A node that is down starts again after a while.
    pub(super) fn start_later(&mut self, node: usize) {
        let delay = self.plan.fault_length.draw(&mut self.random);
        let boot = self.nodes[node].boot;
        self.schedule(delay, Event::Start { node, boot });
    }

    fn crash_and_restart(&mut self, node: usize, random: &mut Random) {
        if self.nodes[node].machine.is_none() {
            return;
        }
        if random.chance(150) {
            self.kill(node);
        } else {
            let policy = *random.pick(&CrashPolicy::ALL);
            self.crash(node, policy);
        }
        self.start_later(node);
    }

    fn pause_for_a_while(&mut self, node: usize, length: u64) {
        self.pause(node);
        self.schedule(length, Event::Resume { node });
    }

    /// Whether one more node may lose what it had synced.
    fn may_destroy(&self, node: usize) -> bool {
        let destroyed = self.nodes.iter().filter(|node| node.fate != Fate::Intact).count();
        self.nodes[node].fate != Fate::Intact || destroyed < (self.nodes.len() - 1) / 2
    }

    /// A fault of the plan happens.
    pub(super) fn fault(&mut self, planned: PlannedFault) {
        if !self.faults_on {
            return;
        }
        let PlannedFault { kind, seed, .. } = planned;
        let mut random = Random::new(seed);
        let nodes = self.nodes.len();
        let node = random.index(nodes);
        let length = self.plan.fault_length.draw(&mut random);
        let leader = self.leader();
        self.trace.line(self.now, || format!("fault: {kind:?} at {node} for {length}"));
        match kind {
            FaultKind::Crash => self.crash_and_restart(node, &mut random),
            FaultKind::CrashInWrite => {
                let calls = random.below(12);
                let disk = &self.nodes[node].disk;
                disk.crash_at(disk.mutating_calls() + calls);
            }
            FaultKind::CrashAll => {
                (0..nodes).for_each(|node| self.crash_and_restart(node, &mut random));
            }
            FaultKind::CrashLeader => {
                if let Some(leader) = leader {
                    self.crash_and_restart(leader, &mut random);
                }
            }
            FaultKind::Pause => self.pause_for_a_while(node, length),
            FaultKind::PauseLeader => {
                if let Some(leader) = leader {
                    self.pause_for_a_while(leader, length);
                }
            }
            FaultKind::Partition
            | FaultKind::IsolateLeader
            | FaultKind::CutOneWay
            | FaultKind::Deaf
            | FaultKind::BadNetwork
            | FaultKind::Clog => self.network_fault(kind, node, length, &mut random),
            FaultKind::SyncFails => {
                self.counts.failed_syncs += 1;
                let path_contains = String::new();
                let when = FaultWhen::Always;
                let ops = if random.chance(700) { OpSet::SYNCS } else { OpSet::WRITES };
                let kind = if random.chance(500) { VfsFault::Io } else { VfsFault::NoSpace };
                self.nodes[node].disk.add_fault(Fault { ops, when, kind, path_contains });
            }
            FaultKind::SlowDisk => {
                self.counts.slow_disks += 1;
                self.nodes[node].disk_slowness = random.between(5, 60);
                self.schedule(length, Event::HealDisk { node });
            }
            FaultKind::DiskStalls => self.stall_disk(node, 4 * length),
            FaultKind::LeaderDiskStalls => {
                if let Some(leader) = leader {
                    self.stall_disk(leader, 4 * length);
                }
            }
            FaultKind::ClockRate => {
                self.counts.clock_faults += 1;
                let rate = random.between(900, 1_100);
                let now = self.now;
                self.nodes[node].clock.set_rate(now, rate);
                // Its next deadline comes at another time now.
                self.wake_soon(node);
            }
            FaultKind::ClockJump => {
                let by = draw_jump(&mut random);
                self.jump_clock(node, by);
            }
            FaultKind::AllClocksJump => {
                let by = draw_jump(&mut random);
                (0..nodes).for_each(|node| self.jump_clock(node, by));
            }
            FaultKind::BitsFlip | FaultKind::MisdirectedWrite | FaultKind::Wipe => {
                self.destroy(kind, node, &mut random);
            }
        }
    }

    fn network_fault(&mut self, kind: FaultKind, node: usize, length: u64, random: &mut Random) {
        let nodes = self.nodes.len();
        let other = (node + 1 + random.index(nodes - 1)) % nodes;
        match kind {
            FaultKind::Partition => {
                // Somebody is on either side.
                let mut inside = |at| at == node || at != other && random.chance(500);
                let group: Vec<_> = (0..nodes).filter(|&at| inside(at)).collect();
                self.counts.partitions += 1;
                self.network.partition(&group);
            }
            FaultKind::IsolateLeader => {
                let Some(leader) = self.leader() else { return };
                self.counts.partitions += 1;
                self.network.partition(&[leader]);
            }
            FaultKind::CutOneWay => {
                self.counts.one_way_cuts += 1;
                self.network.set_cut(node, other, true);
            }
            FaultKind::Deaf => {
                self.counts.one_way_cuts += 1;
                let hears_nobody = random.chance(500);
                for other in (0..nodes).filter(|&other| other != node) {
                    let (from, to) = if hears_nobody { (other, node) } else { (node, other) };
                    self.network.set_cut(from, to, true);
                }
            }
            FaultKind::BadNetwork => {
                self.counts.bad_networks += 1;
                let everywhere = random.chance(500);
                let bad = self.plan.bad_network;
                for from in 0..nodes {
                    for to in 0..nodes {
                        if everywhere || from == node || to == node {
                            self.network.set_quality(from, to, bad);
                        }
                    }
                }
            }
            _ => {
                self.counts.clogs += 1;
                // It comes free by itself.
                let until = self.now + length;
                let both_ways = random.chance(500);
                self.network.clog(node, other, until);
                if both_ways {
                    self.network.clog(other, node, until);
                }
                return;
            }
        }
        self.schedule(length, Event::HealNetwork);
    }

    /// A disk finishes nothing for so long; what is under way is not hurried.
    fn stall_disk(&mut self, node: usize, micros: u64) {
        self.counts.stalls += 1;
        let until = self.now + micros;
        let stalled = &mut self.nodes[node].disk_stalled_until;
        *stalled = until.max(*stalled);
    }

    fn jump_clock(&mut self, node: usize, by: u64) {
        self.counts.clock_faults += 1;
        let now = self.now;
        self.nodes[node].clock.jump(now, by);
        self.wake_soon(node);
    }

    /// What was synced is changed or lost, if the budget admits it.
    fn destroy(&mut self, kind: FaultKind, node: usize, random: &mut Random) {
        if !self.may_destroy(node) || self.nodes[node].fate == Fate::Gone {
            return;
        }
        if kind == FaultKind::Wipe {
            self.trace.line(self.now, || format!("node {node} loses its disk"));
            self.stop(node);
            // An id whose disk was lost is never used again.
            self.nodes[node].disk = MemVfs::new(random.any());
            self.nodes[node].fate = Fate::Gone;
            self.counts.wipes += 1;
            return;
        }
        let disk = &self.nodes[node].disk;
        let place = match kind {
            FaultKind::BitsFlip => disk::flip_bits(disk, random),
            _ => disk::misdirect(disk, random),
        };
        let Some(place) = place else { return };
        self.trace.line(self.now, || format!("node {node} is damaged: {place}"));
        self.nodes[node].fate = Fate::Damaged;
        match kind {
            FaultKind::BitsFlip => self.counts.bit_flips += 1,
            _ => self.counts.misdirected_writes += 1,
        }
    }

    /// Everything is well again: links whole, disks and clocks as they should be, all nodes up but those
    /// that have lost what they had synced.
    pub fn heal(&mut self) {
        self.faults_on = false;
        self.trace.line(self.now, || "everything is well again".to_owned());
        let calm = super::plan::Plan::calm(self.nodes.len());
        self.plan.log_latency = calm.log_latency;
        self.plan.apply_latency = calm.apply_latency;
        self.plan.fetch_latency = calm.fetch_latency;
        self.plan.report_latency = calm.report_latency;
        self.plan.consensus_latency = calm.consensus_latency;
        self.network.heal();
        self.network.set_all(calm.network);
        for node in 0..self.nodes.len() {
            let now = self.now;
            self.nodes[node].disk_slowness = 1;
            self.nodes[node].disk_stalled_until = 0;
            self.nodes[node].clock.set_rate(now, 1000);
            let disk = &self.nodes[node].disk;
            // A sync that failed has lost what was unsynced: such a node cannot go on, and will see it.
            disk.clear_faults();
            disk.crash_at(u64::MAX);
            self.resume(node);
            if self.nodes[node].fate == Fate::Damaged {
                self.stop(node);
                self.nodes[node].fate = Fate::Gone;
            }
            self.wake_soon(node);
        }
        self.start_all();
    }
}

/// Mostly around the timeouts, sometimes longer than anything waits.
fn draw_jump(random: &mut Random) -> u64 {
    let most = *random.pick(&[50_000, 400_000, 1_000_000, 30_000_000, CLOCK_JUMP_MAX]);
    random.between(1, most)
}
