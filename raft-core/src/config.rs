//! The settings of one node: timeouts and limits, checked together once at the start.
//!
//! Every queue and buffer of the core has its limit here. Nothing in this file changes while a node runs.

use core::time::Duration;

use crate::Compaction;

/// Timeouts and limits. The defaults suit a local network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// How often a leader speaks to every peer, and a pre-candidate repeats its question. 50 ms.
    pub heartbeat: Duration,
    /// The least time without a word of the leader before an election; also how long a leader
    /// leads without hearing from a quorum, and how long a vote is refused after such a word.
    /// At least three heartbeats. 300 ms.
    pub election_min: Duration,
    /// The random part added to `election_min`. At least one heartbeat. 300 ms.
    pub election_jitter: Duration,
    /// Whether a follower takes [`Input::PeerDisconnected`](crate::Input::PeerDisconnected) as a hint
    /// that its leader is gone. To be off wherever a promise not to vote outlives the connection. On.
    pub fast_failover: bool,
    /// When the oldest write is unfinished for so long, a leader falls silent, so that it loses its
    /// place within two election timeouts. 1 s.
    pub persist_stall: Duration,
    /// How long a follower that misses nothing but a higher commit index waits for the next entries
    /// to bring it, before it is told in a message of its own. A caller that waits for each write
    /// before the next then costs half the messages. The messages that confirm a read carry the commit
    /// index too, so a reader does not wait for it. 0.
    pub commit_delay: Duration,
    /// Limit on the encoded entries of one append message; one entry always fits. 1 MiB.
    pub max_append_bytes: usize,
    /// Limit on unanswered append messages to one peer. 64.
    pub max_inflight_messages: usize,
    /// Limit on the bytes in unanswered append messages to one peer; one message always fits. 8 MiB.
    pub max_inflight_bytes: usize,
    /// Limit on the encoded entries above the applied index; beyond it proposals are refused.
    /// When there are none, one proposal of any size is taken. 64 MiB.
    pub max_unapplied_bytes: usize,
    /// Limit on the encoded entries of one [`Effect::Apply`](crate::Effect::Apply); one entry
    /// always fits. At most four such batches are unanswered at a time. 4 MiB.
    pub max_apply_bytes: usize,
    /// Limit on reads waiting for their index. 16,384.
    pub max_waiting_reads: usize,
    /// Limit on entries kept in memory; older ones are loaded by
    /// [`Effect::FetchLog`](crate::Effect::FetchLog). Entries that are not yet durable stay beyond it. 32 MiB.
    pub max_tail_bytes: usize,
    /// Whether a leader tells a follower that has lost what it had acknowledged, and whether such a word is
    /// obeyed. Without it a leader goes on believing what was acknowledged, so that a node that started in
    /// quarantine gets what it lacks from a later leader only. The driver has to know [`Effect::Quarantine`](crate::Effect::Quarantine) then, which is never
    /// emitted without, unless the node starts in quarantine. Off.
    pub quarantine: bool,
    /// How the log is cut below what the state machine keeps over a crash; `None` keeps all of it. With
    /// it the driver has to know snapshots, since a peer may need what is gone: no
    /// [`FetchSnapshot`](crate::Effect::FetchSnapshot), no [`InstallSnapshot`](crate::Effect::InstallSnapshot)
    /// and no [`CompactLog`](crate::Effect::CompactLog) is ever emitted without. `None`.
    pub compaction: Option<Compaction>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(300),
            election_jitter: Duration::from_millis(300),
            fast_failover: true,
            persist_stall: Duration::from_secs(1),
            commit_delay: Duration::ZERO,
            max_append_bytes: 1 << 20,
            max_inflight_messages: 64,
            max_inflight_bytes: 8 << 20,
            max_unapplied_bytes: 64 << 20,
            max_apply_bytes: 4 << 20,
            max_waiting_reads: 16 << 10,
            max_tail_bytes: 32 << 20,
            quarantine: false,
            compaction: None,
        }
    }
}

/// Settings that do not work together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The heartbeat is shorter than a millisecond.
    #[error("heartbeat is {heartbeat:?}: it must be at least 1 ms")]
    HeartbeatTooShort {
        /// The setting.
        heartbeat: Duration,
    },
    /// A follower could miss its leader because of one late heartbeat.
    #[error(
        "election_min is {election_min:?}: it must be at least three heartbeats ({heartbeat:?} each)"
    )]
    ElectionTooShort {
        /// The setting.
        election_min: Duration,
        /// The heartbeat.
        heartbeat: Duration,
    },
    /// Too little chance for two candidates to part.
    #[error(
        "election_jitter is {election_jitter:?}: it must be at least one heartbeat ({heartbeat:?})"
    )]
    JitterTooShort {
        /// The setting.
        election_jitter: Duration,
        /// The heartbeat.
        heartbeat: Duration,
    },
    /// A timeout is longer than a day.
    #[error("{name} is {value:?}: it must be at most a day")]
    TooLong {
        /// Which setting.
        name: &'static str,
        /// Its value.
        value: Duration,
    },
    /// A limit is zero.
    #[error("{name} is 0: it must be at least 1")]
    ZeroLimit {
        /// Which setting.
        name: &'static str,
    },
}

/// No timeout may be longer: sums of a few of them and any clock then never overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    /// Checks that the settings work together.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { heartbeat, election_min, election_jitter, persist_stall, .. } = *self;
        if heartbeat < Duration::from_millis(1) {
            return Err(ConfigError::HeartbeatTooShort { heartbeat });
        }
        for (name, value) in [
            ("heartbeat", heartbeat),
            ("election_min", election_min),
            ("election_jitter", election_jitter),
            ("persist_stall", persist_stall),
            ("commit_delay", self.commit_delay),
        ] {
            if value > LONGEST {
                return Err(ConfigError::TooLong { name, value });
            }
        }
        if election_min < heartbeat * 3 {
            return Err(ConfigError::ElectionTooShort { election_min, heartbeat });
        }
        if election_jitter < heartbeat {
            return Err(ConfigError::JitterTooShort { election_jitter, heartbeat });
        }
        for (name, value) in [
            ("persist_stall", usize::from(!persist_stall.is_zero())),
            ("max_append_bytes", self.max_append_bytes),
            ("max_inflight_messages", self.max_inflight_messages),
            ("max_inflight_bytes", self.max_inflight_bytes),
            ("max_unapplied_bytes", self.max_unapplied_bytes),
            ("max_apply_bytes", self.max_apply_bytes),
            ("max_waiting_reads", self.max_waiting_reads),
            ("max_tail_bytes", self.max_tail_bytes),
        ] {
            if value == 0 {
                return Err(ConfigError::ZeroLimit { name });
            }
        }
        Ok(())
    }
}
