//! Planning deep statements.

use crate::error::{Error, Result};
use crate::script::tokenize;

/// The planner calls itself for each level of nesting, and a chain of ANDs nests as deeply as it is long.
const PLANNER_STACK_BYTES: usize = 1 << 30;
/// Deeper statements are refused: the plan is also walked and dropped on threads with stacks of the usual size.
const MOST_LEVELS: usize = 5_000;

/// How many levels the operators of a statement nest, at most: chains within one expression, summed over the open
/// parentheses, and the set operations.
fn nesting(sql: &str) -> Result<usize> {
    const OPERATORS: [&str; 9] = ["AND", "OR", "+", "-", "*", "/", "||", "%", "JOIN"];
    const SETS: [&str; 3] = ["UNION", "INTERSECT", "EXCEPT"];
    const ENDS: [&str; 12] = [
        ",", ";", "SELECT", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "ON", "VALUES", "THEN", "ELSE",
    ];
    let (mut chains, mut sets, mut deepest) = (vec![0usize], 0, 0);
    for token in tokenize(sql)? {
        let word = token.token.to_string().to_uppercase();
        let is_one_of = |words: &[&str]| words.contains(&word.as_str());
        match word.as_str() {
            "(" => chains.push(1),
            ")" if chains.len() > 1 => drop(chains.pop()),
            _ if is_one_of(&SETS) => sets += 1,
            _ => {
                if let Some(chain) = chains.last_mut() {
                    *chain = if is_one_of(&ENDS) {
                        0
                    } else {
                        *chain + usize::from(is_one_of(&OPERATORS))
                    };
                }
            }
        }
        deepest = deepest.max(chains.iter().sum::<usize>() + sets);
    }
    Ok(deepest)
}

/// Runs `plan` on a thread with a stack for deep statements; only the pages that it touches cost memory. A statement
/// too short to be deep runs where it is.
pub(crate) fn on_large_stack<T: Send>(sql: &str, plan: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    const SHORT_BYTES: usize = 4096;
    if sql.len() < SHORT_BYTES {
        return plan();
    }
    let levels = nesting(sql)?;
    if levels > MOST_LEVELS {
        return Err(Error::statement(format!(
            "the statement nests {levels} levels deep, more than {MOST_LEVELS}"
        ))
        .with_remedy("split it, or put the values into a table and join with it"));
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("tw-plan".into())
            .stack_size(PLANNER_STACK_BYTES)
            .spawn_scoped(scope, plan)
            .map_err(|source| thalweg_engine::EngineError::Io {
                path: "a thread for planning".into(),
                source,
            })?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
