//! The examples in `examples/windows` give the answers that they promise.

#[path = "../../examples/windows/count.rs"]
mod count;
#[path = "../../examples/windows/cumulate.rs"]
mod cumulate;
#[path = "../../examples/windows/delta.rs"]
mod delta;
#[path = "../../examples/windows/flights.rs"]
mod flights;
#[path = "../../examples/windows/global.rs"]
mod global;
#[path = "../../examples/windows/landmark.rs"]
mod landmark;
#[path = "../../examples/windows/punctuation.rs"]
mod punctuation;
#[path = "../../examples/windows/session.rs"]
mod session;
#[path = "../../examples/windows/sliding.rs"]
mod sliding;
#[path = "../../examples/windows/tumbling.rs"]
mod tumbling;

#[test]
fn count_windows() {
    count::run().unwrap();
}

#[test]
fn cumulate_windows() {
    cumulate::run().unwrap();
}

#[test]
fn delta_windows() {
    delta::run().unwrap();
}

#[test]
fn global_windows() {
    global::run().unwrap();
}

#[test]
fn landmark_windows() {
    landmark::run().unwrap();
}

#[test]
fn punctuation_windows() {
    punctuation::run().unwrap();
}

#[test]
fn session_windows() {
    session::run().unwrap();
}

#[test]
fn sliding_windows() {
    sliding::run().unwrap();
}

#[test]
fn tumbling_windows() {
    tumbling::run().unwrap();
}
