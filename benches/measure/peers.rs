//! Other engines, over the same files. They live outside the repository: `PEERS_DIR` is the folder of their scripts
//! (`common/measure.py`, `terasort/sort.py`, `join/join.py`), `PEERS_PY` the Python that has the engines installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{last_line, last_object};

/// Runs a script of `PEERS_DIR` with `engine` and `arguments`.
pub(crate) fn peer_script(workload: &str, engine: &str, script: &str, arguments: &[String]) -> Value {
    measure(workload, engine, &folder().join(script), arguments)
}

/// Runs one query by our own script, for the queries that those of `PEERS_DIR` do not have. Its rows are in
/// `answer`, sorted.
pub(crate) fn peer_query(workload: &str, engine: &str, arguments: &[String]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peer_query.py");
    measure(workload, engine, &script, arguments)
}

fn folder() -> PathBuf {
    let folder = std::env::var_os("PEERS_DIR").map(PathBuf::from);
    folder.unwrap_or_else(|| panic!("--peers needs PEERS_DIR, the folder of the peers' scripts"))
}

/// A peer in a process of its own, whose memory is sampled from outside.
fn measure(workload: &str, engine: &str, script: &Path, arguments: &[String]) -> Value {
    let python = std::env::var_os("PEERS_PY").unwrap_or_else(|| "python3".into());
    let output = Command::new(&python)
        .arg(folder().join("common/measure.py"))
        .args([workload, engine, "--"])
        .arg(&python)
        .arg(script)
        .arg(engine)
        .args(arguments)
        .output();
    match output {
        Err(error) => json!({"failed": format!("{}: {error}", python.display())}),
        Ok(output) => last_object(&output.stdout).unwrap_or_else(|| json!({"failed": last_line(&output.stderr)})),
    }
}
