//! A PostgreSQL cluster of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Server, command, on_free_port, output, program, required, unpacked};

const USER: &str = "thalweg";

/// A PostgreSQL server.
pub(crate) struct Postgres {
    server: Server,
    folder: TempDir,
    port: u16,
    programs: Programs,
    user: Option<String>,
}

struct Programs {
    initdb: PathBuf,
    postgres: PathBuf,
    psql: PathBuf,
}

/// Where Debian puts the programs: a folder for each version; the newest first.
fn folders() -> Vec<PathBuf> {
    let parents = [
        unpacked().join("usr/lib/postgresql"),
        PathBuf::from("/usr/lib/postgresql"),
    ];
    let versions = parents
        .iter()
        .flat_map(|parent| std::fs::read_dir(parent).into_iter().flatten().flatten());
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    folders
}

/// PostgreSQL does not run as root: somebody else then.
fn somebody() -> Option<String> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_string())
    };
    if id(&["-u"]).as_deref() != Some("0") {
        return None;
    }
    Some(
        id(&["-u", "postgres"])
            .or_else(|| id(&["-u", "nobody"]))
            .unwrap_or_else(|| "65534".into()),
    )
}

impl Postgres {
    /// Starts one; `None` when there is none on this machine.
    pub(crate) fn start() -> Option<Self> {
        let folders = folders();
        let find = |name| program(name, &folders);
        let programs = match (find("initdb"), find("postgres"), find("psql")) {
            (Some(initdb), Some(postgres), Some(psql)) => Some(Programs { initdb, postgres, psql }),
            _ => None,
        };
        let programs = required("PostgreSQL", programs)?;
        let (folder, user) = (tempfile::tempdir().unwrap(), somebody());
        if let Some(user) = &user {
            let uid = user.parse().unwrap();
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(uid)).unwrap();
        }
        let mut initdb = command(&programs.initdb, user.as_deref());
        initdb
            .current_dir(folder.path())
            .arg("-D")
            .arg(folder.path().join("data"));
        initdb.args(["-U", USER, "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"]);
        output(initdb);
        let run = |port| run(&programs.postgres, folder.path(), port, user.as_deref());
        let (server, port) = on_free_port(run);
        Some(Self {
            server,
            folder,
            port,
            programs,
            user,
        })
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("postgresql://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again where it was, after a kill.
    pub(crate) fn restart(&mut self) {
        self.server = run(
            &self.programs.postgres,
            self.folder.path(),
            self.port,
            self.user.as_deref(),
        )
        .unwrap();
    }

    /// What statements print: rows as lines, columns with `|` between.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut psql = command(&self.programs.psql, None);
        let port = self.port.to_string();
        psql.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            USER,
            "-d",
            "postgres",
            "-X",
            "-q",
            "-A",
            "-t",
        ]);
        psql.args(["-v", "ON_ERROR_STOP=1", "-P", "null=NULL", "-c", sql])
            .env("PGTZ", "UTC");
        output(psql)
    }
}

fn run(program: &Path, folder: &Path, port: u16, user: Option<&str>) -> Result<Server, String> {
    let mut server = command(program, user);
    server
        .current_dir(folder)
        .arg("-D")
        .arg(folder.join("data"))
        .args(["-p", &port.to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        "jit=off",
        "logging_collector=off",
        "shared_buffers=16MB",
        "max_connections=30",
    ] {
        server.args(["-c", setting]);
    }
    // Ends its children, too.
    Server::start(server, "ready to accept connections", "-QUIT")
}
