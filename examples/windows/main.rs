//! One short program per kind of window, each with its answer: `cargo run --example windows [KIND]`.

mod count;
mod cumulate;
mod delta;
mod flights;
mod global;
mod landmark;
mod punctuation;
mod session;
mod sliding;
mod tumbling;

type Example = fn() -> thalweg::Result<()>;

const EXAMPLES: [(&str, Example); 9] = [
    ("tumbling", tumbling::run),
    ("sliding", sliding::run),
    ("cumulate", cumulate::run),
    ("session", session::run),
    ("count", count::run),
    ("global", global::run),
    ("punctuation", punctuation::run),
    ("landmark", landmark::run),
    ("delta", delta::run),
];

fn main() -> thalweg::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, run) in EXAMPLES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run()?;
            println!("{name}: as expected");
        }
    }
    Ok(())
}
