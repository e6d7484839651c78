//! A `thalweg` process that is started, killed and asked for things.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_thalweg");
/// Longer than anything takes on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// A script that runs again and again until it ends by itself.
pub(crate) struct Job {
    pub(crate) script: PathBuf,
    pub(crate) name: String,
    pub(crate) checkpoints: PathBuf,
    pub(crate) parallelism: usize,
}

/// A running process; killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    /// Bytes of the log that earlier runs wrote.
    before: usize,
    /// Whether an earlier run left a checkpoint.
    goes_on: bool,
}

impl Job {
    /// Starts the job; `fault` is what `THALWEG_FAULT` is set to.
    pub(crate) fn start(&self, fault: Option<&str>) -> Running {
        let log = self.script.with_extension("log");
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(BINARY);
        command
            .args(["run", "--memory", "256MB", "--format", "json", "--parallelism"])
            .arg(self.parallelism.to_string())
            .arg(&self.script)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .env_remove("THALWEG_FAULT");
        if let Some(fault) = fault {
            command.env("THALWEG_FAULT", fault);
        }
        Running {
            before: usize::try_from(std::fs::metadata(&log).unwrap().len()).unwrap(),
            goes_on: self.has_checkpoint(),
            child: command.spawn().unwrap(),
            log,
        }
    }

    /// Whether a checkpoint is complete.
    fn has_checkpoint(&self) -> bool {
        let checkpoints = std::fs::read_dir(self.checkpoints.join(&self.name));
        let mut folders = checkpoints.into_iter().flatten().flatten().map(|entry| entry.path());
        folders.any(|folder| folder.join("MANIFEST").exists())
    }

    /// Runs the job and kills it at an instant that `random` chooses: mostly while it works, sometimes before.
    pub(crate) fn run_and_kill(&self, random: &mut StdRng) {
        let mut running = self.start(None);
        let while_it_works = random.random_bool(0.8);
        if while_it_works {
            running.wait_until_it_works(self);
        }
        let most_ms = if while_it_works { 700 } else { 1500 };
        std::thread::sleep(Duration::from_millis(random.random_range(0..most_ms)));
        let log = running.log();
        assert!(running.kill(), "it ended by itself: {log}");
    }

    /// Runs another command of `thalweg` for this job.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY)
            .args([arguments[0], &self.name, "--dir"])
            .arg(&self.checkpoints)
            .args(&arguments[1..])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Completes what is open and waits for the end; the savepoint's path.
    pub(crate) fn drain(&self, running: Running, target: &Path) -> String {
        self.end(running, target, &["stop", "--drain"])
    }

    /// Takes a savepoint, says nothing more and waits for the end; the savepoint's path.
    pub(crate) fn stop(&self, running: Running, target: &Path) -> String {
        self.end(running, target, &["stop"])
    }

    fn end(&self, mut running: Running, target: &Path, request: &[&str]) -> String {
        let savepoint = self.savepoint(&mut running, target, request);
        assert!(running.ended().success(), "{}", running.log());
        savepoint
    }

    /// Takes a savepoint as soon as the job takes requests; its path.
    pub(crate) fn savepoint(&self, running: &mut Running, target: &Path, request: &[&str]) -> String {
        let target = ["--target", target.to_str().unwrap()];
        let start = Instant::now();
        let asked = loop {
            let asked = self.ask(&[request, &target].concat());
            // It may not have come so far yet as to take requests.
            if asked.status.success() || !running.is_alive() || start.elapsed() > PATIENCE {
                break asked;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert!(asked.status.success(), "{text}\n{}", running.log());
        String::from_utf8(asked.stdout).unwrap().trim().to_string()
    }
}

impl Running {
    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it goes on from a checkpoint, or, where there was none, until it has taken one.
    pub(crate) fn wait_until_it_works(&mut self, job: &Job) {
        let start = Instant::now();
        while self.log()[self.before..].matches("goes on from checkpoint").count() == 0
            && (self.goes_on || !job.has_checkpoint())
        {
            assert!(self.is_alive(), "it ended by itself: {}", self.log());
            assert!(start.elapsed() < PATIENCE, "it does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it as SIGKILL does; whether it was still alive.
    pub(crate) fn kill(mut self) -> bool {
        let alive = self.is_alive();
        let _ = self.child.kill();
        let _ = self.child.wait();
        alive
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
