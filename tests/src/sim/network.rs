//! The simulated network: what happens to a message between two nodes.
//!
//! Every ordered pair of nodes has a link of its own, so that a cut can be one-way. A message is lost,
//! repeated, or late; since every message draws its own delay, messages overtake each other. A cut stops
//! messages that are sent while it lasts; what is under way arrives, perhaps long after.

use super::random::Random;

/// How links behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkQuality {
    /// Least delay, in microseconds.
    pub delay_min: u64,
    /// Most delay of an ordinary message, in microseconds.
    pub delay_max: u64,
    /// Messages lost, per thousand.
    pub lost: u64,
    /// Messages delivered twice, per thousand.
    pub doubled: u64,
    /// Messages that are very late, per thousand.
    pub late: u64,
    /// How late at most, in microseconds.
    pub late_max: u64,
}

impl LinkQuality {
    /// A local network on a good day.
    pub const CALM: Self =
        Self { delay_min: 50, delay_max: 400, lost: 0, doubled: 0, late: 0, late_max: 1 };
}

/// The links between all nodes.
#[derive(Clone, Debug)]
pub struct Network {
    nodes: usize,
    quality: LinkQuality,
    /// By sender, then receiver.
    cut: Vec<bool>,
    /// Messages handed to the network.
    pub sent: u64,
    /// Messages it lost.
    pub lost: u64,
    /// Messages it delivered twice.
    pub doubled: u64,
}

impl Network {
    /// All links whole.
    #[must_use]
    pub fn new(nodes: usize, quality: LinkQuality) -> Self {
        Self { nodes, quality, cut: vec![false; nodes * nodes], sent: 0, lost: 0, doubled: 0 }
    }

    /// How links behave from now on.
    pub const fn set_quality(&mut self, quality: LinkQuality) {
        self.quality = quality;
    }

    /// Cuts, or restores, the link from one node to another. The way back is another link.
    pub fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        self.cut[from * self.nodes + to] = cut;
    }

    /// Cuts every link between `group` and the others, both ways.
    pub fn partition(&mut self, group: &[usize]) {
        for from in 0..self.nodes {
            for to in 0..self.nodes {
                if group.contains(&from) != group.contains(&to) {
                    self.set_cut(from, to, true);
                }
            }
        }
    }

    /// Restores every link.
    pub fn heal(&mut self) {
        self.cut.fill(false);
    }

    /// Whether messages from one node reach another.
    #[must_use]
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from * self.nodes + to]
    }

    /// The delays of a message's copies: none if it is lost.
    pub fn carry(&mut self, from: usize, to: usize, random: &mut Random) -> Vec<u64> {
        self.sent += 1;
        if self.is_cut(from, to) || random.chance(self.quality.lost) {
            self.lost += 1;
            return Vec::new();
        }
        let mut delays = vec![self.delay(random)];
        if random.chance(self.quality.doubled) {
            self.doubled += 1;
            delays.push(self.delay(random));
        }
        delays
    }

    /// The delay of a message that is neither lost nor repeated: for clients, whose connections keep
    /// order or break.
    pub fn delay(&self, random: &mut Random) -> u64 {
        if random.chance(self.quality.late) {
            return random.between(self.quality.delay_min, self.quality.late_max);
        }
        random.between(self.quality.delay_min, self.quality.delay_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_one_way_and_heals() {
        let mut random = Random::new(1);
        let mut network = Network::new(3, LinkQuality::CALM);
        network.set_cut(0, 1, true);
        assert!(network.carry(0, 1, &mut random).is_empty(), "0 to 1 is cut");
        assert_eq!(network.carry(1, 0, &mut random).len(), 1, "1 to 0 is whole");
        network.heal();
        assert_eq!(network.carry(0, 1, &mut random).len(), 1, "healed");
    }

    #[test]
    fn a_partition_separates_the_group_from_the_others_only() {
        let mut network = Network::new(4, LinkQuality::CALM);
        network.partition(&[0, 1]);
        for (from, to, cut) in [(0, 1, false), (2, 3, false), (0, 2, true), (3, 1, true)] {
            assert_eq!(network.is_cut(from, to), cut, "from {from} to {to}");
        }
    }

    #[test]
    fn messages_are_lost_doubled_and_late_as_often_as_said() {
        let mut random = Random::new(1);
        let quality = LinkQuality { lost: 100, doubled: 50, late: 20, ..LinkQuality::CALM };
        let late_max = 1_000_000;
        let mut network = Network::new(2, LinkQuality { late_max, ..quality });
        let delays: Vec<u64> = (0..10_000).flat_map(|_| network.carry(0, 1, &mut random)).collect();
        assert!((900..1_100).contains(&network.lost), "{} of 10,000 lost", network.lost);
        assert!((350..550).contains(&network.doubled), "{} of 10,000 doubled", network.doubled);
        let late = delays.iter().filter(|&&delay| delay > quality.delay_max).count();
        assert!((120..260).contains(&late), "{late} of {} late", delays.len());
    }
}
