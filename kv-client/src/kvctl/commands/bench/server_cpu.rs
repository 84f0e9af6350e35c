//! What the servers spend, if they run on this machine: the processor time of the processes that
//! listen on the members' client ports, from `/proc`.
//!
//! Where that is not to be had (another machine, another system, another user's processes) the
//! answer is "unknown", never a guess of a part of the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

/// Microseconds in a tick of `/proc/PID/stat`: Linux reports processor time to programs in
/// hundredths of a second on every platform.
const TICK_US: u64 = 10_000;
/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// The processes of all members.
#[derive(Debug)]
pub(super) struct Servers {
    processes: BTreeSet<u32>,
}

impl Servers {
    /// The processes behind these client addresses; `None` unless all are found on this machine.
    pub(super) fn find<'a>(addresses: impl Iterator<Item = &'a str>) -> Option<Self> {
        let ports = addresses.map(local_port).collect::<Option<BTreeSet<u16>>>()?;
        let sockets = listening_sockets(&ports);
        if ports.is_empty() || sockets.values().copied().collect::<BTreeSet<u16>>() != ports {
            return None;
        }
        let mut processes = BTreeSet::new();
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // Processes of other users can't be looked into; a server among them stays unfound.
            let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
            for descriptor in descriptors.flatten() {
                let Ok(target) = fs::read_link(descriptor.path()) else { continue };
                if let Some(port) = target.to_str().and_then(|target| sockets.get(target)) {
                    processes.insert(process);
                    found.insert(*port);
                }
            }
        }
        (found == ports).then_some(Self { processes })
    }

    /// The processor time they have used so far, in microseconds; `None` if one of them is gone.
    pub(super) fn used_us(&self) -> Option<u64> {
        self.processes
            .iter()
            .map(|process| used_ticks(*process))
            .sum::<Option<u64>>()
            .map(|ticks| ticks * TICK_US)
    }
}

fn local_port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    let is_local = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|host| host.is_loopback());
    if is_local { port.parse().ok() } else { None }
}

/// The listening sockets of these ports, as they appear among a process's descriptors.
fn listening_sockets(ports: &BTreeSet<u16>) -> BTreeMap<String, u16> {
    let mut sockets = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(table) = fs::read_to_string(table) else { continue };
        for line in table.lines().skip(1) {
            if let Some((port, inode)) = listening(line)
                && ports.contains(&port)
            {
                sockets.insert(format!("socket:[{inode}]"), port);
            }
        }
    }
    sockets
}

/// The port and the inode of a line of `/proc/net/tcp`, if it is a listening socket.
fn listening(line: &str) -> Option<(u16, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    (state == LISTENING).then_some((port, inode))
}

fn used_ticks(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    ticks(&stat)
}

/// User and system time of a line of `/proc/PID/stat`. The name, in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_lines_of_proc_are_understood() {
        let line = "   3: 0100007F:0D03 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 77123 1 0000000000000000 100 0 0 10 0";
        assert_eq!(listening(line), Some((3331, "77123")));
        assert_eq!(listening(&line.replace(" 0A ", " 01 ")), None, "connected, not listening");
        let stat = "42 (kv) server) S 1 42 42 0 -1 4194304 100 0 0 0 250 150 0 0 20 0 9 0 1 2 3";
        assert_eq!(ticks(stat), Some(400));
    }

    #[test]
    fn only_processes_of_this_machine_are_found_and_all_or_none() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let ours = listener.local_addr().expect("bound").to_string();
        let servers = Servers::find([ours.as_str()].into_iter()).expect("this process");
        assert!(servers.processes.contains(&std::process::id()), "{servers:?}");
        assert!(servers.used_us().is_some(), "it runs");
        assert!(Servers::find([ours.as_str(), "10.1.2.3:3331"].into_iter()).is_none(), "elsewhere");
        assert!(Servers::find(std::iter::empty()).is_none(), "nobody");
    }
}
