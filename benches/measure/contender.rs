//! Contenders take turns; what each run and each median is.

use serde_json::{Value, json};

/// What all contenders do.
pub(crate) struct Workload {
    pub(crate) name: String,
    /// Rows of the input.
    pub(crate) rows: u64,
    /// Bytes of the input, as records.
    pub(crate) bytes: u64,
    /// What else there is to know in order to repeat it.
    pub(crate) params: Value,
}

/// One engine. `run` gives `seconds`, or `failed` with the reason, and what else it knows.
pub(crate) struct Contender<'a> {
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn() -> Value + 'a>,
}

/// Runs every contender `repeats` times in turn and prints a JSON line for each run, then one for each median. The
/// first contender is what the others are compared with. Whether all its runs went well.
pub(crate) fn compare(workload: &Workload, contenders: &[Contender<'_>], repeats: usize) -> bool {
    let mut runs: Vec<Vec<Value>> = vec![Vec::new(); contenders.len()];
    for round in 1..=repeats {
        for (contender, runs) in contenders.iter().zip(&mut runs) {
            let told = (contender.run)();
            println!("{}", line(workload, contender, &told, json!({"run": round})));
            runs.push(told);
        }
    }
    let ours = median(&runs[0], "seconds");
    for (contender, runs) in contenders.iter().zip(&runs) {
        let good = runs.iter().filter(|run| run["seconds"].is_number()).count();
        let all = |name: &str| {
            let numbers = runs.iter().filter_map(|run| run[name].as_f64());
            numbers.collect::<Vec<f64>>()
        };
        let seconds = median(runs, "seconds");
        let told = json!({
            "seconds": seconds,
            "peak_rss_mb": all("peak_rss_mb").into_iter().reduce(f64::max).map(|mb| mb as u64),
            "spilled_bytes": median(runs, "spilled_bytes").map(|bytes| bytes as u64),
        });
        let ratio = ours.zip(seconds).map(|(ours, theirs)| round_to(theirs / ours, 3));
        let more = json!({
            "median_of": good,
            "failed_runs": runs.len() - good,
            "seconds_min": all("seconds").into_iter().reduce(f64::min),
            "seconds_max": all("seconds").into_iter().reduce(f64::max),
            "times_ours": ratio,
        });
        println!("{}", line(workload, contender, &told, more));
    }
    runs[0].iter().all(|run| run["seconds"].is_number())
}

fn line(workload: &Workload, contender: &Contender<'_>, told: &Value, more: Value) -> Value {
    let seconds = told["seconds"].as_f64();
    let per_second = |count: u64| seconds.map(|seconds| (count as f64 / seconds).round() as u64);
    let mut line = json!({
        "workload": workload.name,
        "engine": contender.name,
        "seconds": seconds.map(|seconds| round_to(seconds, 3)),
        "rows_per_s": per_second(workload.rows),
        "bytes_per_s": per_second(workload.bytes),
        "peak_rss_mb": told["peak_rss_mb"],
        "spilled_bytes": told["spilled_bytes"],
    });
    for name in ["version", "failed"] {
        if !told[name].is_null() {
            line[name] = told[name].clone();
        }
    }
    for (name, value) in more.as_object().into_iter().flatten() {
        line[name] = match value.as_f64() {
            Some(number) if value.is_f64() => json!(round_to(number, 3)),
            _ => value.clone(),
        };
    }
    line["params"] = workload.params.clone();
    line
}

fn median(runs: &[Value], name: &str) -> Option<f64> {
    let mut numbers: Vec<f64> = runs.iter().filter_map(|run| run[name].as_f64()).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

fn round_to(number: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (number * factor).round() / factor
}
