//! Runs a job graph the slow way, one operator at a time through DataFusion's operators: checks what the lowering says, not
//! how the runtime does it. Every batch is rebuilt with its declared schema, which must hold.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::common::NullEquality;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode as DataFusionMode, PhysicalGroupBy};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::utils::{ColumnIndex, JoinFilter};
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, collect};
use thalweg_engine::data::{hash_rows, subtask_of_hash};
use thalweg_engine::plan::{
    AggregateMode, AggregateSpec, HashJoinSpec, JobGraph, JoinFilterSpec, NestedLoopJoinSpec, OperatorSpec,
    Partitioning, ScalarExpr, SchemaSpec, SortKey, VertexId, WindowSpec, WrappedSpec,
};

type Batches = Vec<RecordBatch>;

/// The rows that the last vertex collects.
pub(crate) async fn interpret(graph: &JobGraph, task: Arc<TaskContext>) -> Batches {
    let mut outputs: Vec<Vec<Batches>> = vec![Vec::new(); graph.vertices.len()];
    let mut last = 0;
    for id in graph.topological_order().unwrap() {
        let vertex = &graph.vertices[id];
        let inputs = route(graph, id, &outputs);
        for (subtask, mut inputs) in inputs.into_iter().enumerate() {
            let mut schema = inputs.first().map(|(schema, _)| schema.clone());
            for operator in &vertex.chain {
                let next = run(operator, inputs, (subtask, vertex.parallelism), &task).await;
                schema = Some(next.0.clone());
                inputs = vec![next];
            }
            assert_eq!(
                schema.unwrap().fields(),
                vertex.output_schema.0.fields(),
                "declared by {}",
                vertex.name
            );
            outputs[id].push(inputs.pop().unwrap().1);
        }
        last = id;
    }
    assert_eq!(graph.vertices[last].parallelism, 1);
    outputs[last].concat()
}

/// What every subtask of `id` gets: one entry per input of its head.
fn route(graph: &JobGraph, id: VertexId, outputs: &[Vec<Batches>]) -> Vec<Vec<(SchemaRef, Batches)>> {
    let parallelism = graph.vertices[id].parallelism;
    let is_join = matches!(
        graph.vertices[id].chain[0],
        OperatorSpec::HashJoin(_) | OperatorSpec::NestedLoopJoin(_)
    );
    let mut inputs: Vec<Vec<(SchemaRef, Batches)>> = vec![Vec::new(); parallelism];
    for edge in graph.inputs_of(id) {
        let port = if is_join { edge.input } else { 0 };
        let schema = graph.vertices[edge.from].output_schema.0.clone();
        for ports in &mut inputs {
            while ports.len() <= port {
                ports.push((schema.clone(), Vec::new()));
            }
        }
        for ports in &mut inputs {
            ports[port].0 = schema.clone();
        }
        for (from, batches) in outputs[edge.from].iter().enumerate() {
            for (number, batch) in batches.iter().enumerate() {
                assert_eq!(batch.schema().fields(), schema.fields());
                for (to, part) in partition(&edge.partitioning, batch, from, number, parallelism) {
                    inputs[to][port].1.push(part);
                }
            }
        }
    }
    inputs
}

fn partition(
    how: &Partitioning,
    batch: &RecordBatch,
    from: usize,
    number: usize,
    to: usize,
) -> Vec<(usize, RecordBatch)> {
    match how {
        Partitioning::Forward => vec![(from, batch.clone())],
        Partitioning::Broadcast => (0..to).map(|subtask| (subtask, batch.clone())).collect(),
        Partitioning::Rebalance => vec![((from + number) % to, batch.clone())],
        Partitioning::Global => vec![(0, batch.clone())],
        Partitioning::Range { .. } | Partitioning::Custom(_) => unreachable!("not lowered"),
        Partitioning::Hash(keys) => {
            let columns: Vec<_> = evaluate(keys, batch);
            let mut hashes = Vec::new();
            hash_rows(&columns, batch.num_rows(), &mut hashes).unwrap();
            let targets: Vec<usize> = hashes.iter().map(|hash| subtask_of_hash(*hash, 128, to)).collect();
            (0..to)
                .map(|subtask| {
                    let rows = targets.iter().enumerate().filter(|(_, target)| **target == subtask);
                    let rows = UInt32Array::from_iter_values(rows.map(|(row, _)| row as u32));
                    (subtask, take_record_batch(batch, &rows).unwrap())
                })
                .collect()
        }
    }
}

fn evaluate(exprs: &[ScalarExpr], batch: &RecordBatch) -> Vec<arrow::array::ArrayRef> {
    exprs
        .iter()
        .map(|expr| expr.expr.evaluate(batch).unwrap().into_array(batch.num_rows()).unwrap())
        .collect()
}

fn declare(batches: Batches, schema: &SchemaSpec) -> (SchemaRef, Batches) {
    let declared = batches.into_iter().map(|batch| {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(schema.0.clone(), batch.columns().to_vec(), &options).unwrap()
    });
    (schema.0.clone(), declared.collect())
}

