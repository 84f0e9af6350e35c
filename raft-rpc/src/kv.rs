//! The client service and its wire types: what a client may ask a node, and what it is told.
//!
//! Calls on one connection are batched by the client: [`Kv::execute`] carries many requests, each
//! with its own time limit, and answers them in the same order. The order of enum variants and of
//! fields is the wire format (see `PROTOCOL.md`); golden bytes in `tests/golden.rs` hold it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::WireError;

/// What a node does for clients.
#[tarpc::service]
pub trait Kv {
    /// Executes a batch; the answers are in the order of the requests. Requests of one batch run
    /// concurrently: order between them is only what revisions say. The batch's answer leaves when
    /// the last of its requests is answered, so clients keep reads and writes in batches apart.
    async fn execute(batch: Vec<TimedRequest>) -> Vec<Result<Response, WireError>>;
    /// What the node knows of itself and the cluster.
    async fn status() -> NodeStatus;
    /// Answers at once.
    async fn ping();
}

/// A request and how long its caller will still wait.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimedRequest {
    /// Remaining time in milliseconds; the server drops work past it.
    pub timeout_ms: u32,
    /// What is asked.
    pub request: Request,
}

/// What a client may ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Change something.
    Write(WriteRequest),
    /// Read one key.
    Get(GetRequest),
    /// Read, or count, the keys of a range.
    Range(RangeRequest),
}

/// A write, with the tag that makes a retry harmless.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WriteRequest {
    /// Which write of which session this is; `None` only for [`WriteOperation::RegisterSession`]
    /// and for callers that accept that a retry may apply twice.
    pub tag: Option<SessionTag>,
    /// What to change.
    pub operation: WriteOperation,
}

/// Names one write of one client session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SessionTag {
    /// The session, as given by [`WriteOperation::RegisterSession`].
    pub session: u64,
    /// The write's number within the session, from 1.
    pub sequence: u64,
    /// The client has the answers of all writes below this number; the server may forget them.
    pub lowest_unacknowledged: u64,
}

/// A change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum WriteOperation {
    /// Opens a session; answered with [`Response::Session`].
    RegisterSession,
    /// Stores a value.
    Put {
        /// The key, 1 to 4,096 bytes.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Store only if this holds.
        condition: Condition,
        /// Answer with what was there before.
        return_previous: bool,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
        /// Remove only if this holds.
        condition: Condition,
        /// Answer with what was there before.
        return_previous: bool,
    },
    /// Removes every key of a range, in one revision.
    DeleteRange {
        /// The range.
        range: KeyRange,
    },
}

/// What must hold for a conditional write; otherwise it is answered with [`Response::Refused`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing.
    Always,
    /// The key must not exist.
    Absent,
    /// The key must hold exactly these bytes.
    Value(Bytes),
    /// The key's `mod_revision` must be this.
    Revision(u64),
}

/// Keys from `start` up to, not including, `end`, in bytewise order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key; empty means from the beginning.
    pub start: Bytes,
    /// Past the last key; `None` means to the end.
    pub end: Option<Bytes>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began.
    Linearizable,
    /// Sees at least this revision.
    AtLeast(u64),
    /// Whatever this node has applied.
    Stale {
        /// Refuse if the node has not heard from a leader for longer than this, in milliseconds.
        max_age_ms: Option<u64>,
    },
}

/// Read one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetRequest {
    /// The key.
    pub key: Bytes,
    /// As of this revision; `None` for the newest.
    pub revision: Option<u64>,
    /// How fresh.
    pub consistency: Consistency,
}

/// What a range read returns of each key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Projection {
    /// Everything.
    KeyValues,
    /// Everything but the values, which are empty.
    KeysOnly,
    /// Nothing but the number of keys.
    Count,
}

/// Read a page of a range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// At most this many; a page also ends at the byte limit of a page.
    pub limit: Option<u64>,
    /// From the last key to the first.
    pub reverse: bool,
    /// What of each key.
    pub projection: Projection,
    /// As of this revision; `None` for the newest.
    pub revision: Option<u64>,
    /// How fresh.
    pub consistency: Consistency,
}

