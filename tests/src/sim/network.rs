//! The simulated network: what happens to a message between two nodes.
//!
//! Every ordered pair of nodes has a link of its own, with its own quality, so that a cut can be one-way
//! and one slow path stands beside quick ones. A message is lost, repeated, late, or held by a clogged
//! link; on a link that keeps no order every message draws its own delay, so messages overtake each
//! other. A cut stops messages that are sent while it lasts; what is under way arrives, perhaps long after.

use super::random::Random;

/// How delays are spread between the shortest and the longest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// Evenly.
    Even,
    /// Mostly near the shortest.
    Steady,
    /// Most are short, a few are near the longest.
    LongTail,
}

/// How a link behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkQuality {
    /// Least delay, in microseconds.
    pub delay_min: u64,
    /// Most delay of an ordinary message, in microseconds.
    pub delay_max: u64,
    /// How delays are spread between the two.
    pub spread: Spread,
    /// Whether messages arrive in the order in which they were sent, as over one connection; those that
    /// are very late or repeated apart.
    pub ordered: bool,
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
    pub const CALM: Self = Self {
        delay_min: 50,
        delay_max: 400,
        spread: Spread::Even,
        ordered: false,
        lost: 0,
        doubled: 0,
        late: 0,
        late_max: 1,
    };

    fn delay(&self, random: &mut Random) -> u64 {
        if random.chance(self.late) {
            return random.between(self.delay_min, self.late_max.max(self.delay_min));
        }
        let span = self.delay_max.saturating_sub(self.delay_min);
        let part = random.below(1_001);
        let part = match self.spread {
            Spread::Even => part,
            Spread::Steady => part / 10,
            // The cube of a fraction.
            Spread::LongTail => part * part * part / 1_000_000,
        };
        self.delay_min + span * part / 1_000
    }
}

/// One direction between two nodes.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Restored when the network heals.
    usual: LinkQuality,
    quality: LinkQuality,
    cut: bool,
    /// Nothing arrives before.
    clogged_until: u64,
    /// When the last message sent in order arrives.
    last_arrival: u64,
}

/// The links between all nodes.
#[derive(Clone, Debug)]
pub struct Network {
    nodes: usize,
    /// By sender, then receiver.
    links: Vec<Link>,
    /// The way between clients and nodes.
    clients: LinkQuality,
    /// Messages handed to the network.
    pub sent: u64,
    /// Messages it lost.
    pub lost: u64,
    /// Messages it delivered twice.
    pub doubled: u64,
    /// Messages that arrive before one that was sent earlier over the same link.
    pub overtakings: u64,
}

impl Network {
    /// All links whole and alike.
    #[must_use]
    pub fn new(nodes: usize, quality: LinkQuality) -> Self {
        let link = Link { usual: quality, quality, cut: false, clogged_until: 0, last_arrival: 0 };
        let links = vec![link; nodes * nodes];
        Self { nodes, links, clients: quality, sent: 0, lost: 0, doubled: 0, overtakings: 0 }
    }

    /// How a link behaves from now on, and after the network has healed.
    pub fn set_usual(&mut self, from: usize, to: usize, quality: LinkQuality) {
        let link = &mut self.links[from * self.nodes + to];
        link.usual = quality;
        link.quality = quality;
    }

    /// How a link behaves until the network heals.
    pub fn set_quality(&mut self, from: usize, to: usize, quality: LinkQuality) {
        self.links[from * self.nodes + to].quality = quality;
    }

    /// How all links behave from now on, and the way to the clients.
    pub fn set_all(&mut self, quality: LinkQuality) {
        self.clients = quality;
        for link in &mut self.links {
            link.usual = quality;
            link.quality = quality;
        }
    }

