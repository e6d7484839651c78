//! A name for one run of a sink that no other run has.

use std::hash::{BuildHasher, RandomState};

/// Sixteen hexadecimal digits. The names of files and of transactions are made of it: a job that goes on after a restart has
/// the name that it had, and must not meet what its earlier runs left.
pub(crate) fn run_token() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same() {
        let tokens: std::collections::HashSet<String> = (0..1000).map(|_| run_token()).collect();
        assert_eq!(tokens.len(), 1000);
        assert!(tokens.iter().all(|token| token.len() == 16));
    }
}
