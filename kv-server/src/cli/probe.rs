//! Asking one node what it knows of itself, again and again, over one connection.
//!
//! `dev` follows its nodes by it, the scenario and the tests wait by it. Every wait in those places is a
//! question to the nodes with a deadline, never a guess of how long something takes.

use std::{fmt, sync::Arc, time::Duration};

use raft_rpc::{
    ConnectOptions, Connector, KvClient, NodeStatus, TcpConnector, connect_client, context_for,
};
use tokio::task::JoinHandle;

/// How often a condition is looked at by [`wait_until`]: the wait ends at most this late, and a
/// question costs a node about 50 µs.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long one question waits for its answer. A frozen node must not hold up the others.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Asks one node; connects when needed and reconnects after a failure.
pub struct Probe {
    address: String,
    connector: Arc<dyn Connector>,
    connection: Option<Connected>,
}

struct Connected {
    client: KvClient,
    dispatch: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.dispatch.abort();
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.connection.is_some();
        f.debug_struct("Probe")
            .field("address", &self.address)
            .field("connected", &connected)
            .finish_non_exhaustive()
    }
}

impl Probe {
    /// Asks the node whose clients connect to `address`.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), connector: Arc::new(TcpConnector), connection: None }
    }

    /// The address asked.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// Why there is no answer, for people: not connected, refused, or nothing within half a second.
    pub async fn status(&mut self) -> Result<NodeStatus, String> {
        if self.connection.as_ref().is_some_and(|connected| connected.dispatch.is_finished()) {
            self.connection = None;
        }
        let connected = match self.connection.take() {
            Some(connected) => connected,
            None => self.connect().await?,
        };
        let answer = connected.client.status(context_for(ANSWER_TIMEOUT));
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(status)) => {
                self.connection = Some(connected);
                Ok(status)
            }
            Ok(Err(error)) => Err(format!("{}: {error}", self.address)),
            // The connection is kept: a node that was frozen answers on it when it goes on.
            Err(_elapsed) => {
                self.connection = Some(connected);
                Err(format!("{}: no answer within {} ms", self.address, ANSWER_TIMEOUT.as_millis()))
            }
        }
    }

    async fn connect(&self) -> Result<Connected, String> {
        let options =
            ConnectOptions { connect_timeout: ANSWER_TIMEOUT, ..ConnectOptions::default() };
        let connection = connect_client(&*self.connector, &self.address, None, &options)
            .await
            .map_err(|error| error.to_string())?;
        let dispatch = connection.dispatch;
        let dispatch = tokio::spawn(async move {
            // How it ended is seen by whoever asks next.
            drop(dispatch.await);
        });
        Ok(Connected { client: connection.client, dispatch })
    }
}

/// Asks until `condition` gives an answer, and gives it back. `condition` says what it is missing.
///
/// # Errors
/// What was missing last, if `limit` has passed.
pub async fn wait_until<T>(
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut missing = String::from("nothing was asked yet");
    let waiting = async {
        loop {
            match condition().await {
                Ok(found) => return found,
                Err(reason) => missing = reason,
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout_at(deadline, waiting)
        .await
        .map_err(|_elapsed| format!("not within {} ms: {missing}", limit.as_millis()))
}
