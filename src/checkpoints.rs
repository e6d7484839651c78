//! Checkpoints of a session's jobs: under which name, where, what they start from, and how a running job is told from outside to
//! take a savepoint.
//!
//! A job keeps its checkpoints in `DIR/NAME`. Beside it, in `DIR/.NAME`, is a lock that a running job holds, so that no two processes
//! run one job, and `requests`: a file there is a request to the running job, the file with its answer appears next to it. Any
//! process that can write there can control the job; there is no server to secure.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use datafusion::datasource::object_store::ObjectStoreUrl;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thalweg_engine::EngineError;
use thalweg_engine::checkpoint::{CheckpointStore, Compression};
use thalweg_engine::exchange::CancelToken;
use thalweg_engine::plan::{JobGraph, OperatorSpec};
use thalweg_engine::runtime::{
    Checkpointing, Environment, JobControl, JobHandle, OpenStore, SavepointEnding, StartFrom, StartState, submit,
};
use thalweg_engine::state::Evolution;
use url::Url;

use crate::checkpoint_settings::CheckpointConfig;
use crate::error::{Error, Result};
use crate::session::Session;

/// How often a running job looks for requests.
const REQUESTS_EVERY: Duration = Duration::from_millis(50);

/// A job that runs: while it lives, no other process runs a job of this name here.
#[derive(Debug)]
struct JobLock {
    /// The lock goes with it.
    _file: File,
    requests: PathBuf,
    /// Held while a request is answered.
    answering: Arc<Mutex<()>>,
}

impl Drop for JobLock {
    fn drop(&mut self) {
        // Whoever has stopped the job waits for the answer; the process may end right after this.
        let _answered = self.answering.lock();
    }
}

/// A request to a running job.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JobRequest {
    /// `savepoint`, `stop`, `drain` or `cancel`.
    pub(crate) action: String,
    /// Where a savepoint goes.
    pub(crate) target: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JobAnswer {
    /// The savepoint's path.
    pub(crate) path: Option<String>,
    /// Why it could not be done.
    pub(crate) error: Option<String>,
}

impl Session {
    /// Starts a streaming job, with checkpoints when a folder for them is set and the job writes to sinks.
    pub(crate) fn start_streaming(&self, graph: JobGraph, mut environment: Environment) -> Result<JobHandle> {
        let config = self.config().checkpoints;
        environment.restart = config.restart_strategy(false);
        let has_sink = |vertex: &thalweg_engine::plan::Vertex| {
            vertex
                .chain
                .iter()
                .any(|operator| matches!(operator, OperatorSpec::Sink(_)))
        };
        let directory = config.directory.clone().filter(|_| graph.vertices.iter().any(has_sink));
        let Some(directory) = directory else {
            if config.recovery_path.is_some() && graph.vertices.iter().any(has_sink) {
                return Err(
                    Error::statement("execution.state-recovery.path is set, but the job takes no checkpoints")
                        .with_remedy(
                            "SET 'execution.checkpointing.dir' = '..' to the folder that its own checkpoints go to",
                        ),
                );
            }
            return Ok(submit(graph, &environment)?);
        };
        let job = config.job_name.clone().unwrap_or_else(|| name_of(&graph));
        let lock = self.lock(&directory, &job)?;
        environment.restart = config.restart_strategy(true);
        environment.wal_directory = local(&directory).map(|path| path.join(format!(".{job}")).join("wal"));
        environment.checkpointing = Some(Checkpointing {
            store: self.open_store(&below(&directory, &job))?,
            options: config.options(),
            start: self.start_from(&config)?,
            open: self.store_opener(&config),
            job: job.clone(),
        });
        let requests = lock
            .as_ref()
            .map(|lock| (lock.requests.clone(), Arc::clone(&lock.answering)));
        let lock = lock.map(Arc::new);
        let alive = lock.as_ref().map(Arc::downgrade);
        environment.keep = lock.map(|lock| lock as _);
        let handle = submit(graph, &environment)?;
        if let (Some(alive), Some(requests)) = (alive, requests) {
            answer_requests(
                alive,
                requests,
                handle.control(),
                handle.canceller(),
                config.savepoint_directory,
            )?;
        }
        Ok(handle)
    }

    /// What the first attempt of a job starts from.
    fn start_from(&self, config: &CheckpointConfig) -> Result<StartFrom> {
        let Some(path) = &config.recovery_path else {
            return Ok(StartFrom::Latest);
        };
        let (store, manifest) = self.open_checkpoint(path)?;
        Ok(StartFrom::State(Box::new(StartState {
            path: path.clone(),
            store,
            manifest,
            allow_dropped: config.ignore_unclaimed,
            evolution: Evolution {
                renamed: config.renamed.clone(),
            },
        })))
    }

