//! Which crate may depend on which, and that each dependency has its reason.

use super::{manifests, none, read};

/// Crates from the bottom up. A crate may depend on crates of lower rows only, so those of one row do not know each other.
const LAYERS: &[&[&str]] = &[
    &["thalweg-memory"],
    &["thalweg-engine"],
    &["thalweg-optimizer", "thalweg-flight", "thalweg-connectors"],
    &["thalweg"],
    &[
        "thalweg-libraries",
        "thalweg-python",
        "thalweg-benches",
        "thalweg-tests",
    ],
];

/// The crates that a manifest depends on, in sections for which `wanted` says so, with their lines.
fn dependencies(manifest: &str, wanted: fn(&str) -> bool) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut section = String::new();
    for (index, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = header.trim_matches(['[', ' ']).to_string();
            // [dependencies.name]
            if let Some((table, name)) = section.rsplit_once('.')
                && wanted(table)
            {
                found.push((index + 1, name.trim_matches(['"', '\'']).to_string()));
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let key = key.trim().split('.').next().unwrap_or_default().trim_matches('"');
        let is_name = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if wanted(&section) && is_name {
            let renamed = value
                .split_once("package = \"")
                .and_then(|(_, rest)| rest.split('"').next());
            found.push((index + 1, renamed.unwrap_or(key).to_string()));
        }
    }
    found
}

/// `dependencies`, `dev-dependencies`, `build-dependencies`, also of one target.
fn is_dependency_table(section: &str) -> bool {
    !section.starts_with("workspace")
        && section
            .rsplit('.')
            .next()
            .is_some_and(|last| last.ends_with("dependencies"))
}

fn package_name(manifest: &str) -> &str {
    let package = manifest.split_once("[package]").map_or("", |(_, rest)| rest);
    let name = package.lines().find_map(|line| line.trim().strip_prefix("name = \""));
    name.and_then(|rest| rest.split('"').next()).unwrap_or_default()
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&name))
}

fn forbidden_edges(path: &str, manifest: &str) -> Vec<String> {
    let package = package_name(manifest);
    let Some(own) = layer(package) else {
        return vec![format!(
            "{path}: package '{package}' has no place in LAYERS of tests/architecture/manifests.rs"
        )];
    };
    let ours = dependencies(manifest, is_dependency_table)
        .into_iter()
        .filter(|(_, name)| name.starts_with("thalweg"));
    ours.filter_map(|(line, name)| match layer(&name) {
        Some(other) if other < own => None,
        Some(_) => Some(format!(
            "{path}:{line}: {package} depends on {name}, which is not below it"
        )),
        None => Some(format!(
            "{path}:{line}: '{name}' has no place in LAYERS of tests/architecture/manifests.rs"
        )),
    })
    .collect()
}

#[test]
fn crates_depend_downwards_only() {
    let complaints: Vec<String> = manifests()
        .iter()
        .flat_map(|(path, text)| forbidden_edges(path, text))
        .collect();
    none(
        &complaints,
        "Dependencies run memory <- engine <- {optimizer, flight, connectors} <- thalweg <- {libraries, python, benches, \
         tests}. Move the code down, or hand it in through a trait from src/, the composition root.",
    );
}

#[test]
fn an_upward_or_sideward_dependency_is_found() {
    let up = "[package]\nname = \"thalweg-memory\"\n[dependencies]\nthalweg-engine.workspace = true\n";
    assert_eq!(
        forbidden_edges("m", up),
        ["m:4: thalweg-memory depends on thalweg-engine, which is not below it"]
    );
    for table in [
        "[dependencies]",
        "[dev-dependencies]",
        "[target.'cfg(unix)'.dependencies]",
    ] {
        let sideward =
            format!("[package]\nname = \"thalweg-optimizer\"\n{table}\nx = {{ package = \"thalweg-flight\" }}\n");
        assert_eq!(forbidden_edges("m", &sideward).len(), 1, "{table}");
    }
    let by_table = "[package]\nname = \"thalweg-engine\"\n[dependencies.thalweg]\npath = \"..\"\n";
    assert_eq!(forbidden_edges("m", by_table).len(), 1);
    let unknown = "[package]\nname = \"thalweg-types\"\n";
    assert!(forbidden_edges("m", unknown)[0].contains("no place in LAYERS"));
    let down = "[package]\nname = \"thalweg\"\n[dependencies]\nthalweg-engine = { path = \"engine\" }\nserde = \"1\"\n";
    assert!(forbidden_edges("m", down).is_empty());
}

/// The crates that no text between backticks in `document` names.
fn undocumented(path: &str, manifest: &str, document: &str, wanted: fn(&str) -> bool) -> Vec<String> {
    let all = dependencies(manifest, wanted)
        .into_iter()
        .filter(|(_, name)| !name.starts_with("thalweg"));
    let missing = all.filter(|(_, name)| !document.contains(&format!("`{name}`")));
    missing.map(|(line, name)| format!("{path}:{line}: {name}")).collect()
}

#[test]
fn every_dependency_is_documented() {
    let document = read("docs/dependencies.md");
    let mut complaints = undocumented("Cargo.toml", &read("Cargo.toml"), &document, |section| {
        section == "workspace.dependencies"
    });
    for (path, text) in manifests() {
        complaints.extend(undocumented(&path, &text, &document, is_dependency_table));
    }
    none(
        &complaints,
        "Say in docs/dependencies.md, as `name`, what it is for and what else was considered.",
    );
}

#[test]
fn an_undocumented_dependency_is_found() {
    let manifest =
        "[workspace.dependencies]\nserde = \"1\"\nleft-pad = { version = \"1\", features = [\n  \"a\",\n] }\n";
    let wanted: fn(&str) -> bool = |section| section == "workspace.dependencies";
    assert_eq!(
        undocumented("m", manifest, "| `serde` | data |", wanted),
        ["m:3: left-pad"]
    );
}
