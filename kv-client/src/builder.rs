//! How a client is configured.

use std::sync::Arc;
use std::time::Duration;

use raft_rpc::{Connector, TcpConnector};

use crate::client::{Client, Settings};
use crate::consistency::Consistency;
use crate::directory::{Directory, DirectoryOptions};
use crate::error::{Error, Result};

/// Configures a [`Client`]. Made by [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before connect"]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    timeout: Duration,
    attempt_timeout: Option<Duration>,
    consistency: Consistency,
    connections: usize,
    discover: bool,
    spread_reads: bool,
    connector: Arc<dyn Connector>,
}

/// How long a call may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// More connections to one node would only make the batches smaller.
const CONNECTIONS_MAX: usize = 64;

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        Self {
            endpoints: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            attempt_timeout: None,
            consistency: Consistency::Linearizable,
            connections: 1,
            discover: false,
            spread_reads: false,
            connector: Arc::new(TcpConnector),
        }
    }

    /// The client addresses of the nodes, as `host:port`; repeated calls add to them. With exactly
    /// one, every request goes to that node, which hands on what it can't answer itself.
    pub fn endpoints<I>(mut self, endpoints: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        for endpoint in endpoints {
            let endpoint = endpoint.into();
            if !self.endpoints.contains(&endpoint) {
                self.endpoints.push(endpoint);
            }
        }
        self
    }

    /// How long a call may take, over all its attempts, unless the call says otherwise. The
    /// default is [`DEFAULT_TIMEOUT`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long to wait for one node's answer before another is asked, within a call's timeout. A
    /// write keeps its tag, so that it still takes effect once. The default is a third of the
    /// call's timeout, 1 s at least, and no limit with one endpoint.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// How fresh reads are unless they say otherwise. The default is
    /// [`Consistency::Linearizable`].
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// How many connections to keep to each node that is used, 1 to 64. One carries far more than
    /// one core of this process can produce; the default is 1.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.clamp(1, CONNECTIONS_MAX);
        self
    }

    /// Whether to use also those members of the cluster that were not given as endpoints. The
    /// default is no: addresses that nodes know one another by may not be reachable from here.
    pub fn discover(mut self, discover: bool) -> Self {
        self.discover = discover;
        self
    }

    /// Whether to send reads to all endpoints in turns instead of to the leader. A follower's
    /// linearizable read costs it a question to the leader, but leaves the reading to itself.
    pub fn spread_reads(mut self, spread: bool) -> Self {
        self.spread_reads = spread;
        self
    }

    /// What connects to an address; TCP unless set.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = connector;
        self
    }

    /// Makes a client and waits until one of the endpoints answers.
    ///
    /// # Errors
    /// No endpoint was given or one is malformed ([`ErrorKind::BadInput`]), or none answered
    /// within the timeout ([`ErrorKind::Unavailable`]).
    ///
    /// [`ErrorKind::BadInput`]: crate::ErrorKind::BadInput
    /// [`ErrorKind::Unavailable`]: crate::ErrorKind::Unavailable
    pub async fn connect(self) -> Result<Client> {
        let client = self.connect_lazily()?;
        client.wait_for_any_endpoint().await?;
        Ok(client)
    }

    /// Makes a client that connects when first used. Must be called within a tokio runtime, which
    /// then runs the client's connections.
    ///
    /// # Errors
    /// No endpoint was given or one is malformed ([`ErrorKind::BadInput`]).
    ///
    /// [`ErrorKind::BadInput`]: crate::ErrorKind::BadInput
    pub fn connect_lazily(self) -> Result<Client> {
        if self.endpoints.is_empty() {
            return Err(Error::bad_input(
                "no endpoint was given",
                "name at least one node's client address, for example 127.0.0.1:3331",
            ));
        }
        for endpoint in &self.endpoints {
            let well_formed = endpoint.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(char::is_whitespace)
                    && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
            if !well_formed {
                return Err(Error::bad_input(
                    format!("endpoint {endpoint:?} is not HOST:PORT"),
                    "for example 127.0.0.1:3331",
                ));
            }
        }
        let options = DirectoryOptions {
            connector: self.connector,
            connections_per_endpoint: self.connections,
            discover: self.discover,
            spread_reads: self.spread_reads,
        };
        let directory = Directory::new(self.endpoints, options);
        Ok(Client::new(
            directory,
            Settings {
                timeout: self.timeout,
                attempt_timeout: self.attempt_timeout,
                consistency: self.consistency,
            },
        ))
    }
}