    /// The checkpoint or savepoint at a path or URL: a folder of one, or of a job, whose newest is taken.
    pub(crate) fn open_checkpoint(
        &self,
        path: &str,
    ) -> Result<(CheckpointStore, thalweg_engine::checkpoint::manifest::Manifest)> {
        let located = self.open_store(path)?.locate()?;
        for passed in &located.passed_over {
            tracing::warn!(path, passed, "a checkpoint was passed over");
        }
        Ok((located.store, located.manifest))
    }

    /// A store at a path or URL.
    pub(crate) fn open_store(&self, place: &str) -> Result<CheckpointStore> {
        (self.store_opener(&self.config().checkpoints))(place).map_err(Error::from)
    }

    fn store_opener(&self, config: &CheckpointConfig) -> OpenStore {
        let io = self.inner.io.handle().clone();
        let runtime = Arc::clone(self.state().runtime_env());
        let compression = match config.compression.as_str() {
            "lz4" => Compression::Lz4,
            "zstd" => Compression::Zstd,
            _ => Compression::None,
        };
        Arc::new(move |place: &str| {
            let store = match local(place) {
                Some(path) => CheckpointStore::local(&path, io.clone())?,
                None => {
                    let url = Url::parse(place)
                        .map_err(|error| EngineError::Plan(format!("'{place}' is no path and no URL: {error}")))?;
                    let bucket = ObjectStoreUrl::parse(&url[..url::Position::BeforePath])?;
                    let objects = runtime.object_store(bucket)?;
                    let root = object_store::path::Path::from_url_path(url.path())
                        .map_err(|error| EngineError::Plan(format!("the path of {place} cannot be used: {error}")))?;
                    CheckpointStore::open(place, objects, root, io.clone())?
                }
            };
            Ok(store.with_compression(compression))
        })
    }

    /// Makes sure that no other process runs the job; object stores fence by the numbers of checkpoints alone.
    fn lock(&self, directory: &str, job: &str) -> Result<Option<JobLock>> {
        let Some(directory) = local(directory) else {
            return Ok(None);
        };
        let beside = directory.join(format!(".{job}"));
        let requests = beside.join("requests");
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| Error::from(EngineError::Io { path, source })
        };
        fs::create_dir_all(&requests).map_err(io(&requests))?;
        let path = beside.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::statement(format!("job '{job}' runs already, with its checkpoints in {}", directory.display()))
                    .with_remedy("wait for it, cancel it (thalweg cancel), or give this job another name: SET 'pipeline.name' = '..'"));
            }
            Err(fs::TryLockError::Error(source)) => return Err(io(&path)(source)),
        }
        // Requests to an earlier run are not for this one.
        for entry in fs::read_dir(&requests).map_err(io(&requests))?.flatten() {
            let _ = fs::remove_file(entry.path());
        }
        Ok(Some(JobLock {
            _file: file,
            requests,
            answering: Arc::default(),
        }))
    }
}

/// The local folder that a path or `file:` URL names.
pub(crate) fn local(place: &str) -> Option<PathBuf> {
    if let Some(path) = place.strip_prefix("file://") {
        return Some(PathBuf::from(path));
    }
    (!place.contains("://")).then(|| PathBuf::from(place))
}

fn below(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// A job's name after what it writes to.
fn name_of(graph: &JobGraph) -> String {
    let mut names: Vec<String> = Vec::new();
    for operator in graph.vertices.iter().flat_map(|vertex| &vertex.chain) {
        let OperatorSpec::Sink(sink) = operator else { continue };
        let target = ["path", "topic", "table", "table-name", "sink.key-prefix"]
            .iter()
            .find_map(|option| sink.options.get(*option));
        let target = target
            .map_or(sink.connector.as_str(), String::as_str)
            .trim_end_matches('/');
        names.push(target.rsplit('/').next().unwrap_or(target).to_string());
    }
    names.sort();
    let name = format!("insert-into-{}", names.join("-"));
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
                c
            } else {
                '_'
            }
        })
        .take(100)
        .collect()
}

/// Answers requests on a thread of its own, until the job has ended.
#[expect(
    clippy::disallowed_methods,
    reason = "another process writes the requests, and nothing tells of it"
)]
fn answer_requests(
    alive: Weak<JobLock>,
    (requests, answering): (PathBuf, Arc<Mutex<()>>),
    control: JobControl,
    cancel: CancelToken,
    savepoints: Option<String>,
) -> Result<()> {
    let serve = move || {
        loop {
            let held = answering.lock();
            // Looked at while it is held: a job that ends waits for what is being answered.
            if alive.strong_count() == 0 {
                return;
            }
            let files = fs::read_dir(&requests)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "request")) {
                let answer = answer(&path, &control, &cancel, savepoints.as_deref());
                let text = serde_json::to_string(&answer).unwrap_or_default();
                // Written aside first: whoever waits must not read half of it.
                let aside = path.with_extension("writing");
                if fs::write(&aside, text).is_ok() {
                    let _ = fs::rename(&aside, path.with_extension("answer"));
                }
                let _ = fs::remove_file(&path);
            }
            drop(held);
            std::thread::sleep(REQUESTS_EVERY);
        }
    };
    std::thread::Builder::new()
        .name("tw-requests".into())
        .spawn(serve)
        .map(drop)
        .map_err(|source| {
            Error::from(EngineError::Io {
                path: "a thread for requests".into(),
                source,
            })
        })
}

