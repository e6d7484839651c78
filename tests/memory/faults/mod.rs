//! What must hold when spilling goes wrong.
