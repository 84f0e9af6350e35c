//! `PITFALLS.md` cannot rot: every pitfall has its row, and every test named there exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How many pitfalls there are.
const PITFALLS: usize = 70;

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of the tables: number, and the tests in the last column.
fn rows(text: &str) -> Vec<(usize, Vec<(String, String)>)> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let columns: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let Ok(number) = columns[0].parse() else { continue };
        assert_eq!(columns.len(), 4, "number, pitfall, rule, tests: {line}");
        let tests = columns[3].split("<br>").map(|test| {
            let test = test.trim().trim_matches('`');
            let (file, name) = test.split_once("::").unwrap_or_else(|| {
                unreachable!("pitfall {number}: {test} is not file::test");
            });
            (file.to_owned(), name.to_owned())
        });
        rows.push((number, tests.collect()));
    }
    rows
}

/// Whether `text` has a test of this name: a function behind an attribute `#[test]`, or one inside
/// `proptest!`, which carries it, too.
fn has_test(text: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(at, line)| {
        line.starts_with(&head)
            && lines[..at]
                .iter()
                .rev()
                .take_while(|line| line.starts_with("#["))
                .any(|line| *line == "#[test]")
    })
}

#[test]
fn every_pitfall_has_its_row_and_every_test_named_there_exists() {
    let text = std::fs::read_to_string(crate_dir().join("PITFALLS.md")).expect("the table");
    let rows = rows(&text);
    let numbers: Vec<usize> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=PITFALLS).collect::<Vec<_>>(), "each once, in order");
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut missing = Vec::new();
    for (number, tests) in rows {
        assert!(!tests.is_empty(), "pitfall {number} is held by no test");
        for (file, name) in tests {
            let text = files.entry(file.clone()).or_insert_with(|| {
                std::fs::read_to_string(crate_dir().join(Path::new(&file))).unwrap_or_default()
            });
            if !has_test(text, &name) {
                missing.push(format!("{number}: {file}::{name}"));
            }
        }
    }
    assert!(missing.is_empty(), "not there:\n{}", missing.join("\n"));
}

#[test]
fn a_name_that_is_not_a_test_is_not_taken_for_one() {
    let text = "#[test]\n#[ignore = \"slow\"]\nfn one() {\n}\nfn two() {}\n// fn three() {\n";
    assert!(has_test(text, "one"), "with another attribute between");
    assert!(!has_test(text, "two"), "a helper");
    assert!(!has_test(text, "three"), "a comment");
    assert!(!has_test(text, "on"), "a part of a name");
}