fn memory(schema: &SchemaRef, batches: &Batches) -> Arc<dyn ExecutionPlan> {
    MemorySourceConfig::try_new_exec(std::slice::from_ref(batches), schema.clone(), None).unwrap()
}

async fn run(
    operator: &OperatorSpec,
    mut inputs: Vec<(SchemaRef, Batches)>,
    (subtask, parallelism): (usize, usize),
    task: &Arc<TaskContext>,
) -> (SchemaRef, Batches) {
    match operator {
        OperatorSpec::Scan(scan) => {
            let splits = scan.plan.0.properties().output_partitioning().partition_count();
            let mut batches = Vec::new();
            for split in (subtask..splits).step_by(parallelism) {
                let stream = scan.plan.0.execute(split, task.clone()).unwrap();
                batches.extend(datafusion::physical_plan::common::collect(stream).await.unwrap());
            }
            let schema = scan.plan.0.schema();
            (schema.clone(), limit(batches, &schema, 0, scan.limit))
        }
        OperatorSpec::HashJoin(join) => hash_join(join, &inputs, task).await,
        OperatorSpec::NestedLoopJoin(join) => nested_loop_join(join, &inputs, task).await,
        other => {
            assert_eq!(inputs.len(), 1, "{} has one input", other.name());
            let (schema, batches) = inputs.pop().unwrap();
            run_one(other, schema, batches, task).await
        }
    }
}

async fn run_one(
    operator: &OperatorSpec,
    schema: SchemaRef,
    batches: Batches,
    task: &Arc<TaskContext>,
) -> (SchemaRef, Batches) {
    match operator {
        OperatorSpec::Filter(filter) => {
            let exec = FilterExec::try_new(filter.predicate.expr.clone(), memory(&schema, &batches)).unwrap();
            let kept = collect(Arc::new(exec), task.clone()).await.unwrap();
            match &filter.projection {
                Some(columns) => (
                    Arc::new(schema.project(columns).unwrap()),
                    kept.iter().map(|batch| batch.project(columns).unwrap()).collect(),
                ),
                None => (schema, kept),
            }
        }
        // May hand on everything: whether it comes in time is left to chance.
        OperatorSpec::RuntimeFilter(_) => (schema, batches),
        OperatorSpec::Project(project) => (
            project.schema.0.clone(),
            batches
                .iter()
                .map(|batch| compute(&project.exprs, &project.schema, batch))
                .collect(),
        ),
        OperatorSpec::Expand(expand) => {
            let sets = batches.iter().flat_map(|batch| {
                expand
                    .projections
                    .iter()
                    .map(|exprs| compute(exprs, &expand.schema, batch))
            });
            (expand.schema.0.clone(), sets.collect())
        }
        OperatorSpec::Aggregate(aggregate) => run_aggregate(aggregate, &schema, &batches, task).await,
        OperatorSpec::Sort(sort) => (
            schema.clone(),
            sorted(&sort.keys, sort.fetch, &schema, &batches, task).await,
        ),
        OperatorSpec::Merge(merge) => (
            schema.clone(),
            sorted(&merge.keys, merge.fetch, &schema, &batches, task).await,
        ),
        OperatorSpec::Limit(spec) => (schema.clone(), limit(batches, &schema, spec.skip, spec.fetch)),
        OperatorSpec::Window(WindowSpec { plan, .. }) | OperatorSpec::Wrapped(WrappedSpec { plan, .. }) => {
            let plan = plan.0.clone().transform_up(|node| {
                if !node.children().is_empty() {
                    return Ok(Transformed::no(node));
                }
                // The window operators look at the order that the placeholder promised.
                let order = node.properties().output_ordering().cloned();
                let source = MemorySourceConfig::try_new(std::slice::from_ref(&batches), schema.clone(), None)?;
                let source = source.try_with_sort_information(order.into_iter().collect())?;
                Ok(Transformed::yes(Arc::new(DataSourceExec::new(Arc::new(source)))))
            });
            let plan: Arc<dyn ExecutionPlan> = plan.unwrap().data;
            (plan.schema(), collect(plan, task.clone()).await.unwrap())
        }
        OperatorSpec::Collect(spec) => declare(batches, &spec.schema),
        OperatorSpec::Sink(_) => {
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            let count = Arc::new(UInt64Array::from(vec![rows as u64])) as _;
            let batch = RecordBatch::try_from_iter_with_nullable([("count", count, false)]).unwrap();
            (batch.schema(), vec![batch])
        }
        OperatorSpec::Scan(_) | OperatorSpec::HashJoin(_) | OperatorSpec::NestedLoopJoin(_) => unreachable!(),
        other => unimplemented_operator(other),
    }
}

fn compute(exprs: &[ScalarExpr], schema: &SchemaSpec, batch: &RecordBatch) -> RecordBatch {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.0.clone(), evaluate(exprs, batch), &options).unwrap()
}