    /// Cuts, or restores, the link from one node to another. The way back is another link.
    pub fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        self.links[from * self.nodes + to].cut = cut;
    }

    /// A link keeps what it is given until a time, then delivers it all.
    pub fn clog(&mut self, from: usize, to: usize, until: u64) {
        let link = &mut self.links[from * self.nodes + to];
        link.clogged_until = link.clogged_until.max(until);
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

    /// Every link is whole and of its usual quality; what is clogged comes free.
    pub fn heal(&mut self) {
        for link in &mut self.links {
            link.cut = false;
            link.clogged_until = 0;
            link.quality = link.usual;
        }
    }

    /// Whether messages from one node do not reach another.
    #[must_use]
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.links[from * self.nodes + to].cut
    }

    /// The delays of a message's copies: none if it is lost.
    pub fn carry(&mut self, now: u64, from: usize, to: usize, random: &mut Random) -> Vec<u64> {
        self.sent += 1;
        let link = &mut self.links[from * self.nodes + to];
        let quality = link.quality;
        if link.cut || random.chance(quality.lost) {
            self.lost += 1;
            return Vec::new();
        }
        let mut delay = quality.delay(random);
        let is_late = delay > quality.delay_max;
        if link.clogged_until > now {
            delay += link.clogged_until - now;
        }
        if quality.ordered && !is_late {
            delay = delay.max(link.last_arrival.saturating_sub(now));
        }
        let arrival = now + delay;
        if arrival < link.last_arrival {
            self.overtakings += 1;
        }
        if !is_late {
            link.last_arrival = link.last_arrival.max(arrival);
        }
        let mut delays = vec![delay];
        if random.chance(quality.doubled) {
            self.doubled += 1;
            delays.push(delay + quality.delay(random));
        }
        delays
    }

    /// The delay of a message between a client and a node.
    pub fn client_delay(&self, random: &mut Random) -> u64 {
        self.clients.delay(random)
    }

    /// Whether a message between a client and a node is lost.
    pub fn loses_for_client(&self, random: &mut Random) -> bool {
        random.chance(self.clients.lost)
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
        assert!(network.carry(0, 0, 1, &mut random).is_empty(), "0 to 1 is cut");
        assert_eq!(network.carry(0, 1, 0, &mut random).len(), 1, "1 to 0 is whole");
        network.heal();
        assert_eq!(network.carry(0, 0, 1, &mut random).len(), 1, "healed");
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
        let delays: Vec<u64> =
            (0..10_000).flat_map(|_| network.carry(0, 0, 1, &mut random)).collect();
        assert!((900..1_100).contains(&network.lost), "{} of 10,000 lost", network.lost);
        assert!((350..550).contains(&network.doubled), "{} of 10,000 doubled", network.doubled);
        let late = delays.iter().filter(|&&delay| delay > 2 * quality.delay_max).count();
        assert!((120..280).contains(&late), "{late} of {} late", delays.len());
    }

    #[test]
    fn a_link_that_keeps_order_is_never_overtaken_and_another_is() {
        let mut random = Random::new(1);
        for ordered in [true, false] {
            let quality = LinkQuality { ordered, ..LinkQuality::CALM };
            let mut network = Network::new(2, quality);
            let mut last = 0;
            let mut overtaken = 0;
            for now in (0..100_000).step_by(10) {
                let arrival = now + network.carry(now, 0, 1, &mut random)[0];
                overtaken += u64::from(arrival < last);
                last = last.max(arrival);
            }
            assert_eq!(overtaken > 0, !ordered, "{overtaken} were overtaken");
            assert_eq!(overtaken, network.overtakings, "and counted");
        }
    }

    #[test]
    fn a_clogged_link_delivers_nothing_before_it_is_free_and_then_everything() {
        let mut random = Random::new(1);
        let mut network = Network::new(2, LinkQuality::CALM);
        network.clog(0, 1, 5_000);
        for now in [0, 100, 4_999] {
            let arrival = now + network.carry(now, 0, 1, &mut random)[0];
            assert!((5_000..=5_400).contains(&arrival), "sent at {now}, arrives at {arrival}");
        }
        assert!(network.carry(0, 1, 0, &mut random)[0] <= 400, "the way back is free");
        assert!(network.carry(6_000, 0, 1, &mut random)[0] <= 400, "free again");
    }

    #[test]
    fn delays_are_spread_as_said() {
        let mut random = Random::new(1);
        let mut mean = |spread| {
            let quality =
                LinkQuality { delay_min: 0, delay_max: 1_000, spread, ..LinkQuality::CALM };
            (0..10_000).map(|_| quality.delay(&mut random)).sum::<u64>() / 10_000
        };
        assert!((480..520).contains(&mean(Spread::Even)), "half of the longest");
        assert!((230..270).contains(&mean(Spread::LongTail)), "a quarter of the longest");
        assert!((40..60).contains(&mean(Spread::Steady)), "a twentieth of the longest");
    }
}
