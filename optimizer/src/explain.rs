//! A job graph as text: root first, one line per operator, one line per exchange.

mod stream;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Write};

use thalweg_engine::plan::WindowTime;
use thalweg_engine::plan::{
    Aggregates, Edge, ExchangeMode, HashJoinSpec, JobGraph, JoinFilterSpec, MergeMode, NestedLoopJoinSpec,
    OperatorSpec, Partitioning, VertexId,
};

/// The plan as an indented tree.
pub fn explain(graph: &JobGraph) -> String {
    explain_with(graph, &|_, _| None)
}

/// The plan as an indented tree, with a note under each operator for which `note` (vertex, place in its chain) has one.
pub fn explain_with(graph: &JobGraph, note: &dyn Fn(VertexId, usize) -> Option<String>) -> String {
    let mut text = String::new();
    let mut open: Vec<(VertexId, usize, Option<&Edge>)> = (0..graph.vertices.len())
        .rev()
        .filter(|vertex| graph.outputs_of(*vertex).next().is_none())
        .map(|root| (root, 0, None))
        .collect();
    while let Some((vertex, depth, edge)) = open.pop() {
        let mut depth = depth;
        if let Some(edge) = edge {
            line(&mut text, depth, &exchange(graph, edge));
            depth += 1;
        }
        depth = chain(&mut text, graph, vertex, depth, note);
        let mut inputs: Vec<&Edge> = graph.inputs_of(vertex).collect();
        inputs.sort_by_key(|edge| edge.input);
        open.extend(inputs.into_iter().rev().map(|edge| (edge.from, depth, Some(edge))));
    }
    text
}

fn line(text: &mut String, depth: usize, content: &str) {
    for _ in 0..depth {
        text.push_str("  ");
    }
    text.push_str(content);
    text.push('\n');
}

/// The operators of a vertex, last first; returns the depth below them.
fn chain(
    text: &mut String,
    graph: &JobGraph,
    id: VertexId,
    mut depth: usize,
    note: &dyn Fn(VertexId, usize) -> Option<String>,
) -> usize {
    let vertex = &graph.vertices[id];
    let last = vertex.chain.len().saturating_sub(1);
    for (position, operator) in vertex.chain.iter().enumerate().rev() {
        let mut content = describe(operator);
        if let Some(uid) = vertex.uid(position) {
            let _ = write!(content, " uid={uid}");
        }
        if position == last {
            let _ = write!(content, "  [parallelism {}", vertex.parallelism);
            if let Some(rows) = vertex.estimated_rows {
                let _ = write!(content, ", about {rows} rows");
            }
            content.push(']');
        }
        line(text, depth, &content);
        if let Some(note) = note(id, position) {
            line(text, depth, &format!("  ({note})"));
        }
        depth += 1;
    }
    depth
}

fn exchange(graph: &JobGraph, edge: &Edge) -> String {
    let partitioning = match &edge.partitioning {
        Partitioning::Forward => "Forward".to_string(),
        Partitioning::Hash(keys) => format!("Hash({})", list(keys)),
        Partitioning::Range { keys, .. } => format!("Range({})", debug_list(keys)),
        Partitioning::Broadcast => "Broadcast".to_string(),
        Partitioning::Rebalance => "Rebalance".to_string(),
        Partitioning::Global => "Global".to_string(),
        Partitioning::Custom(_) => "Custom".to_string(),
    };
    let mode = match edge.mode {
        ExchangeMode::Pipelined => "pipelined",
        ExchangeMode::Blocking => "blocking",
    };
    let merge = match edge.merge {
        MergeMode::Arrival => "",
        MergeMode::PerChannel => " kept apart",
    };
    let from = graph.vertices[edge.from].parallelism;
    let to = graph.vertices[edge.to].parallelism;
    format!("Exchange {partitioning} {mode}{merge} {from} -> {to}")
}

fn describe(operator: &OperatorSpec) -> String {
    let name = operator.name();
    match operator {
        OperatorSpec::Scan(scan) => {
            let splits = scan.plan.0.properties().output_partitioning().partition_count();
            let columns: Vec<String> = scan.plan.0.schema().fields().iter().map(|f| f.name().clone()).collect();
            let limit = scan.limit.map(|limit| format!(" limit={limit}")).unwrap_or_default();
            format!(
                "{name} {} [{}] splits={splits}{limit}{}",
                scan.table,
                columns.join(", "),
                pruning(operator)
            )
        }
        OperatorSpec::Filter(filter) => {
            format!("{name} {}{}", filter.predicate, picked(filter.projection.as_deref()))
        }
        OperatorSpec::RuntimeFilter(filter) => {
            let checks = filter.checks.iter().map(|check| format!("#{} {}", check.id, check.key));
            format!("{name} {}", checks.collect::<Vec<_>>().join(", "))
        }
        OperatorSpec::Project(project) => {
            let columns = project.exprs.iter().zip(project.schema.0.fields());
            let columns: Vec<String> = columns
                .map(|(expr, field)| {
                    let text = expr.to_string();
                    let bare = text.rsplit_once('@').map_or(text.as_str(), |(bare, _)| bare);
                    if bare == field.name() {
                        bare.to_string()
                    } else {
                        format!("{text} AS {}", field.name())
                    }
                })
                .collect();
            format!("{name} {}", columns.join(", "))
        }
        OperatorSpec::Expand(expand) => format!("{name} {} grouping sets", expand.projections.len()),
        OperatorSpec::Aggregate(aggregate) => {
            format!(
                "{name} by=[{}] {}",
                list(&aggregate.group_by),
                functions(&aggregate.aggregates)
            )
        }
        OperatorSpec::HashJoin(join) => hash_join(name, join),
        OperatorSpec::NestedLoopJoin(join) => nested_loop_join(name, join),
        OperatorSpec::Sort(sort) => format!("{name} {}{}", debug_list(&sort.keys), fetched(sort.fetch)),
        OperatorSpec::Merge(merge) => format!("{name} {}{}", debug_list(&merge.keys), fetched(merge.fetch)),
        OperatorSpec::Limit(limit) => format!("{name} skip={}{}", limit.skip, fetched(limit.fetch)),
        OperatorSpec::Window(window) => window.label.clone(),
        OperatorSpec::WindowAssign(assign) => {
            let time = match assign.time {
                WindowTime::Event(column) => assign.schema.0.field(column).name(),
                WindowTime::Processing => "processing time",
            };
            format!("{name} {} of {time}", assign.window)
        }
        OperatorSpec::SessionAssign(assign) => format!(
            "{name} gap={} ms of {} by=[{}]",
            assign.gap_ms,
            assign.schema.0.field(assign.time).name(),
            list(&assign.partition_by)
        ),
        OperatorSpec::Wrapped(wrapped) => format!("{name} {}", wrapped.label),
        OperatorSpec::Collect(_) => name.to_string(),
        OperatorSpec::Sink(sink) => format!("{name} {} {:?}", sink.connector, without_secrets(&sink.options)),
        _ => stream::describe(operator).unwrap_or_else(|| name.to_string()),
    }
}

