//! Time as operators see it: never the system's clock directly.

mod clock;

pub use clock::{Clock, ManualClock, SystemClock, Timer};
