//! The rules of the tree, checked by reading it: manifests, modules, the lock file, texts.
//!
//! A rule is a function from text to complaints. One test applies it to the tree; another shows on a bad example that
//! the rule can complain at all.

#[path = "architecture/lock.rs"]
mod lock;
#[path = "architecture/manifests.rs"]
mod manifests;
#[path = "architecture/modules.rs"]
mod modules;
#[path = "architecture/texts.rs"]
mod texts;

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files of the repository (also those not committed yet), relative to its root; what git ignores is left out.
fn files() -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let mut files: Vec<String> = match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split('\0')
            .filter(|path| !path.is_empty())
            .map(str::to_string)
            .collect(),
        _ => walk(&root(), ""),
    };
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files.dedup();
    assert!(
        files.iter().any(|path| path == "Cargo.toml"),
        "the files of the repository were not found"
    );
    files
}

/// The files below a folder, for a copy of the tree without git.
fn walk(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !matches!(name.as_str(), "target" | ".git" | "__pycache__") => {
                files.extend(walk(&entry.path(), &format!("{path}/")));
            }
            Ok(kind) if kind.is_file() && name != ".git" => files.push(path),
            _ => {}
        }
    }
    files
}

/// The text of a file; `None` for binary ones.
fn text_of(path: &str) -> Option<String> {
    std::fs::read_to_string(root().join(path)).ok()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn with_extension(extension: &str) -> Vec<(String, String)> {
    let files = files().into_iter().filter(|path| path.ends_with(extension));
    files
        .filter_map(|path| text_of(&path).map(|text| (path, text)))
        .collect()
}

fn manifests() -> Vec<(String, String)> {
    let mut manifests = with_extension("Cargo.toml");
    manifests.retain(|(_, text)| text.contains("[package]"));
    manifests
}

#[track_caller]
fn none(complaints: &[String], what_to_do: &str) {
    assert!(
        complaints.is_empty(),
        "{} found:\n  {}\n{what_to_do}",
        complaints.len(),
        complaints.join("\n  ")
    );
}