/// The answer to a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// A session is open.
    Session {
        /// Its id.
        id: u64,
    },
    /// The value is stored.
    Written {
        /// The revision of this write.
        revision: u64,
        /// What was there before, if asked for.
        previous: Option<KeyValue>,
    },
    /// Keys were removed, possibly none.
    Deleted {
        /// The revision of this write; if nothing was removed, the store's revision.
        revision: u64,
        /// How many keys.
        count: u64,
        /// What was there before, if asked for.
        previous: Option<KeyValue>,
    },
    /// The condition did not hold; nothing happened.
    Refused {
        /// The store's revision when it was evaluated.
        revision: u64,
        /// What the key holds.
        current: Option<KeyValue>,
    },
    /// One key, or its absence.
    Value {
        /// The store's revision the read was made at.
        revision: u64,
        /// What the key holds.
        found: Option<KeyValue>,
    },
    /// A page of a range.
    Page {
        /// The store's revision the page was read at; ask for the next page as of this one.
        revision: u64,
        /// The items, in the order asked for.
        items: Vec<KeyValue>,
        /// Whether more keys follow the last item.
        more: bool,
    },
    /// A number of keys.
    Count {
        /// The store's revision the count was made at.
        revision: u64,
        /// How many.
        count: u64,
    },
}

/// A key with its value and its history in numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The revision that created it.
    pub create_revision: u64,
    /// The revision that last changed it.
    pub mod_revision: u64,
    /// 1 at creation, one more at each change.
    pub version: u64,
    /// The lease it hangs on; 0 for none.
    pub lease: u64,
}

/// The role of a node, as status shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Follows, votes.
    Follower,
    /// Asks whether an election would succeed.
    PreCandidate,
    /// Runs in an election.
    Candidate,
    /// Leads.
    Leader,
    /// Follows without a vote.
    Learner,
    /// Follows without a vote until it has again what it lost.
    Quarantined,
    /// Has stopped after a failed write.
    Halted,
}

/// The state of a node's storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StorageState {
    /// Works.
    Ok,
    /// A table is damaged.
    Damaged,
    /// Set aside.
    Quarantined,
    /// No space.
    Full,
    /// The disk does not answer.
    Stalled,
}

/// What a node knows of itself and the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: u64,
    /// The cluster's id, 32 hexadecimal digits.
    pub cluster_id: String,
    /// The program's version.
    pub version: String,
    /// Its role.
    pub role: Role,
    /// Whether it is a voter.
    pub voter: bool,
    /// Its term.
    pub term: u64,
    /// The leader it knows of.
    pub leader: Option<u64>,
    /// The store's revision here.
    pub revision: u64,
    /// The last index of its log.
    pub last_index: u64,
    /// Its commit index.
    pub commit_index: u64,
    /// Its applied index.
    pub applied_index: u64,
    /// The hash over everything applied, 16 hexadecimal digits; equal on all nodes at equal indexes.
    pub state_hash: String,
    /// Its storage.
    pub storage: StorageState,
    /// What an operator should look at.
    pub alarms: Vec<String>,
    /// Elections this node began since it started.
    pub elections: u64,
    /// Changes of its role since it started.
    pub role_changes: u64,
    /// Changes of its connections to peers, either way, since it started.
    pub connection_changes: u64,
    /// Client requests it handed to the leader since it started.
    pub forwarded: u64,
    /// The members it knows of, itself included, by id.
    pub members: Vec<MemberStatus>,
    /// Its connections to its peers, by id.
    pub peers: Vec<PeerStatus>,
}

/// A member of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: u64,
    /// Where its peers reach it.
    pub peer_addr: String,
    /// Where clients reach it.
    pub client_addr: String,
    /// Whether it is a voter.
    pub voter: bool,
}

/// A node's connection to a peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer's id.
    pub id: u64,
    /// Whether the connection stands.
    pub connected: bool,
    /// How often that changed since the node started.
    pub changes: u64,
}
