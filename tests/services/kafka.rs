//! The services that tests talk to, started by `scripts/services.sh` for as long as somebody holds them.
//!
//! A machine without them is told so, loudly; where the environment variable `CI` is set, the test fails.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

/// One broker of Apache Kafka, alone and empty. It ends when this is dropped, or with the process.
pub(crate) struct Kafka {
    /// Where it listens, `host:port`.
    pub(crate) bootstrap: String,
    /// The script ends the broker when its input ends.
    _input: ChildStdin,
    script: Child,
}

impl Kafka {
    /// Starts a broker.
    ///
    /// # Errors
    /// When it cannot be started, with what the script said.
    pub(crate) fn start() -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let script = [root.join("scripts/services.sh"), root.join("../scripts/services.sh")];
        let script = script
            .iter()
            .find(|script| script.exists())
            .ok_or("no scripts/services.sh")?;
        let mut script = Command::new(script)
            .arg("kafka")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|e| format!("scripts/services.sh: {e}"))?;
        let (input, output) = (script.stdin.take(), script.stdout.take());
        let mut line = String::new();
        let read = output.map(|output| BufReader::new(output).read_line(&mut line));
        match (read, input, line.trim().strip_prefix("bootstrap=")) {
            (Some(Ok(_)), Some(input), Some(bootstrap)) => Ok(Self {
                bootstrap: bootstrap.to_string(),
                _input: input,
                script,
            }),
            (_, input, _) => {
                drop(input);
                let ended = script.wait();
                Err(format!(
                    "scripts/services.sh kafka: it said '{}', {ended:?}",
                    line.trim()
                ))
            }
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // The script's own end is orderly; this is for a broker that hangs.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

/// The broker that all tests of this binary share; `None`, and said so, on a machine that has none.
///
/// # Panics
/// When there is none and `CI` is set.
pub(crate) fn kafka() -> Option<&'static Kafka> {
    static SHARED: OnceLock<Result<Kafka, String>> = OnceLock::new();
    match SHARED.get_or_init(Kafka::start) {
        Ok(kafka) => Some(kafka),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "a test needs Kafka: {why}");
            // Past the harness, which keeps to itself what a test that passes prints.
            let message = format!("NOT TESTED: there is no Kafka ({why}); run scripts/services.sh fetch");
            let _ = writeln!(std::io::stderr(), "{message}");
            None
        }
    }
}
