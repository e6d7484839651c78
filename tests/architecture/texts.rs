//! What the files of the tree may be called, how long they may be and what they may say.

use std::path::Path;

use super::{files, none, read, root, text_of, with_extension};

const MAX_LINES: usize = 600;

/// Files that may be longer than [`MAX_LINES`], with their own bound and why.
const LONG_FILES: &[(&str, usize, &str)] = &[
    (
        "engine/src/operator/hash_join/tests.rs",
        750,
        "all join types against one reference",
    ),
    (
        "engine/src/operator/sort/tests.rs",
        700,
        "all key types against one reference",
    ),
];

/// Names that say nothing: whatever is in such a file belongs to the module whose idea it serves.
const JUNK_DRAWERS: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc"];

/// Folders of one machine. Split, so that this file does not hold what it looks for.
const MACHINE_FOLDERS: &[&str] = &[concat!("/", "root/"), concat!("/", "work/"), concat!("/", "home/")];

/// Marks of a package registry other than the public one.
const REGISTRY_MARKS: &[&str] = &[
    concat!("index", "-url"),
    concat!("PIP", "_INDEX"),
    concat!("replace", "-with"),
    concat!("[regis", "tries"),
    concat!("CARGO_REGIS", "TRIES"),
    concat!("sparse", "+http"),
    concat!("/simp", "le/"),
];

/// Lines that name a folder of one machine, or a registry.
fn traces_of_a_machine(path: &str, text: &str) -> Vec<String> {
    let starts_a_path = |before: &str| !before.ends_with(|c: char| c.is_alphanumeric() || "._-~})]".contains(c));
    let is_folder = |line: &str| {
        MACHINE_FOLDERS.iter().any(|folder| {
            line.match_indices(folder).any(|(at, _)| {
                let rest = &line[at + folder.len()..];
                // Somebody's home, not the folder of homes.
                let names_someone = !folder.contains("home") || rest.starts_with(|c: char| c.is_alphanumeric());
                starts_a_path(&line[..at]) && names_someone
            })
        })
    };
    let is_trace = |line: &str| is_folder(line) || REGISTRY_MARKS.iter().any(|mark| line.contains(mark));
    let lines = text.lines().enumerate().filter(|(_, line)| is_trace(line));
    lines
        .map(|(index, line)| format!("{path}:{}: {}", index + 1, line.trim()))
        .collect()
}

#[test]
fn no_file_names_a_machine_or_a_registry() {
    let texts = files()
        .into_iter()
        .filter_map(|path| text_of(&path).map(|text| (path, text)));
    let complaints: Vec<String> = texts
        .flat_map(|(path, text)| traces_of_a_machine(&path, &text))
        .collect();
    none(
        &complaints,
        "Write paths relative to the repository, or take them from an argument or a temporary folder.",
    );
}

#[test]
fn a_machine_and_a_registry_are_found() {
    for folder in MACHINE_FOLDERS {
        for line in [
            format!("cd {folder}x"),
            format!("\"{folder}x\""),
            format!("file://{folder}x"),
            format!("{folder}x"),
        ] {
            assert_eq!(traces_of_a_machine("f", &line).len(), 1, "{line}");
        }
        for line in [
            format!("target{folder}x"),
            format!("https://example.org{folder}x"),
            format!("..{folder}x"),
        ] {
            assert_eq!(traces_of_a_machine("f", &line), Vec::<String>::new());
        }
    }
    for mark in REGISTRY_MARKS {
        assert_eq!(traces_of_a_machine("f", &format!("x\n {mark} y")).len(), 1, "{mark}");
    }
}

fn too_long(path: &str, text: &str) -> Option<String> {
    let listed = LONG_FILES.iter().find(|(long, _, _)| *long == path);
    let bound = listed.map_or(MAX_LINES, |(_, bound, _)| *bound);
    let lines = text.lines().count();
    (lines > bound).then(|| format!("{path}: {lines} lines, at most {bound}"))
}

#[test]
fn source_files_are_short() {
    let complaints: Vec<String> = with_extension(".rs")
        .iter()
        .filter_map(|(path, text)| too_long(path, text))
        .collect();
    none(
        &complaints,
        "Look for the second idea hiding in the file, and give it a file of its own.",
    );
}

#[test]
fn a_long_file_is_found() {
    assert_eq!(too_long("a.rs", &"x\n".repeat(MAX_LINES)), None);
    assert!(too_long("a.rs", &"x\n".repeat(MAX_LINES + 1)).is_some());
    for (path, bound, reason) in LONG_FILES {
        assert!(*bound > MAX_LINES && !reason.is_empty(), "{path}");
        assert!(too_long(path, &"x\n".repeat(bound + 1)).is_some(), "{path}");
    }
}

fn is_junk_drawer(path: &str) -> bool {
    let stem = path.strip_suffix("/mod.rs").or_else(|| path.strip_suffix(".rs"));
    stem.is_some_and(|stem| JUNK_DRAWERS.contains(&stem.rsplit('/').next().unwrap_or_default()))
}

#[test]
fn no_file_is_a_junk_drawer() {
    let complaints: Vec<String> = files().into_iter().filter(|path| is_junk_drawer(path)).collect();
    none(
        &complaints,
        "Name the file after its idea, or put each piece next to what it serves.",
    );
}

#[test]
fn a_junk_drawer_is_found() {
    for path in [
        "src/utils.rs",
        "engine/src/data/common.rs",
        "helpers.rs",
        "tests/common/mod.rs",
    ] {
        assert!(is_junk_drawer(path), "{path}");
    }
    for path in ["src/mod.rs", "src/common_table.rs", "docs/utils.md"] {
        assert!(!is_junk_drawer(path), "{path}");
    }
}

/// What stands between backticks and looks like a path of the repository.
fn paths_named(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|word| word.contains('/') && !word.contains([' ', '<', '*', ':', '(', '\'']))
        .collect()
}

/// The targets of relative links, as paths from the root of the repository.
fn links(path: &str, text: &str) -> Vec<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next());
    let relative = targets.filter(|target| !target.is_empty() && !target.contains("://") && !target.contains(' '));
    relative
        .map(|target| Path::new(folder).join(target).display().to_string())
        .collect()
}

fn missing<P: AsRef<str>>(path: &str, named: &[P], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let gone = named.iter().map(AsRef::as_ref).filter(|name| !exists(name));
    gone.map(|name| format!("{path} names {name}, which does not exist"))
        .collect()
}

#[test]
fn the_life_of_a_record_names_files_that_exist() {
    let path = "docs/life-of-a-record.md";
    let text = read(path);
    let named = paths_named(&text);
    assert!(
        named.len() >= 10,
        "{path} is meant to name the files that a record passes"
    );
    none(
        &missing(path, &named, |name| root().join(name).exists()),
        "Follow the record through the files as they are now.",
    );
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut complaints = Vec::new();
    for (path, text) in with_extension(".md") {
        complaints.extend(missing(&path, &links(&path, &text), |name| root().join(name).exists()));
    }
    none(&complaints, "Mend the link.");
}

#[test]
fn a_missing_path_is_found() {
    let text =
        "Then `engine/src/gone.rs` and `src/` take `a + b`; see [here](../README.md#x) and [there](https://x/y).";
    assert_eq!(paths_named(text), ["engine/src/gone.rs", "src/"]);
    assert_eq!(links("docs/a.md", text), ["docs/../README.md"]);
    let gone = missing("docs/a.md", &paths_named(text), |name| name == "src/");
    assert_eq!(gone, ["docs/a.md names engine/src/gone.rs, which does not exist"]);
}
