//! Being told to stop: SIGTERM, SIGINT, and for children of `dev` the end of standard input.

use std::{
    io::{self, Read as _},
    thread,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// The signals that ask the process to stop.
#[derive(Debug)]
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// Listens from now on; a signal that comes before it is asked for is not lost.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them and gives its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// Completes when standard input has ended.
///
/// The reading thread cannot be interrupted; it ends with the process. It is a thread and not
/// tokio's standard input, whose blocked read would hold up the runtime's shutdown.
///
/// # Errors
/// If no thread can be started.
pub(super) fn stdin_closed() -> io::Result<oneshot::Receiver<()>> {
    let (closed, receiver) = oneshot::channel();
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut buffer = [0; 256];
        let mut stdin = io::stdin().lock();
        // What is written there means nothing; an error is an end as well.
        while matches!(stdin.read(&mut buffer), Ok(1..)) {}
        // Nobody waits any more if the node is stopping already.
        if closed.send(()).is_err() {
            tracing::debug!("standard input ended while the node was stopping");
        }
    })?;
    Ok(receiver)
}
