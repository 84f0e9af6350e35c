//! The command line. The flags of `run` are the table of settings; nothing here repeats it.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{
    Given, Origin,
    setting::{SETTINGS, Setting},
};

/// The program's arguments.
pub(super) fn command() -> Command {
    Command::new("kv-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A strongly consistent, replicated key-value store")
        .after_help(
            "Exit codes: 0 stopped as asked; 1 refused to start; 2 usage or configuration; \
             3 stopped itself after a failure of its storage.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(run_command())
        .subcommand(dev_command())
        .subcommand(
            Command::new("check-config")
                .about("Reads a configuration file and names every mistake in it")
                .arg(Arg::new("file").value_name("FILE.toml").required(true)),
        )
}

fn run_command() -> Command {
    let command = Command::new("run")
        .about("Runs one node until it is told to stop (SIGTERM, SIGINT)")
        .long_about(
            "Runs one node until it is told to stop (SIGTERM, SIGINT).\n\nEvery setting can be given \
             by flag, by environment variable or in the file, in that order of precedence. \
             Durations need a unit (50ms, 2s), sizes may have one (64MiB).",
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE.toml")
                .help("A file with settings [env: KV_CONFIG]"),
        )
        .arg(
            Arg::new("exit-on-stdin-close")
                .long("exit-on-stdin-close")
                .action(ArgAction::SetTrue)
                .help("Stop when standard input ends, so that the node never outlives who started it"),
        );
    SETTINGS.iter().fold(command, |command, setting| command.arg(setting_argument(setting)))
}

fn setting_argument(setting: &'static Setting) -> Arg {
    let default =
        setting.default().map(|default| format!(" [default: {default}]")).unwrap_or_default();
    let heading = match setting.section() {
        "node" => "Node",
        "raft" => "Consensus, [raft] in the file",
        "limits" => "Limits, [limits] in the file",
        "storage" => "Storage, [storage] in the file",
        _ => "Log",
    };
    Arg::new(setting.name)
        .long(setting.flag)
        .value_name(setting.value_name)
        .help(format!("{}{default} [env: {}]", setting.help, setting.variable))
        .help_heading(heading)
        .allow_hyphen_values(true)
}

fn dev_command() -> Command {
    Command::new("dev")
        .about("Starts a cluster on this machine, each node a process of its own")
        .long_about(
            "Starts a cluster on this machine, each node a process of its own. Standard output says \
             how to restart each node by hand, then `ready: leader=2 endpoints=…` once, \
             `leader: node=3 term=5` per new leader and `down: node=2 restart: COMMAND` per node that \
             died. Nothing is restarted by itself. Ctrl-C stops the nodes it started; a second start \
             finds the data again.",
        )
        .arg(
            Arg::new("nodes")
                .long("nodes")
                .value_name("N")
                .default_value("4")
                .value_parser(clap::value_parser!(u16).range(1..=32))
                .help("How many nodes"),
        )
        .arg(
            Arg::new("data-dir")
                .long("data-dir")
                .value_name("DIR")
                .help("Where the nodes keep their data [default: kv-data; for --demo a temporary one]"),
        )
        .arg(
            Arg::new("base-port")
                .long("base-port")
                .value_name("PORT")
                .default_value("3331")
                .value_parser(clap::value_parser!(u16).range(1..))
                .help("The first node's port for clients; its port for peers is 1000 higher"),
        )
        .arg(
            Arg::new("demo")
                .long("demo")
                .action(ArgAction::SetTrue)
                .help("Play the founding scenario, print a line a step, and end"),
        )
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .action(ArgAction::SetTrue)
                .help("Show the logs of the nodes on standard error too"),
        )
}

/// The settings given as flags.
pub(super) fn settings_from_flags(matches: &ArgMatches) -> Vec<Given> {
    SETTINGS
        .iter()
        .filter_map(|setting| {
            let text = matches.get_one::<String>(setting.name)?;
            Some(Given { setting, text: text.clone(), origin: Origin::Flag(setting.flag) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_become_settings_with_their_origin() {
        let matches = command()
            .try_get_matches_from(["kv-server", "run", "--id", "2", "--raft-election", "1s"])
            .unwrap();
        let given = settings_from_flags(matches.subcommand_matches("run").unwrap());
        let shown: Vec<_> =
            given.iter().map(|g| (g.setting.name, g.text.as_str(), g.origin.to_string())).collect();
        assert_eq!(
            shown,
            [
                ("node.id", "2", "--id".to_owned()),
                ("raft.election", "1s", "--raft-election".to_owned())
            ]
        );
    }

    #[test]
    fn an_unknown_flag_is_refused_and_the_nearest_named() {
        let error = command()
            .try_get_matches_from(["kv-server", "run", "--raft-electoin", "1s"])
            .unwrap_err();
        assert!(error.to_string().contains("--raft-election"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
