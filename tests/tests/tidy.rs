//! Rules of the house as tests: crate arrows, small trees, module headers, file sizes, links.
//!
//! A rule that only reviewers know is broken within a month. Exceptions are listed here with their
//! size; they may shrink, not grow.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Lines a file may have without being listed.
const LINES_MAX: usize = 700;

/// Files that hold one idea in more lines, and how many they may have.
const LONG_FILES: [(&str, usize); 1] = [
    // One test for each rule of the paper, in the paper's order.
    ("raft-core/tests/paper.rs", 760),
];

/// What each crate may depend on within the workspace, dev-dependencies apart.
const ARROWS: [(&str, &[&str]); 6] = [
    ("raft-core", &[]),
    ("lsm-store", &[]),
    ("raft-rpc", &["raft-core"]),
    ("kv-client", &["raft-rpc"]),
    ("kv-server", &["kv-client", "lsm-store", "raft-core", "raft-rpc"]),
    ("tests", &["kv-client", "kv-server", "lsm-store", "raft-core", "raft-rpc"]),
];

/// Direct dependencies the consensus core may have.
const CORE_DEPENDENCIES_MAX: usize = 5;

/// What a program that only wants the typed client must not have to build.
const NOT_IN_THE_CLIENT: [&str; 10] = [
    "clap",
    "clap_builder",
    "clap_complete",
    "comfy-table",
    "indicatif",
    "console",
    "crossterm",
    "terminal_size",
    "hdrhistogram",
    "zstd",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(member: &str) -> toml::Table {
    let path = root().join(member).join("Cargo.toml");
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// Names of a manifest's dependencies in `table`, also those of `[target.…]`.
fn dependencies(manifest: &toml::Table, table: &str) -> BTreeSet<String> {
    let names = |manifest: &toml::Table| -> Vec<String> {
        let found = manifest.get(table).and_then(toml::Value::as_table);
        found.map(|table| table.keys().cloned().collect()).unwrap_or_default()
    };
    let mut all: BTreeSet<String> = names(manifest).into_iter().collect();
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        all.extend(targets.values().filter_map(toml::Value::as_table).flat_map(names));
    }
    all
}

/// Every Rust file of the members.
fn rust_files() -> Vec<PathBuf> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for (member, _) in ARROWS {
        for part in ["src", "tests", "benches", "examples"] {
            let directory = root().join(member).join(part);
            if directory.is_dir() {
                collect(&directory, &mut found);
            }
        }
    }
    assert!(found.len() > 50, "only {} files found", found.len());
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn the_members_are_these_six() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members: BTreeSet<&str> = manifest["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member.as_str().unwrap())
        .collect();
    assert_eq!(members, ARROWS.iter().map(|(member, _)| *member).collect());
}

#[test]
fn arrows_between_crates_point_one_way() {
    let members: BTreeSet<String> = ARROWS.iter().map(|(member, _)| (*member).to_owned()).collect();
    for (member, allowed) in ARROWS {
        let allowed: BTreeSet<String> = allowed.iter().map(ToString::to_string).collect();
        let manifest = manifest(member);
        for table in ["dependencies", "build-dependencies"] {
            let found: BTreeSet<String> =
                dependencies(&manifest, table).intersection(&members).cloned().collect();
            let beyond: Vec<&String> = found.difference(&allowed).collect();
            assert!(beyond.is_empty(), "{member} depends on {beyond:?} by [{table}]");
        }
    }
}

#[test]
fn the_server_needs_the_client_only_for_its_programs() {
    let manifest = manifest("kv-server");
    let client = &manifest["dependencies"]["kv-client"];
    assert_eq!(client.get("optional").and_then(toml::Value::as_bool), Some(true), "{client}");
    let features = manifest["features"].as_table().unwrap();
    for (feature, parts) in features {
        let asks = parts.as_array().unwrap().iter().any(|part| {
            part.as_str().is_some_and(|part| part.trim_start_matches("dep:") == "kv-client")
        });
        assert_eq!(asks, feature == "cli", "feature {feature}");
    }
}

#[test]
fn consensus_has_few_dependencies_and_none_that_could_do_io() {
    let found = dependencies(&manifest("raft-core"), "dependencies");
    assert!(found.len() <= CORE_DEPENDENCIES_MAX, "{found:?}");
    for forbidden in ["tokio", "tarpc", "tracing", "log", "rand", "libc", "rustix"] {
        assert!(!found.contains(forbidden), "raft-core depends on {forbidden}");
    }
    let header = fs::read_to_string(root().join("raft-core/src/lib.rs")).unwrap();
    assert!(header.contains("#![no_std]"), "raft-core could use the clock and files");
}

#[test]
fn the_store_knows_nothing_of_the_network_and_of_consensus() {
    let found = dependencies(&manifest("lsm-store"), "dependencies");
    for forbidden in ["tokio", "tarpc", "raft-core", "raft-rpc", "futures"] {
        assert!(!found.contains(forbidden), "lsm-store depends on {forbidden}");
    }
}

/// Names of the packages that a build of `arguments` links, by `cargo tree`, without the network.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args([
            "tree",
            "--offline",
            "--locked",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "-e",
            "normal",
        ])
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_typed_client_builds_no_argument_parser_terminal_or_table() {
    let packages = tree(&["-p", "kv-client", "--no-default-features"]);
    assert!(packages.contains("tarpc"), "the tree is complete: {packages:?}");
    for forbidden in NOT_IN_THE_CLIENT {
        assert!(!packages.contains(forbidden), "kv-client without features builds {forbidden}");
    }
    let with_tool = tree(&["-p", "kv-client"]);
    assert!(with_tool.contains("clap"), "the list of forbidden packages is about real ones");
}