async fn sorted(
    keys: &[SortKey],
    fetch: Option<usize>,
    schema: &SchemaRef,
    batches: &Batches,
    task: &Arc<TaskContext>,
) -> Batches {
    let sort = SortExec::new(SortKey::to_ordering(keys).unwrap(), memory(schema, batches)).with_fetch(fetch);
    collect(Arc::new(sort), task.clone()).await.unwrap()
}

fn limit(batches: Batches, schema: &SchemaRef, skip: usize, fetch: Option<usize>) -> Batches {
    let all = concat_batches(schema, &batches).unwrap();
    let skip = skip.min(all.num_rows());
    let left = all.num_rows() - skip;
    vec![all.slice(skip, fetch.unwrap_or(left).min(left))]
}

async fn run_aggregate(
    spec: &AggregateSpec,
    schema: &SchemaRef,
    batches: &Batches,
    task: &Arc<TaskContext>,
) -> (SchemaRef, Batches) {
    let mode = match spec.mode {
        AggregateMode::Partial => DataFusionMode::Partial,
        AggregateMode::Final => DataFusionMode::Final,
        AggregateMode::Single => DataFusionMode::Single,
    };
    let names = spec.schema.0.fields().iter().map(|field| field.name().clone());
    let exprs: Vec<_> = spec.group_by.iter().map(|expr| expr.expr.clone()).zip(names).collect();
    let groups = if exprs.is_empty() {
        PhysicalGroupBy::default()
    } else {
        PhysicalGroupBy::new_single(exprs)
    };
    let raw = &spec.aggregates;
    let exec = AggregateExec::try_new(
        mode,
        groups,
        raw.functions.clone(),
        raw.filters.clone(),
        memory(schema, batches),
        raw.input.clone(),
    )
    .unwrap();
    let rows = collect(Arc::new(exec), task.clone()).await.unwrap();
    declare(rows, &spec.schema)
}

fn condition(filter: &Option<JoinFilterSpec>, flip: bool) -> Option<JoinFilter> {
    filter.as_ref().map(|filter| {
        let columns = filter.columns.iter().map(|(side, index)| ColumnIndex {
            index: *index,
            side: if flip { side.negate() } else { *side },
        });
        JoinFilter::new(filter.expr.expr.clone(), columns.collect(), filter.schema.0.clone())
    })
}

async fn hash_join(
    spec: &HashJoinSpec,
    inputs: &[(SchemaRef, Batches)],
    task: &Arc<TaskContext>,
) -> (SchemaRef, Batches) {
    let build = memory(&inputs[0].0, &inputs[0].1);
    let probe = memory(&inputs[1].0, &inputs[1].1);
    assert_eq!(inputs[0].0.fields(), spec.build_schema.0.fields());
    assert_eq!(inputs[1].0.fields(), spec.probe_schema.0.fields());
    let keys = spec.build_keys.iter().zip(&spec.probe_keys);
    let on: Vec<_> = keys
        .map(|(build, probe)| (build.expr.clone(), probe.expr.clone()))
        .collect();
    let nulls = if spec.null_equals_null {
        NullEquality::NullEqualsNull
    } else {
        NullEquality::NullEqualsNothing
    };
    // DataFusion knows NOT IN only with the subquery on the right.
    let (left, right, on, join_type) = if spec.null_aware {
        let flipped = on.into_iter().map(|(build, probe)| (probe, build)).collect();
        (probe, build, flipped, spec.join_type.swap())
    } else {
        (build, probe, on, spec.join_type)
    };
    let filter = condition(&spec.filter, spec.null_aware);
    let mode = PartitionMode::CollectLeft;
    let exec = HashJoinExec::try_new(left, right, on, filter, &join_type, None, mode, nulls, spec.null_aware).unwrap();
    let joined = collect(Arc::new(exec), task.clone()).await.unwrap();
    declare(pick(joined, spec.projection.as_deref()), &spec.schema)
}

async fn nested_loop_join(
    spec: &NestedLoopJoinSpec,
    inputs: &[(SchemaRef, Batches)],
    task: &Arc<TaskContext>,
) -> (SchemaRef, Batches) {
    let build = memory(&inputs[0].0, &inputs[0].1);
    let probe = memory(&inputs[1].0, &inputs[1].1);
    let filter = condition(&spec.filter, false);
    let exec = NestedLoopJoinExec::try_new(build, probe, filter, &spec.join_type, None).unwrap();
    let joined = collect(Arc::new(exec), task.clone()).await.unwrap();
    declare(pick(joined, spec.projection.as_deref()), &spec.schema)
}

fn pick(batches: Batches, columns: Option<&[usize]>) -> Batches {
    match columns {
        Some(columns) => batches.iter().map(|batch| batch.project(columns).unwrap()).collect(),
        None => batches,
    }
}

fn unimplemented_operator(operator: &OperatorSpec) -> ! {
    panic!("{} is not of a batch job", operator.name())
}