fn answer(path: &Path, control: &JobControl, cancel: &CancelToken, savepoints: Option<&str>) -> JobAnswer {
    let failed = |error: String| JobAnswer {
        path: None,
        error: Some(error),
    };
    let request: JobRequest = match fs::read_to_string(path)
        .map_err(|e| e.to_string())
        .and_then(|text| serde_json::from_str(&text).map_err(|e| format!("the request cannot be read: {e}")))
    {
        Ok(request) => request,
        Err(error) => return failed(error),
    };
    let ending = match request.action.as_str() {
        "cancel" => {
            cancel.cancel();
            return JobAnswer {
                path: None,
                error: None,
            };
        }
        "savepoint" => SavepointEnding::GoOn,
        "stop" => SavepointEnding::Stop,
        "drain" => SavepointEnding::Drain,
        other => return failed(format!("there is no request '{other}'")),
    };
    let Some(target) = request.target.as_deref().or(savepoints) else {
        return failed("the savepoint needs a folder: name one, or SET 'execution.checkpointing.savepoint-dir'".into());
    };
    match control.savepoint(target, ending) {
        Ok(path) => JobAnswer {
            path: Some(path),
            error: None,
        },
        Err(error) => failed(error.to_string()),
    }
}

/// Jobs that keep checkpoints below a folder, and whether they run.
///
/// # Errors
/// When the folder cannot be read.
pub fn jobs_in(directory: &Path) -> std::io::Result<Vec<(String, bool)>> {
    let mut jobs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(job) = name.strip_prefix('.') else { continue };
        let lock = directory.join(&name).join("lock");
        let Ok(file) = File::options().write(true).open(lock) else {
            continue;
        };
        jobs.push((
            job.to_string(),
            matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)),
        ));
    }
    jobs.sort();
    Ok(jobs)
}

/// Asks a running job for something and waits for the answer: the path of a savepoint, where it is one.
///
/// # Errors
/// When no such job runs below the folder, or it cannot do what is asked.
#[expect(
    clippy::disallowed_methods,
    reason = "another process writes the answer, and nothing tells of it"
)]
pub fn ask_job(directory: &Path, job: &str, action: &str, target: Option<&str>) -> Result<Option<String>> {
    let running = jobs_in(directory).map_err(|source| EngineError::Io {
        path: directory.display().to_string(),
        source,
    })?;
    let is_running = || {
        let jobs = jobs_in(directory).unwrap_or_default();
        jobs.iter().any(|(name, runs)| name == job && *runs)
    };
    if !is_running() {
        let names: Vec<&str> = running
            .iter()
            .filter(|(_, runs)| *runs)
            .map(|(name, _)| name.as_str())
            .collect();
        return Err(Error::statement(format!(
            "job '{job}' does not run with checkpoints in {}",
            directory.display()
        ))
        .with_remedy(format!(
            "running there: {}",
            if names.is_empty() {
                "none".into()
            } else {
                names.join(", ")
            }
        )));
    }
    let requests = directory.join(format!(".{job}")).join("requests");
    let base = requests.join(format!("{}-{action}", std::process::id()));
    let request = JobRequest {
        action: action.to_string(),
        target: target.map(absolute),
    };
    let io = |source| {
        Error::from(EngineError::Io {
            path: requests.display().to_string(),
            source,
        })
    };
    let aside = base.with_extension("writing");
    fs::write(&aside, serde_json::to_string(&request).unwrap_or_default()).map_err(io)?;
    fs::rename(&aside, base.with_extension("request")).map_err(io)?;
    let answer = base.with_extension("answer");
    while !answer.exists() {
        if !is_running() && !answer.exists() {
            if action == "cancel" {
                return Ok(None);
            }
            return Err(Error::statement(format!("job '{job}' ended before it answered")));
        }
        std::thread::sleep(REQUESTS_EVERY);
    }
    let text = fs::read_to_string(&answer).map_err(io)?;
    let _ = fs::remove_file(&answer);
    let answer: JobAnswer = serde_json::from_str(&text)
        .map_err(|error| Error::statement(format!("the job's answer cannot be read: {error}")))?;
    match answer.error {
        Some(error) => Err(Error::statement(error)),
        None => Ok(answer.path),
    }
}

/// A target as the running job sees it, which may be in another working folder.
fn absolute(target: &str) -> String {
    match local(target) {
        Some(path) => std::path::absolute(&path).unwrap_or(path).display().to_string(),
        None => target.to_string(),
    }
}
