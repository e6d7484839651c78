//! Real servers for tests: found, started on loopback with a port and a folder of their own, stopped when dropped.
//! `scripts/services_debian.sh` fetches them.

pub(crate) mod kafka;
pub(crate) mod postgres;
pub(crate) mod redis;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// `found`, or a loud word that the test has not run. With `CI` set that is a failure.
pub(crate) fn required<T>(service: &str, found: Option<T>) -> Option<T> {
    if found.is_none() {
        let message = format!("NOT TESTED: there is no {service}; run scripts/services_debian.sh, or install it");
        assert!(std::env::var_os("CI").is_none(), "{message}");
        // Past the harness, which keeps to itself what a test that passes prints.
        let _ = writeln!(std::io::stderr(), "{message}");
    }
    found
}

/// Where the packages are unpacked.
pub(crate) fn unpacked() -> PathBuf {
    if let Some(folder) = std::env::var_os("THALWEG_SERVICES_DIR") {
        return folder.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |target| root.join(target));
    target.join("services")
}

/// The program `name`: unpacked, in one of `folders`, or on the PATH.
pub(crate) fn program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = unpacked().join("usr/bin");
    let mut all = folders
        .iter()
        .cloned()
        .chain([unpacked])
        .chain(std::env::split_paths(&path));
    all.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()))
}

/// Starts a server on a port that is free; a few times, as somebody may take the port in between.
pub(crate) fn on_free_port(start: impl Fn(u16) -> Result<Server, String>) -> (Server, u16) {
    let mut failure = String::new();
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        match start(port) {
            Ok(server) => return (server, port),
            Err(why) => failure = why,
        }
    }
    panic!("{failure}");
}

/// A command whose libraries may be unpacked, as `user` if one is given (root only). It ends when the test does.
pub(crate) fn command(program: &Path, user: Option<&str>) -> Command {
    let setpriv = self::program("setpriv", &[]);
    let mut command = match (&setpriv, user) {
        (Some(setpriv), user) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "TERM"]);
            if let Some(user) = user {
                command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
            }
            command.arg("--").arg(program);
            command
        }
        (None, None) => Command::new(program),
        (None, Some(_)) => panic!("setpriv is needed to run {} as another user", program.display()),
    };
    command.env("LD_LIBRARY_PATH", libraries()).env("LC_ALL", "C");
    command
}

fn libraries() -> OsString {
    let root = unpacked();
    let mut folders = vec![];
    for parent in [root.join("usr/lib"), root.join("lib")] {
        let triples = std::fs::read_dir(&parent).into_iter().flatten().flatten();
        folders.extend(triples.map(|entry| entry.path()).filter(|path| path.is_dir()));
        folders.push(parent);
    }
    std::env::join_paths(folders).unwrap()
}

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    /// The signal that ends it at once, its children, too.
    kill: &'static str,
}

impl Server {
    /// Starts a server and waits until it says `ready` in its output.
    pub(crate) fn start(mut command: Command, ready: &'static str, kill: &'static str) -> Result<Self, String> {
        let spawned = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = spawned.map_err(|e| format!("{command:?}: {e}"))?;
        let (sender, said) = mpsc::channel();
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as _),
            child.stderr.take().map(|out| Box::new(out) as _),
        ];
        for output in outputs.into_iter().flatten() {
            let sender = sender.clone();
            // Reads on to the end: a full pipe would stop the server.
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        drop(sender);
        let server = Self { child, kill };
        let mut lines = Vec::new();
        loop {
            match said.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(ready) => return Ok(server),
                Ok(line) => lines.push(line),
                Err(_) => return Err(format!("{command:?} did not start: {}", lines.join("\n"))),
            }
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        // Its number may be somebody else's once it has ended.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args([self.kill, &pid]).status();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a client prints.
pub(crate) fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_string()
}
