//! The naive join that both joins are tested against: row by row, by the definition of each join type.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{JoinSide, JoinType};
use datafusion::logical_expr::Operator as SqlOperator;
use datafusion::physical_expr::expressions::{binary, col};

use crate::data::Batch;
use crate::plan::{JoinFilterSpec, ScalarExpr};

/// All of them.
pub(in crate::operator) const JOIN_TYPES: [JoinType; 10] = [
    JoinType::Inner,
    JoinType::Left,
    JoinType::Right,
    JoinType::Full,
    JoinType::LeftSemi,
    JoinType::LeftAnti,
    JoinType::RightSemi,
    JoinType::RightAnti,
    JoinType::LeftMark,
    JoinType::RightMark,
];

/// The schema of a join's full output.
pub(in crate::operator) fn full_schema(join_type: JoinType, build: &Schema, probe: &Schema) -> Schema {
    let nullable = |schema: &Schema| -> Vec<Field> {
        schema
            .fields()
            .iter()
            .map(|field| field.as_ref().clone().with_nullable(true))
            .collect()
    };
    let mark = Field::new("mark", DataType::Boolean, false);
    Schema::new(match join_type {
        JoinType::LeftSemi | JoinType::LeftAnti => nullable(build),
        JoinType::RightSemi | JoinType::RightAnti => nullable(probe),
        JoinType::LeftMark => [nullable(build), vec![mark]].concat(),
        JoinType::RightMark => [nullable(probe), vec![mark]].concat(),
        _ => [nullable(build), nullable(probe)].concat(),
    })
}

/// `build.v < probe.v`, with the probe's column first so that order matters.
pub(in crate::operator) fn less_filter(build: &SchemaRef, probe: &SchemaRef) -> JoinFilterSpec {
    let (b, p) = (build.index_of("b_v").unwrap(), probe.index_of("p_v").unwrap());
    let schema = Arc::new(Schema::new(vec![probe.field(p).clone(), build.field(b).clone()]));
    let expr = binary(
        col("b_v", &schema).unwrap(),
        SqlOperator::Lt,
        col("p_v", &schema).unwrap(),
        &schema,
    )
    .unwrap();
    JoinFilterSpec {
        expr: ScalarExpr::new(expr, Arc::clone(&schema)),
        columns: vec![(JoinSide::Right, p), (JoinSide::Left, b)],
        schema: schema.into(),
    }
}

/// The rows as text, sorted.
pub(in crate::operator) fn texts(batches: &[Batch]) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in batches {
        rows.extend(unsorted(batch));
    }
    rows.sort();
    rows
}

fn unsorted(batch: &Batch) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL");
    let formatters: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
        .collect();
    let row = |i| {
        formatters
            .iter()
            .map(|f| f.value(i).to_string())
            .collect::<Vec<_>>()
            .join("|")
    };
    (0..batch.num_rows()).map(row).collect()
}

/// The naive join: row by row, by the definition of each join type.
pub(in crate::operator) fn naive(
    join_type: JoinType,
    build: &[Vec<String>],
    probe: &[Vec<String>],
    widths: (usize, usize),
    projection: Option<&[usize]>,
    matches: impl Fn(usize, usize) -> bool,
) -> Vec<String> {
    let null = |width: usize| vec!["NULL".to_string(); width];
    let build_hit = |b: usize| (0..probe.len()).any(|p| matches(b, p));
    let probe_hit = |p: usize| (0..build.len()).any(|b| matches(b, p));
    let mut rows: Vec<Vec<String>> = Vec::new();
    if matches!(
        join_type,
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
    ) {
        for (b, left) in build.iter().enumerate() {
            for p in (0..probe.len()).filter(|p| matches(b, *p)) {
                rows.push([left.clone(), probe[p].clone()].concat());
            }
        }
        if matches!(join_type, JoinType::Left | JoinType::Full) {
            let missing = (0..build.len()).filter(|b| !build_hit(*b));
            rows.extend(missing.map(|b| [build[b].clone(), null(widths.1)].concat()));
        }
        if matches!(join_type, JoinType::Right | JoinType::Full) {
            let missing = (0..probe.len()).filter(|p| !probe_hit(*p));
            rows.extend(missing.map(|p| [null(widths.0), probe[p].clone()].concat()));
        }
    }
    for (b, row) in build.iter().enumerate() {
        match join_type {
            JoinType::LeftSemi if build_hit(b) => rows.push(row.clone()),
            JoinType::LeftAnti if !build_hit(b) => rows.push(row.clone()),
            JoinType::LeftMark => rows.push([row.clone(), vec![build_hit(b).to_string()]].concat()),
            _ => {}
        }
    }
    for (p, row) in probe.iter().enumerate() {
        match join_type {
            JoinType::RightSemi if probe_hit(p) => rows.push(row.clone()),
            JoinType::RightAnti if !probe_hit(p) => rows.push(row.clone()),
            JoinType::RightMark => rows.push([row.clone(), vec![probe_hit(p).to_string()]].concat()),
            _ => {}
        }
    }
    let project = |row: Vec<String>| match projection {
        None => row.join("|"),
        Some(columns) => columns
            .iter()
            .map(|column| row[*column].clone())
            .collect::<Vec<_>>()
            .join("|"),
    };
    let mut rows: Vec<String> = rows.into_iter().map(project).collect();
    rows.sort();
    rows
}

/// The cells of each row, as text.
pub(in crate::operator) fn cells(batches: &[Batch]) -> Vec<Vec<String>> {
    let column = |batch: &Batch, column: usize| unsorted(&batch.project(&[column]).unwrap());
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> = (0..batch.num_columns()).map(|c| column(batch, c)).collect();
        rows.extend((0..batch.num_rows()).map(|i| columns.iter().map(|c| c[i].clone()).collect::<Vec<_>>()));
    }
    rows
}
