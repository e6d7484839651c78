//! Signals: who is cancelled, and when the process gives up.
//!
//! A thread waits for signals and asks [`decide`], a pure function, what to do. Cancelling only sets things in
//! motion: the statement's thread sees its query end, cleans up by dropping, and asks [`Interrupts::signal`] why.

use std::sync::Arc;
use std::thread;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thalweg::Canceller;

use super::failure::{Failure, Result};

/// What a signal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The whole script.
    Script,
    /// With Ctrl-C the running query; the shell lives on.
    Shell,
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// Note the signal and cancel what runs.
    Cancel,
    /// Leave the process now.
    Exit,
    /// Nothing to do.
    Ignore,
}

/// What to do about `signal`, given whether statements are running and which signal came before.
fn decide(mode: Mode, busy: bool, before: Option<i32>, signal: i32) -> Action {
    match (mode, signal) {
        (Mode::Shell, SIGINT) if busy => Action::Cancel,
        (Mode::Shell, SIGINT) => Action::Ignore,
        (Mode::Shell, _) if busy && matches!(before, None | Some(SIGINT)) => Action::Cancel,
        (Mode::Script, _) if busy && before.is_none() => Action::Cancel,
        _ => Action::Exit,
    }
}

#[derive(Default)]
struct State {
    busy: bool,
    signal: Option<i32>,
    canceller: Option<Canceller>,
}

/// The process's signals, shared by the waiting thread and the one that runs statements.
pub(crate) struct Interrupts {
    mode: Mode,
    state: Mutex<State>,
    /// How the terminal was before line editing, to be put back when leaving from the prompt.
    terminal: Mutex<Option<Termios>>,
}

impl Interrupts {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process.
    pub(crate) fn install(mode: Mode) -> Result<Arc<Self>> {
        let refused = |e: std::io::Error| Failure::error(format!("cannot handle signals: {e}"), "check the ulimits");
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(refused)?;
        let terminal = if mode == Mode::Shell {
            tcgetattr(std::io::stdin()).ok()
        } else {
            None
        };
        let interrupts = Arc::new(Self {
            mode,
            state: Mutex::default(),
            terminal: Mutex::new(terminal),
        });
        let shared = interrupts.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || signals.forever().for_each(|signal| shared.receive(signal)))
            .map_err(refused)?;
        Ok(interrupts)
    }

    fn receive(&self, signal: i32) {
        let mut state = self.state.lock();
        match decide(self.mode, state.busy, state.signal, signal) {
            Action::Ignore => {}
            Action::Cancel => {
                // A Ctrl-C after a request to terminate does not take that request back.
                if !matches!(state.signal, Some(SIGTERM | SIGHUP)) {
                    state.signal = Some(signal);
                }
                if let Some(canceller) = &state.canceller {
                    canceller.cancel();
                }
            }
            Action::Exit => {
                if let Some(terminal) = self.terminal.lock().as_ref() {
                    let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, terminal);
                }
                signal_hook::low_level::exit(128 + signal);
            }
        }
    }

    /// Statements run until the guard is dropped: signals cancel instead of ending the process.
    pub(crate) fn busy(&self) -> Busy<'_> {
        *self.state.lock() = State {
            busy: true,
            ..State::default()
        };
        Busy(self)
    }

    /// The signal that came since [`busy`](Self::busy), if any.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.state.lock().signal
    }

    /// Fails when a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        self.signal()
            .map_or(Ok(()), |signal| Err(Failure::Interrupted { signal }))
    }

    /// The query that signals cancel from now on; at once, when one has come already.
    pub(crate) fn watch(&self, canceller: &Canceller) {
        let mut state = self.state.lock();
        if state.signal.is_some() {
            canceller.cancel();
        }
        state.canceller = Some(canceller.clone());
    }

    /// No query runs now.
    pub(crate) fn unwatch(&self) {
        self.state.lock().canceller = None;
    }
}

/// While it lives, statements are running.
pub(crate) struct Busy<'a>(&'a Interrupts);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.busy = false;
        state.canceller = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_cancelled_first_and_left_at_the_second_signal() {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            assert_eq!(decide(Mode::Script, true, None, signal), Action::Cancel);
            assert_eq!(decide(Mode::Script, true, Some(SIGINT), signal), Action::Exit);
            assert_eq!(decide(Mode::Script, false, None, signal), Action::Exit);
        }
    }

    #[test]
    fn ctrl_c_never_ends_the_shell_but_termination_does() {
        assert_eq!(decide(Mode::Shell, true, None, SIGINT), Action::Cancel);
        assert_eq!(decide(Mode::Shell, true, Some(SIGINT), SIGINT), Action::Cancel);
        assert_eq!(decide(Mode::Shell, false, None, SIGINT), Action::Ignore);
        assert_eq!(decide(Mode::Shell, false, None, SIGTERM), Action::Exit);
        assert_eq!(decide(Mode::Shell, true, Some(SIGINT), SIGTERM), Action::Cancel);
        assert_eq!(decide(Mode::Shell, true, Some(SIGTERM), SIGTERM), Action::Exit);
        assert_eq!(decide(Mode::Shell, true, Some(SIGTERM), SIGINT), Action::Cancel);
    }
}
