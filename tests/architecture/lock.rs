//! What `Cargo.lock` may hold.

use std::collections::{BTreeMap, BTreeSet};

use super::{none, read};

/// Crates whose types cross crates: two versions of one would not fit together.
const SINGLE_VERSION: &[&str] = &[
    "arrow",
    "parquet",
    "object_store",
    "sqlparser",
    "datafusion-common",
    "tonic",
    "prost",
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Name, version and source of each package of a lock file.
fn locked(lock: &str) -> Vec<(&str, &str, &str)> {
    lock.split("[[package]]")
        .skip(1)
        .map(|package| {
            let value = |key: &str| {
                let found = package.lines().find_map(|line| line.strip_prefix(key));
                found
                    .and_then(|rest| rest.strip_prefix(" = \""))
                    .map_or("", |rest| rest.trim_end_matches('"'))
            };
            (value("name"), value("version"), value("source"))
        })
        .collect()
}

fn duplicates(lock: &str) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, version, _) in locked(lock) {
        versions.entry(name).or_default().insert(version);
    }
    let several = SINGLE_VERSION
        .iter()
        .filter_map(|name| Some((name, versions.get(name)?)));
    let several = several.filter(|(_, versions)| versions.len() > 1);
    several
        .map(|(name, versions)| format!("{name}: {}", Vec::from_iter(versions.iter().copied()).join(", ")))
        .collect()
}

fn foreign_sources(lock: &str) -> Vec<String> {
    let packages = locked(lock)
        .into_iter()
        .filter(|(_, _, source)| !source.is_empty() && *source != CRATES_IO);
    packages
        .map(|(name, version, source)| format!("{name} {version} comes from {source}"))
        .collect()
}

#[test]
fn one_version_of_each_shared_crate() {
    let lock = read("Cargo.lock");
    assert!(
        locked(&lock).iter().any(|(name, _, _)| *name == "arrow"),
        "Cargo.lock could not be understood"
    );
    none(
        &duplicates(&lock),
        "`cargo tree -i NAME@VERSION` shows who wants which. Take the version that DataFusion uses.",
    );
}

#[test]
fn packages_come_from_crates_io() {
    none(&foreign_sources(&read("Cargo.lock")), "Depend on a published version.");
}

#[test]
fn a_second_version_and_a_foreign_source_are_found() {
    let package = |name: &str, version: &str, source: &str| {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\n\n")
    };
    let lock = [
        package("arrow", "59.3.2", CRATES_IO),
        package("arrow", "60.0.0", CRATES_IO),
        package("syn", "2.0.0", CRATES_IO),
        package("syn", "3.0.0", "git+https://example.org/syn"),
        "[[package]]\nname = \"thalweg\"\nversion = \"0.1.0\"\n".to_string(),
    ]
    .concat();
    assert_eq!(duplicates(&lock), ["arrow: 59.3.2, 60.0.0"]);
    assert_eq!(
        foreign_sources(&lock),
        ["syn 3.0.0 comes from git+https://example.org/syn"]
    );
}
