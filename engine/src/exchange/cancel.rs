//! The signal that ends a job early, on every thread that waits for something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::data::{EngineError, Result};

type Hook = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Inner {
    cancelled: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
    notify: Notify,
}

/// Shared by all parts of a job; clones are the same token.
#[derive(Clone, Default)]
pub struct CancelToken {
    inner: Arc<Inner>,
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels: every waiting thread wakes up and sees it.
    pub fn cancel(&self) {
        if !self.inner.cancelled.swap(true, Ordering::SeqCst) {
            self.inner.notify.notify_waiters();
            for hook in self.inner.hooks.lock().iter() {
                hook();
            }
        }
    }

    /// Whether the job is to end.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Relaxed)
    }

    /// `Err(Cancelled)` when the job is to end.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(EngineError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Calls `hook` when the token is cancelled, at once if it is already.
    pub fn on_cancel(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.inner.hooks.lock().push(Box::new(hook));
        if self.is_cancelled()
            && let Some(hook) = self.inner.hooks.lock().last()
        {
            hook();
        }
    }

    /// Waits until the token is cancelled.
    pub async fn cancelled(&self) {
        loop {
            let notified = self.inner.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.inner.cancelled.load(Ordering::SeqCst) {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_run_once_also_when_they_come_late() {
        let token = CancelToken::new();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (early, late) = (Arc::clone(&calls), Arc::clone(&calls));
        token.on_cancel(move || early.lock().push("early"));
        token.cancel();
        token.cancel();
        token.on_cancel(move || late.lock().push("late"));
        assert_eq!(*calls.lock(), ["early", "late"]);
        assert!(matches!(token.check(), Err(EngineError::Cancelled)));
    }
}
