//! `kv-server check-config FILE`: reads a file as `run` would and names every mistake.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::ArgMatches;

use super::{exit, logging, output};
use crate::config::{self, ConfigError, Given, LogConfig, Missing, Origin, Resolved};

/// Checks the file by itself: what has no default may come from elsewhere and is only mentioned.
pub(super) fn run(matches: &ArgMatches) -> exit::Code {
    let Some(path) = matches.get_one::<String>("file").map(PathBuf::from) else {
        return exit::USAGE;
    };
    match check(&path) {
        Ok(resolved) => {
            output::out(&format!("{}: ok", path.display()));
            if !resolved.missing.is_empty() {
                let names: Vec<String> = resolved
                    .missing
                    .iter()
                    .map(|setting| {
                        format!("{} (--{} or {})", setting.name, setting.flag, setting.variable)
                    })
                    .collect();
                output::narrate(&format!(
                    "not set here, so `run` needs it otherwise: {}",
                    names.join(", ")
                ));
            }
            exit::DONE
        }
        Err(errors) => {
            report(&errors);
            exit::USAGE
        }
    }
}

/// Prints every mistake, one a line.
pub(super) fn report(errors: &[ConfigError]) {
    for error in errors {
        output::narrate(&format!("error: {error}"));
    }
}

fn check(path: &Path) -> Result<Resolved, Vec<ConfigError>> {
    let (given, mut errors) = read_file(path);
    match config::resolve(given, Missing::Allowed) {
        Ok(resolved) => {
            errors.extend(check_filter(&resolved.log));
            if errors.is_empty() { Ok(resolved) } else { Err(errors) }
        }
        Err(more) => {
            errors.extend(more);
            Err(by_line(errors))
        }
    }
}

/// What a file gives and what is wrong with it; a file that cannot be read is one mistake.
pub(super) fn read_file(path: &Path) -> (Vec<Given>, Vec<ConfigError>) {
    match fs::read_to_string(path) {
        Ok(text) => {
            let file = config::file::parse(path, &text);
            (file.given, file.errors)
        }
        Err(error) => {
            let message = format!("cannot read the configuration file {}: {error}", path.display());
            (Vec::new(), vec![ConfigError { origin: None, message }])
        }
    }
}

/// A mistake in the filter of the logs, which only the logger can judge.
pub(super) fn check_filter(log: &LogConfig) -> Option<ConfigError> {
    let message = logging::filter(&log.filter).err()?;
    Some(ConfigError { origin: log.filter_origin.clone(), message })
}

/// Mistakes in the order of the file; those without a line come last.
fn by_line(mut errors: Vec<ConfigError>) -> Vec<ConfigError> {
    errors.sort_by_key(|error| match &error.origin {
        Some(Origin::File { line, .. }) => *line,
        Some(Origin::Flag(_) | Origin::Variable(_)) | None => usize::MAX,
    });
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str) -> Result<Resolved, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kv.toml");
        fs::write(&path, text).unwrap();
        let prefix = format!("{}:", path.display());
        check(&path).map_err(|errors| {
            errors.iter().map(|error| error.to_string().replace(&prefix, "kv.toml:")).collect()
        })
    }

    #[test]
    fn a_file_may_leave_to_flags_what_differs_between_nodes() {
        let resolved = check_text("[raft]\nheartbeat = \"20ms\"\n").unwrap();
        assert_eq!(resolved.missing.len(), 5);
    }

    #[test]
    fn mistakes_of_every_kind_come_together_by_line() {
        let errors = check_text(
            "[node]\nid = 0\n[raft]\nheartbeat = \"200ms\"\nelection = \"300ms\"\n[log]\nfiltre = \"info\"\nformat = \"xml\"\n",
        )
        .unwrap_err();
        let lines: Vec<&str> = errors.iter().map(|error| &error[..10]).collect();
        assert_eq!(lines, ["kv.toml:2:", "kv.toml:5:", "kv.toml:7:", "kv.toml:8:"], "{errors:#?}");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_found() {
        let errors = check_text("[log]\nfilter = \"kv_server=loud\"\n").unwrap_err();
        assert!(errors[0].starts_with("kv.toml:2: "), "{errors:?}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let errors = check(Path::new("no-such-file.toml")).unwrap_err();
        assert!(errors[0].to_string().contains("no-such-file.toml"), "{}", errors[0]);
    }
}
