//! The configuration file: TOML to (setting, text, line).
//!
//! Reads as much as it can and reports every mistake with its line. What a value means is not
//! decided here: it leaves as text and is read like a flag's, so that a file and a flag can never
//! disagree on what `5s` is.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{
    ConfigError, Given, Origin,
    setting::{self, SETTINGS},
};

/// What a file gives, and what is wrong with it.
#[derive(Debug, Default)]
pub struct FileSettings {
    /// The known settings, in the order of the file's sections.
    pub given: Vec<Given>,
    /// Everything that is wrong, by line.
    pub errors: Vec<ConfigError>,
}

/// Reads `text`, the content of the file at `path` (the path is only for messages).
#[must_use]
pub fn parse(path: &Path, text: &str) -> FileSettings {
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { path, text, found: FileSettings::default() };
    for error in syntax_errors {
        let at = error.span().map_or(0, |span| span.start);
        reader.error(at, error.message().replace('\n', ", "));
    }
    for (section, value) in document.get_ref() {
        reader.read_section(section.get_ref(), section.span().start, value.get_ref());
    }
    let mut found = reader.found;
    found.errors.sort_by_key(|error| match &error.origin {
        Some(Origin::File { line, .. }) => *line,
        Some(Origin::Flag(_) | Origin::Variable(_)) | None => 0,
    });
    found
}

struct Reader<'f> {
    path: &'f Path,
    text: &'f str,
    found: FileSettings,
}

impl Reader<'_> {
    fn origin(&self, at: usize) -> Origin {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Origin::File { path: self.path.to_owned(), line }
    }

    fn error(&mut self, at: usize, message: String) {
        let origin = Some(self.origin(at));
        self.found.errors.push(ConfigError { origin, message });
    }

    fn read_section(&mut self, section: &str, at: usize, value: &DeValue<'_>) {
        if !setting::sections().any(|known| known == section) {
            let message = match SETTINGS.iter().find(|setting| setting.key() == section) {
                Some(setting) if value.as_table().is_none() => {
                    format!("key \"{section}\" belongs into section [{}]", setting.section())
                }
                Some(_) | None => unknown("section", section, setting::sections().collect()),
            };
            return self.error(at, message);
        }
        let Some(table) = value.as_table() else {
            return self.error(
                at,
                format!("\"{section}\" is a section, expected [{section}] and its keys below it"),
            );
        };
        for (key, value) in table {
            let (name, key_at) = (key.get_ref(), key.span().start);
            match setting::by_name(&format!("{section}.{name}")) {
                None => {
                    let elsewhere = SETTINGS.iter().find(|setting| setting.key() == name.as_ref());
                    let message = match elsewhere {
                        Some(setting) => {
                            format!("key \"{name}\" belongs into section [{}]", setting.section())
                        }
                        None => unknown("key", name, keys_of(section)),
                    };
                    self.error(key_at, message);
                }
                Some(setting) => match as_text(value.get_ref()) {
                    Ok(text) => {
                        let origin = self.origin(value.span().start);
                        self.found.given.push(Given { setting, text, origin });
                    }
                    Err(message) => {
                        self.error(value.span().start, format!("{}: {message}", setting.key()));
                    }
                },
            }
        }
    }
}

fn keys_of(section: &str) -> Vec<&'static str> {
    SETTINGS.iter().filter(|s| s.section() == section).map(|s| s.key()).collect()
}

/// `unknown key "electoin" (did you mean "election"?), expected one of: …`
fn unknown(what: &str, name: &str, known: Vec<&'static str>) -> String {
    let guess = setting::nearest(name, known.iter().copied())
        .map(|near| format!(" (did you mean \"{near}\"?)"))
        .unwrap_or_default();
    format!("unknown {what} \"{name}\"{guess}, expected one of: {}", known.join(", "))
}

/// The text a flag would have: strings as they are, numbers in decimal, lists of strings with commas.
fn as_text(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|error| format!("`{}` is no number ({error})", number.as_str())),
        DeValue::Array(items) => {
            let parts: Option<Vec<&str>> =
                items.iter().map(|item| item.get_ref().as_str()).collect();
            parts
                .map(|parts| parts.join(","))
                .ok_or_else(|| "expected a text or a list of texts".to_owned())
        }
        DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Table(_) => {
            Err(format!("expected a text or a whole number, found a {}", value.type_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<String> {
        parse(Path::new("kv.toml"), text).errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn settings_come_with_their_lines() {
        let found = parse(
            Path::new("kv.toml"),
            "# a node\n[node]\nid = 2\ncluster = [\n  \"1=a:1/a:2\",\n  \"2=b:1/b:2\",\n]\n\n[raft]\nelection = \"1s\"\n",
        );
        assert_eq!(found.errors, []);
        let given: Vec<_> = found
            .given
            .iter()
            .map(|given| (given.setting.name, given.text.as_str(), given.origin.to_string()))
            .collect();
        assert!(given.contains(&("node.id", "2", "kv.toml:3".to_owned())), "{given:?}");
        assert!(
            given.contains(&("node.cluster", "1=a:1/a:2,2=b:1/b:2", "kv.toml:4".to_owned())),
            "{given:?}"
        );
        assert!(given.contains(&("raft.election", "1s", "kv.toml:10".to_owned())), "{given:?}");
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        let found = messages("[raft]\nheartbeat = \"50ms\"\n\nelectoin = \"1s\"\n");
        assert_eq!(
            found,
            ["kv.toml:4: unknown key \"electoin\" (did you mean \"election\"?), expected one of: \
              heartbeat, election, election-jitter, disk-stall, append, inflight-messages, inflight, \
              uncommitted, apply, waiting-reads"]
        );
    }

    #[test]
    fn every_mistake_is_reported_not_just_the_first() {
        let found = messages(
            "data-dir = \"x\"\n[nod]\nid = 1\n[raft]\nvalue = 3\nheartbeat = true\n[limits]\nvalue = \n",
        );
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(found[0].starts_with("kv.toml:1: key \"data-dir\" belongs into section [node]"));
        assert!(
            found[1].starts_with("kv.toml:2: unknown section \"nod\" (did you mean \"node\"?)")
        );
        assert!(found[2].starts_with("kv.toml:5: key \"value\" belongs into section [limits]"));
        assert!(found[3].starts_with("kv.toml:6: heartbeat: expected a text"), "{}", found[3]);
        assert!(found[4].starts_with("kv.toml:8: "), "{}", found[4]);
    }
}