/// The options of a sink as anybody may see them.
fn without_secrets(options: &BTreeMap<String, String>) -> BTreeMap<&str, String> {
    let shown = options.iter().map(|(key, value)| {
        let lower = key.to_lowercase();
        let is_secret = ["password", "secret", "token"].iter().any(|word| lower.contains(word));
        let value = if is_secret {
            "***".to_string()
        } else {
            without_password(value)
        };
        (key.as_str(), value)
    });
    shown.collect()
}

/// A URL `scheme://user:password@host` without its password; any other text as it is.
fn without_password(text: &str) -> String {
    let hidden = || {
        let (scheme, rest) = text.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?;
        let (user, _) = authority.rsplit_once('@')?.0.split_once(':')?;
        let host = &rest[authority.rfind('@')?..];
        Some(format!("{scheme}://{user}:***{host}"))
    };
    hidden().unwrap_or_else(|| text.to_string())
}

/// The condition that lets a scan skip parts of its files.
fn pruning(operator: &OperatorSpec) -> String {
    let OperatorSpec::Scan(scan) = operator else {
        return String::new();
    };
    let plan = format!("{:?}", scan.plan);
    match plan.split_once("predicate=") {
        Some((_, rest)) => {
            let predicate = rest
                .split_once(", pruning_predicate")
                .map_or(rest, |(predicate, _)| predicate);
            format!(" pruned by {}", predicate.lines().next().unwrap_or_default())
        }
        None => String::new(),
    }
}

fn functions(aggregates: &Aggregates) -> String {
    let functions = aggregates.functions.iter().zip(&aggregates.filters);
    let texts: Vec<String> = functions
        .map(|(function, filter)| match filter {
            Some(filter) => format!("{} FILTER ({filter})", function.name()),
            None => function.name().to_string(),
        })
        .collect();
    texts.join(", ")
}

fn hash_join(name: &str, join: &HashJoinSpec) -> String {
    let keys: Vec<String> = join
        .build_keys
        .iter()
        .zip(&join.probe_keys)
        .map(|(build, probe)| format!("{build} = {probe}"))
        .collect();
    let null_aware = if join.null_aware { " null-aware" } else { "" };
    format!(
        "{name} {}{null_aware} on {}{}{}{}",
        join.join_type,
        keys.join(" AND "),
        condition(join.filter.as_ref()),
        picked(join.projection.as_deref()),
        built_filters(join)
    )
}

/// The runtime filters that a join makes, e.g. ` builds #0 o_orderkey@0`.
fn built_filters(join: &HashJoinSpec) -> String {
    let texts: Vec<String> = join
        .runtime_filters
        .iter()
        .map(|filter| format!("#{} {}", filter.id, join.build_keys[filter.key]))
        .collect();
    if texts.is_empty() {
        String::new()
    } else {
        format!(" builds {}", texts.join(", "))
    }
}

fn nested_loop_join(name: &str, join: &NestedLoopJoinSpec) -> String {
    format!(
        "{name} {}{}{}",
        join.join_type,
        condition(join.filter.as_ref()),
        picked(join.projection.as_deref())
    )
}

fn condition(filter: Option<&JoinFilterSpec>) -> String {
    filter
        .map(|filter| format!(" where {}", filter.expr))
        .unwrap_or_default()
}

fn picked(projection: Option<&[usize]>) -> String {
    projection
        .map(|columns| format!(" -> columns {columns:?}"))
        .unwrap_or_default()
}

fn fetched(fetch: Option<usize>) -> String {
    fetch.map(|rows| format!(" fetch={rows}")).unwrap_or_default()
}

fn list(items: &[impl Display]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

fn debug_list(items: &[impl Debug]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let options = [
            ("url", "redis://me:p@ss@host:6379/0"),
            ("password", "pw"),
            ("path", "s3://bucket/a@b:c"),
            ("Kafka.Sasl.Secret", "pw"),
            ("plain", "postgresql://me@host/db"),
        ];
        let options = options.map(|(key, value)| (key.to_string(), value.to_string())).into();
        let shown: Vec<String> = without_secrets(&options).into_values().collect();
        let expected = [
            "***",
            "***",
            "s3://bucket/a@b:c",
            "postgresql://me@host/db",
            "redis://me:***@host:6379/0",
        ];
        assert_eq!(shown, expected);
    }
}
