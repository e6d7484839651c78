//! The matrix: operators x budgets x data shapes.

use crate::cell::{Cell, HEADROOM_BYTES, Report, mode_is};
use crate::operators::{AGGREGATIONS, JOINS, NESTED_LOOPS, Operator, SORTS, UNIONS, WINDOWS};
use crate::relation::{Shape, prepare};

const MB: usize = 1 << 20;
const BUDGETS: [usize; 3] = [8 * MB, 32 * MB, 128 * MB];
/// How many of the tightest cells are shown.
const SHOWN: usize = 5;

/// How much data a cell has, in MB: several times the small budget everywhere, more than the medium one in half of the
/// cells, more than the large one where it is cheap. `index` tells the operators of a test apart.
fn data_mb(shape: Shape, budget: usize, index: usize) -> u64 {
    let is_first = index == 0;
    let is_chosen = shape != Shape::ManyColumns && (shape as usize + index).is_multiple_of(2);
    let times = if mode_is("full") { 4 } else { 1 };
    times
        * match (budget / MB, shape) {
            (8, _) => 40,
            (32, Shape::WideRows | Shape::WideKeys) => 80,
            (32, _) if is_first => 80,
            (32, _) if is_chosen => 40,
            (32, _) => 16,
            (_, Shape::WideRows) if is_first => 192,
            (_, Shape::Uniform) if is_first => 192,
            _ => 8,
        }
}

struct Failures {
    cells: usize,
    failed: Vec<String>,
    reports: Vec<(String, Report)>,
}

impl Failures {
    fn new() -> Self {
        prepare();
        Self {
            cells: 0,
            failed: Vec::new(),
            reports: Vec::new(),
        }
    }

    fn run(&mut self, cell: Cell) {
        let is_chosen = |text: String| cell.to_string().contains(&text);
        if !std::env::var("THALWEG_MATRIX_CELL").map_or(true, is_chosen) {
            return;
        }
        let (report, result) = cell.run();
        self.cells += 1;
        if std::env::var_os("THALWEG_MATRIX_TRACE").is_some() {
            println!("{cell}: {report:?} {result:?}");
        }
        if let Err(error) = result {
            self.failed.push(format!("{cell}: {error}"));
        }
        self.reports.push((cell.to_string(), report));
    }

    /// Shows the tightest cells, and fails with all cells that failed.
    fn end(mut self, name: &str) {
        let seconds: f64 = self
            .reports
            .iter()
            .map(|(_, report)| report.elapsed.as_secs_f64())
            .sum();
        let spilled = self
            .reports
            .iter()
            .filter(|(_, report)| report.spilled.files > 0)
            .count();
        println!(
            "{name}: {} cells, {} failed, {spilled} seen to spill, {seconds:.1} s",
            self.cells,
            self.failed.len()
        );
        self.reports
            .sort_by_key(|(_, report)| std::cmp::Reverse(report.excess.worst_bytes));
        for (cell, report) in self.reports.iter().take(SHOWN) {
            println!(
                "  {:5.1} MB beyond what was reserved: {cell}",
                report.excess.worst_bytes as f64 / MB as f64
            );
        }
        self.reports
            .sort_by_key(|(_, report)| std::cmp::Reverse(report.over_budget_bytes));
        let over = |(_, report): &&(String, Report)| report.over_budget_bytes > 0;
        for (cell, report) in self.reports.iter().filter(over).take(SHOWN) {
            println!(
                "  {:5.1} MB reserved beyond the budget: {cell}",
                report.over_budget_bytes as f64 / MB as f64
            );
        }
        self.reports
            .sort_by_key(|(_, report)| std::cmp::Reverse(report.elapsed));
        for (cell, report) in self.reports.iter().take(SHOWN) {
            println!("  {:5.2} s: {cell}", report.elapsed.as_secs_f64());
        }
        let headroom = HEADROOM_BYTES >> 20;
        assert!(
            self.failed.is_empty(),
            "{name}: {} of {} cells failed (headroom {headroom} MB):\n{}",
            self.failed.len(),
            self.cells,
            self.failed.join("\n")
        );
    }
}

/// All shapes and budgets; parallelism 1 for one shape in three.
fn all_cells(name: &str, operators: &'static [Operator]) {
    let _alone = crate::alone();
    let mut failures = Failures::new();
    let mut seed = 0;
    for budget_bytes in BUDGETS {
        for (index, operator) in operators.iter().enumerate() {
            for shape in Shape::ALL {
                seed += 1;
                failures.run(Cell {
                    operator,
                    shape,
                    budget_bytes,
                    parallelism: if seed % 3 == 0 { 1 } else { 2 },
                    blocking: false,
                    data_bytes: data_mb(shape, budget_bytes, index) << 20,
                    seed,
                });
            }
        }
    }
    failures.end(name);
}

#[test]
fn sorts() {
    all_cells("sorts", SORTS);
}

#[test]
fn joins() {
    all_cells("joins", JOINS);
}

#[test]
fn nested_loops() {
    all_cells("nested loops", NESTED_LOOPS);
}

#[test]
fn aggregations() {
    all_cells("aggregations", AGGREGATIONS);
}

#[test]
fn windows() {
    all_cells("windows", WINDOWS);
}

#[test]
fn unions() {
    all_cells("unions", UNIONS);
}

/// The first operator of each kind with exchanges that hold everything.
#[test]
fn blocking_exchanges() {
    let _alone = crate::alone();
    let mut failures = Failures::new();
    let mut seed = 1000;
    for budget_bytes in BUDGETS {
        let kinds = [SORTS, JOINS, NESTED_LOOPS, AGGREGATIONS, WINDOWS, UNIONS];
        for (index, operators) in kinds.iter().enumerate() {
            for shape in Shape::ALL {
                seed += 1;
                failures.run(Cell {
                    operator: &operators[0],
                    shape,
                    budget_bytes,
                    parallelism: 2,
                    blocking: true,
                    data_bytes: data_mb(shape, budget_bytes, index + 1) << 20,
                    seed,
                });
            }
        }
    }
    failures.end("blocking exchanges");
}