#[test]
fn an_embedded_server_builds_no_program() {
    let packages = tree(&["-p", "kv-server", "--no-default-features"]);
    for forbidden in ["clap", "clap_builder", "shlex", "kv-client"] {
        assert!(!packages.contains(forbidden), "kv-server without features builds {forbidden}");
    }
}

#[test]
fn every_file_says_at_its_top_what_it_is_for() {
    let without: Vec<String> = rust_files()
        .iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            // A crate's README may be its header.
            let is_readme = |line: &&str| line.starts_with("#![doc = include_str!(");
            let first = text.lines().find(|line| {
                let attribute = line.starts_with("#![") && !is_readme(line);
                !line.trim().is_empty() && !attribute
            });
            !first.is_some_and(|line| {
                is_readme(&line) || (line.starts_with("//! ") && line.len() >= 20)
            })
        })
        .map(|path| shown(path))
        .collect();
    assert!(without.is_empty(), "no module header in: {without:#?}");
}

#[test]
fn no_file_is_long_without_being_listed_and_listed_ones_do_not_grow() {
    let listed: BTreeMap<&str, usize> = LONG_FILES.into();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in rust_files() {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        let name = shown(&path);
        match listed.get(name.as_str()) {
            Some(most) => {
                seen.insert(name.clone());
                if lines > *most {
                    wrong.push(format!("{name} has grown from {most} to {lines} lines"));
                }
                if lines <= LINES_MAX {
                    wrong.push(format!("{name} has {lines} lines and need not be listed any more"));
                }
            }
            None if lines > LINES_MAX => {
                wrong.push(format!(
                    "{name} has {lines} lines, at most {LINES_MAX} without a reason"
                ));
            }
            None => {}
        }
    }
    wrong.extend(
        listed.keys().filter(|name| !seen.contains(**name)).map(|name| format!("{name} is gone")),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn folders_are_modules_by_mod_rs() {
    let wrong: Vec<String> = rust_files()
        .iter()
        // Beside `tests/NAME.rs` a folder `NAME` holds that test's data.
        .filter(|path| !path.parent().is_some_and(|parent| parent.ends_with("tests")))
        .filter(|path| path.with_extension("").is_dir())
        .map(|path| shown(path))
        .collect();
    assert!(wrong.is_empty(), "a file beside a folder of its name: {wrong:#?}");
}

/// Targets of `[text](target)` in a Markdown text, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, further)) = after.split_once(')') else { break };
            found.push(target.to_owned());
            rest = further;
        }
    }
    found
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents: Vec<PathBuf> = vec![root()];
    documents.extend(ARROWS.iter().map(|(member, _)| root().join(member)));
    documents.push(root().join("tests/data"));
    let mut checked = 0;
    let mut dead = Vec::new();
    for directory in documents {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            checked += 1;
            for link in links(&fs::read_to_string(&path).unwrap()) {
                let target = link.split('#').next().unwrap_or_default();
                if target.is_empty() || target.contains("://") {
                    continue;
                }
                if !directory.join(target).exists() {
                    dead.push(format!("{}: {link}", shown(&path)));
                }
            }
        }
    }
    assert!(checked > 0, "no document found");
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn links_are_found_outside_of_code_only() {
    let text = "see [a](A.md) and [b](B.md#part)\n```\n[c](C.md)\n```\n";
    assert_eq!(links(text), ["A.md", "B.md#part"]);
}
