//! What needs no broker: options and what they refuse.
