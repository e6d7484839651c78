//! Which module of `engine/src` may use which.

use super::{none, with_extension};

/// The modules of `engine/src` from the bottom up: each may use itself and those before it.
const ENGINE_MODULES: &[&str] = &[
    "data",
    "plan",
    "time",
    "state",
    "checkpoint",
    "exchange",
    "operator",
    "runtime",
];

/// The text without comments and the contents of strings; lines stay where they are.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else {
            string_length(rest)
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

/// The length of the string literal at the start of `rest`; 0 when there is none.
fn string_length(rest: &str) -> usize {
    let raw = rest.strip_prefix('r').unwrap_or(rest);
    let hashes = raw.len() - raw.trim_start_matches('#').len();
    if raw.len() < rest.len() && raw[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let body = 2 + hashes;
        return rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len());
    }
    if !rest.starts_with('"') {
        return 0;
    }
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The code before the test module at the end of a file.
fn without_tests(code: &str) -> &str {
    for (at, mark) in code.match_indices("#[cfg(test)]") {
        let item = code[at + mark.len()..].trim_start();
        let head = item.split(['{', ';']).next().unwrap_or_default();
        if head.starts_with("mod ") && item[head.len()..].starts_with('{') {
            return &code[..at];
        }
    }
    code
}

/// Where each first name after `prefix` begins: one, or each of a `{..}` group.
fn first_names(code: &str, prefix: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let after = at + prefix.len();
        if !code[after..].starts_with('{') {
            starts.push(after);
            continue;
        }
        let mut depth = 0;
        for (offset, c) in code[after..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && (c == '{' || c == ',') {
                let item = after + offset + 1;
                starts.push(item + code[item..].len() - code[item..].trim_start().len());
            }
        }
    }
    starts
}

/// Uses of modules that come later in [`ENGINE_MODULES`] than the file's own.
fn upward_uses(path: &str, text: &str) -> Vec<String> {
    let Some(inside) = path.strip_prefix("engine/src/") else {
        return Vec::new();
    };
    let steps: Vec<&str> = inside
        .trim_end_matches(".rs")
        .split('/')
        .filter(|step| *step != "mod")
        .collect();
    let module = steps[0];
    if module == "lib" || steps.contains(&"tests") {
        return Vec::new();
    }
    let Some(own) = ENGINE_MODULES.iter().position(|name| *name == module) else {
        return vec![format!(
            "{path}: module '{module}' has no place in ENGINE_MODULES of tests/architecture/modules.rs"
        )];
    };
    let code = code_only(text);
    let code = without_tests(&code);
    let from_root = "super::".repeat(steps.len());
    let mut complaints = Vec::new();
    for start in first_names(code, "crate::")
        .into_iter()
        .chain(first_names(code, &from_root))
    {
        let name: String = code[start..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if ENGINE_MODULES
            .iter()
            .position(|module| *module == name)
            .is_some_and(|other| other > own)
        {
            let line = code[..start].matches('\n').count() + 1;
            complaints.push(format!("{path}:{line}: '{module}' uses '{name}', which comes after it"));
        }
    }
    complaints
}

#[test]
fn modules_of_the_engine_use_earlier_ones_only() {
    let complaints: Vec<String> = with_extension(".rs")
        .iter()
        .flat_map(|(path, text)| upward_uses(path, text))
        .collect();
    let order = ENGINE_MODULES.join(", ");
    none(
        &complaints,
        &format!("The order is {order}. Move what is shared down, or define a trait below and implement it above."),
    );
}

#[test]
fn a_use_of_a_later_module_is_found() {
    let complain = |path: &str, text: &str| upward_uses(path, text);
    assert_eq!(
        complain(
            "engine/src/plan/specs.rs",
            "use crate::data::Batch;\nuse crate::operator::Scan;\n"
        ),
        ["engine/src/plan/specs.rs:2: 'plan' uses 'operator', which comes after it"]
    );
    let group = "use crate::{\n    data::{Batch, Result},\n    runtime::submit,\n};\n";
    assert_eq!(
        complain("engine/src/exchange/mod.rs", group),
        ["engine/src/exchange/mod.rs:3: 'exchange' uses 'runtime', which comes after it"]
    );
    assert_eq!(
        complain("engine/src/data/mod.rs", "fn f() -> super::plan::JobGraph { todo!() }").len(),
        1
    );
    assert_eq!(
        complain("engine/src/data/hash.rs", "use super::super::plan::JobGraph;").len(),
        1
    );
    assert_eq!(
        complain("engine/src/time.rs", "fn f() { crate::state::open() }").len(),
        1
    );
    assert!(complain("engine/src/shared/mod.rs", "")[0].contains("no place in ENGINE_MODULES"));
}

#[test]
fn comments_strings_and_tests_are_not_uses() {
    for allowed in [
        "//! See [`crate::runtime`].\nuse crate::data::Batch;",
        "/* crate::runtime::x */",
        "const A: &str = \"\\\" crate::runtime::x\";\nconst B: &str = r#\"\" crate::runtime::x\"#;\nconst C: char = '\"';",
        "#[cfg(test)]\nmod tests {\n    use crate::runtime::submit;\n}\n",
        "use super::clock::Clock;",
    ] {
        assert_eq!(
            upward_uses("engine/src/plan/codec.rs", allowed),
            Vec::<String>::new(),
            "{allowed}"
        );
    }
    let quote = "const C: char = '\"';\nuse crate::runtime::submit; // \"";
    assert_eq!(
        upward_uses("engine/src/plan/codec.rs", quote).len(),
        1,
        "a quote as a character opens no string"
    );
    assert!(upward_uses("engine/src/data/tests.rs", "use crate::runtime::submit;").is_empty());
}
