//! A Redis that keeps what it is told when it is killed.

use std::path::PathBuf;

use tempfile::TempDir;

use super::{Server, command, on_free_port, output, program, required};

/// A Redis server.
pub(crate) struct Redis {
    server: Server,
    folder: TempDir,
    port: u16,
    server_program: PathBuf,
    client_program: PathBuf,
}

impl Redis {
    /// Starts one; `None` when there is none on this machine.
    pub(crate) fn start() -> Option<Self> {
        let programs = program("redis-server", &[]).zip(program("redis-cli", &[]));
        let (server_program, client_program) = required("redis-server", programs)?;
        let folder = tempfile::tempdir().unwrap();
        let (server, port) = on_free_port(|port| run(&server_program, &folder, port));
        Some(Self {
            server,
            folder,
            port,
            server_program,
            client_program,
        })
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again where it was, after a kill.
    pub(crate) fn restart(&mut self) {
        self.server = run(&self.server_program, &self.folder, self.port).unwrap();
    }

    /// What `redis-cli` prints.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let mut client = command(&self.client_program, None);
        client
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(arguments);
        output(client)
    }
}

fn run(program: &std::path::Path, folder: &TempDir, port: u16) -> Result<Server, String> {
    let mut server = command(program, None);
    server
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
        .arg(folder.path());
    server.args([
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--daemonize",
        "no",
    ]);
    Server::start(server, "eady to accept connections", "-KILL")
}
