//! One process under test: started with its output in a file, signalled, waited for with a deadline,
//! and never left behind.
//!
//! A process ends with its handle (dropped also when a test panics). If the whole test program is
//! killed, a node ends by itself, since its standard input does.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Any wait for a process; reached only when something is broken.
const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// The programs under test, built together with the tests. Made by [`programs!`](crate::programs!).
#[derive(Clone, Debug)]
pub struct Programs {
    /// `kv-server`.
    pub node: PathBuf,
    /// `kvctl`.
    pub kvctl: PathBuf,
}

/// The [`Programs`] of the test that is being compiled.
#[macro_export]
macro_rules! programs {
    () => {
        $crate::process::Programs {
            node: env!("CARGO_BIN_EXE_test-node").into(),
            kvctl: env!("CARGO_BIN_EXE_test-kvctl").into(),
        }
    };
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Its standard input; open as long as it may run.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts `program`, its standard error appended to `log` and its standard output to `stdout`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(program: &Path, arguments: &[String], log: &Path, stdout: Stdio) -> Self {
        let file = File::options().append(true).create(true).open(log).unwrap();
        let mut child = Command::new(program)
            .args(arguments)
            // Settings of whoever runs the tests are not settings of the nodes under test.
            .env_clear()
            .envs(
                std::env::vars_os()
                    .filter(|(name, _)| name.to_str().is_some_and(|name| !name.starts_with("KV"))),
            )
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(file)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        Self { child, log: log.to_owned(), _stdin: stdin }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if it is piped and was not taken before.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// What it has written to standard error until now.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGSTOP; returns when every thread stands still.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    #[must_use]
    pub fn wait(mut self) -> ExitStatus {
        wait_for("the process to end", || self.child.try_wait().unwrap())
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a signal to a process that is not our child.
///
/// # Panics
/// If there is no such process.
pub fn signal_process(id: u32, signal: Signal) {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Runs a program to its end.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env_remove("KVCTL_ENDPOINTS")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Looks at `condition` until it gives something.
///
/// # Panics
/// If that takes longer than any healthy program would.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s for {what}", WAIT_LIMIT.as_secs());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Where a file of the test data of this package is.
#[must_use]
pub fn test_data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}
