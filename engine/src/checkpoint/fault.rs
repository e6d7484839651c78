//! Fault points: places around durable steps where a test kills, fails or delays the process.
//!
//! They are compiled in always, so that what is tested is what runs; switched off they cost one relaxed load. The environment
//! variable `THALWEG_FAULT` switches them on: `name:k[:action]`, several with commas between. The `k`-th time (from 1) that point
//! `name` is reached by any thread, the action happens:
//!
//! - none: the process aborts, as by SIGKILL: nothing is flushed, no destructor runs.
//! - `error`: the point returns an error.
//! - `delay-<ms>`: the thread sleeps so long.
//!
//! ```text
//! THALWEG_FAULT=before-manifest:3                     abort before the third manifest is written
//! THALWEG_FAULT=after-upload:1:error,before-sweep:2:delay-500
//! ```
//!
//! A setting that cannot be understood, or names a point that does not exist, makes every point fail: a fault that never comes would
//! be a test that cannot fail.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::data::{EngineError, Result};

/// The environment variable.
pub const VARIABLE: &str = "THALWEG_FAULT";

/// All points.
pub const POINTS: &[&str] = &[
    "before-barrier",
    "after-barrier",
    "before-alignment",
    "after-alignment",
    "before-snapshot",
    "after-snapshot",
    "before-acknowledge",
    "before-commit",
    "after-commit",
    "before-notify",
    "after-notify",
    "before-end",
    "after-restore",
    "before-upload",
    "within-upload",
    "after-upload",
    "before-manifest",
    "after-manifest",
    "before-sweep",
    "within-sweep",
    "after-sweep",
];

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

/// Whether any fault is set; not known before the first point.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
static FAULTS: OnceLock<std::result::Result<Vec<Fault>, String>> = OnceLock::new();

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Error,
    Delay(Duration),
}

/// An action at the `k`-th time that a point is reached.
#[derive(Debug)]
struct Fault {
    point: String,
    k: u64,
    action: Action,
    reached: AtomicU64,
}

/// A place where a fault may happen. `name` is one of [`POINTS`].
///
/// # Errors
/// When the fault that is set for it is an error, or the setting cannot be understood.
#[inline]
pub fn point(name: &str) -> Result<()> {
    if STATE.load(Ordering::Relaxed) == OFF {
        return Ok(());
    }
    reach(name)
}

#[cold]
fn reach(name: &str) -> Result<()> {
    let faults = FAULTS.get_or_init(|| {
        let setting = std::env::var(VARIABLE).unwrap_or_default();
        let faults = parse(&setting, POINTS);
        let is_off = matches!(&faults, Ok(faults) if faults.is_empty());
        STATE.store(if is_off { OFF } else { ON }, Ordering::Relaxed);
        faults
    });
    let faults = faults
        .as_ref()
        .map_err(|what| EngineError::Plan(format!("{VARIABLE}: {what}")))?;
    if !faults.is_empty() && !POINTS.contains(&name) {
        return Err(EngineError::Internal(format!(
            "fault point '{name}' is not in the list"
        )));
    }
    match hit(faults, name) {
        None => Ok(()),
        Some(Action::Abort) => {
            // The last words, for whoever looks why the process died.
            eprintln!("{VARIABLE}: aborting at '{name}'");
            std::process::abort()
        }
        Some(Action::Error) => Err(EngineError::Io {
            path: VARIABLE.into(),
            source: std::io::Error::other(format!("the error that is set for point '{name}'")),
        }),
        Some(Action::Delay(time)) => {
            #[expect(clippy::disallowed_methods, reason = "a delay is what was asked for")]
            std::thread::sleep(time);
            Ok(())
        }
    }
}

/// Counts the visit; what is to happen.
fn hit(faults: &[Fault], name: &str) -> Option<Action> {
    let mut action = None;
    for fault in faults.iter().filter(|fault| fault.point == name) {
        if fault.reached.fetch_add(1, Ordering::Relaxed) + 1 == fault.k {
            action = Some(fault.action);
        }
    }
    action
}

fn parse(setting: &str, points: &[&str]) -> std::result::Result<Vec<Fault>, String> {
    let faults = setting.split(',').map(str::trim).filter(|fault| !fault.is_empty());
    faults.map(|fault| parse_one(fault, points)).collect()
}

fn parse_one(fault: &str, points: &[&str]) -> std::result::Result<Fault, String> {
    let wrong = || format!("'{fault}' is not of the form name:k, name:k:error or name:k:delay-<ms>, with k from 1");
    let mut parts = fault.split(':');
    let (Some(point), Some(k), action, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    if !points.contains(&point) {
        return Err(format!(
            "there is no fault point '{point}'; there are {}",
            points.join(", ")
        ));
    }
    let action = match action {
        None => Action::Abort,
        Some("error") => Action::Error,
        Some(delay) => {
            let ms = delay.strip_prefix("delay-").and_then(|ms| ms.parse().ok());
            Action::Delay(Duration::from_millis(ms.ok_or_else(wrong)?))
        }
    };
    match k.parse() {
        Ok(k) if k > 0 => Ok(Fault {
            point: point.to_string(),
            k,
            action,
            reached: AtomicU64::new(0),
        }),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kth_visit_counts() {
        let faults = parse("before-sweep:2:error, before-sweep:4:delay-250,after-sweep:1", POINTS).unwrap();
        let visits: Vec<_> = (0..5).map(|_| hit(&faults, "before-sweep")).collect();
        let delay = Action::Delay(Duration::from_millis(250));
        assert_eq!(visits, [None, Some(Action::Error), None, Some(delay), None]);
        assert_eq!(hit(&faults, "after-sweep"), Some(Action::Abort));
        assert_eq!(hit(&faults, "before-upload"), None);
        assert!(parse("", POINTS).unwrap().is_empty());
    }

    #[test]
    fn a_setting_that_would_never_fire_is_refused() {
        for bad in [
            "before-sweep",
            "before-sweep:0",
            "before-sweep:x",
            "before-sweep:1:explode",
            "before-sweep:1:delay-",
            "before-sweep:1:error:2",
        ] {
            assert!(parse(bad, POINTS).unwrap_err().contains("not of the form"), "{bad}");
        }
        let error = parse("before-lunch:1", POINTS).unwrap_err();
        assert!(error.contains("no fault point 'before-lunch'"), "{error}");
    }

    #[test]
    fn points_are_told_apart() {
        let mut points = POINTS.to_vec();
        points.sort_unstable();
        points.dedup();
        assert_eq!(points.len(), POINTS.len());
    }
}
