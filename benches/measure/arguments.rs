//! The command line of a macro benchmark.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What every macro benchmark can be told, and the rest by name.
pub(crate) struct Arguments {
    /// The budget; without one, the session's default.
    pub(crate) memory_bytes: Option<usize>,
    pub(crate) parallelism: usize,
    pub(crate) repeats: usize,
    /// Engines that run beside ours.
    pub(crate) peers: Vec<String>,
    /// Whether this process is one run, rather than the one that starts them.
    pub(crate) child: bool,
    /// What has no name.
    pub(crate) free: Vec<String>,
    root: PathBuf,
    own: BTreeMap<&'static str, String>,
}

impl Arguments {
    /// Reads the command line; `own` are the options of this benchmark, with their defaults.
    pub(crate) fn parse(own: &[(&'static str, &str)]) -> Self {
        let root = std::env::var_os("THALWEG_TEST_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data"),
            PathBuf::from,
        );
        let mut parsed = Self {
            memory_bytes: None,
            parallelism: 2,
            repeats: 5,
            peers: Vec::new(),
            child: false,
            free: Vec::new(),
            root,
            own: own.iter().map(|(name, value)| (*name, value.to_string())).collect(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
            match argument.as_str() {
                "--memory" => parsed.memory_bytes = Some(bytes_of(&value())),
                "--parallelism" => parsed.parallelism = value().parse().unwrap(),
                "--repeats" => parsed.repeats = value().parse().unwrap(),
                "--peers" => parsed.peers = value().split(',').map(|peer| peer.trim().to_string()).collect(),
                "--dir" => parsed.root = value().into(),
                "--child" => parsed.child = true,
                // Cargo's own.
                "--bench" => {}
                other => match other.strip_prefix("--") {
                    None => parsed.free.push(other.to_string()),
                    Some(name) => {
                        let known = parsed.own.get_mut(name);
                        *known.unwrap_or_else(|| panic!("unknown argument {other}")) = value();
                    }
                },
            }
        }
        assert!(parsed.repeats > 0, "--repeats must be at least 1");
        parsed
    }

    /// The value of an option of this benchmark.
    pub(crate) fn own(&self, name: &str) -> &str {
        &self.own[name]
    }

    /// A folder for data, below `--dir`.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The budget as the peers want it; 0 is none.
    pub(crate) fn memory_mb(&self) -> usize {
        self.memory_bytes.unwrap_or(0).div_ceil(1_000_000)
    }
}

/// `512MB` (powers of 1000), `512MiB` (powers of 1024), `536870912`.
fn bytes_of(text: &str) -> usize {
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let factor = match text[digits.len()..].to_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        unit => panic!("'{unit}' is not a unit of size"),
    };
    let number: usize = digits.trim().parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    number * factor
}
