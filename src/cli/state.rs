//! `thalweg state inspect`: what a checkpoint or savepoint consists of, without the job that wrote it.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::SchemaRef;
use thalweg::engine::checkpoint::manifest::{CheckpointKind, Manifest, OperatorState, StoredScope, TableState};
use thalweg::engine::checkpoint::{CheckpointStore, Located, StoredTable};
use thalweg::engine::data::batch_bytes;
use thalweg::engine::state::key_groups;
use thalweg::engine::{self, EngineError};
use tokio::runtime::Runtime;

use super::encode::{self, Encoder, Summary};
use super::failure::{Failure, Result};
use super::options::{Format, InspectArgs};
use super::run::{terminal_width, write_out};

/// Threads that read for this one.
const IO_THREADS: usize = 2;

/// Shows what was asked for.
pub(crate) fn inspect(args: &InspectArgs) -> Result<()> {
    let runtime = runtime()?;
    let found = CheckpointStore::at(&args.path, runtime.handle().clone()).map_err(failure)?;
    let found = found.locate().map_err(failure)?;
    for reason in &found.passed_over {
        warn(reason);
    }
    let chosen = choose(&found.manifest, args)?;
    if args.rows.is_some() {
        return show_rows(&found, &chosen, args);
    }
    if args.format == Format::Table {
        write_out(headline(&found).as_bytes())?;
    }
    let shown = match args.key_groups {
        true => groups(&found.store, &found.manifest, &chosen)?,
        false => overview(&found.store, &chosen)?,
    };
    let mut output = Output::new(args.format, &shown.schema(), None)?;
    output.batch(&shown)?;
    output.end()
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(IO_THREADS).enable_all().build();
    built.map_err(|e| Failure::error(format!("cannot start threads: {e}"), "check the limits of this account"))
}

/// What the engine says, in one line of cause and one of remedy.
fn failure(error: EngineError) -> Failure {
    match &error {
        EngineError::Plan(text) | EngineError::BadInput(text) => match text.rsplit_once("; ") {
            Some((cause, remedy)) => Failure::error(cause, remedy),
            None => thalweg::Error::from(error).into(),
        },
        _ => thalweg::Error::from(error).into(),
    }
}

/// If stderr is gone, there is nobody left to tell.
fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "warning: {text}");
}

/// An operator, and one of its tables if it has any.
type Chosen<'a> = (&'a OperatorState, Option<&'a TableState>);

/// The operators and tables that the arguments let through.
fn choose<'a>(manifest: &'a Manifest, args: &InspectArgs) -> Result<Vec<Chosen<'a>>> {
    let is_meant = |operator: &&OperatorState| {
        let wanted = args.operator.as_deref();
        wanted.is_none_or(|wanted| operator.id == wanted || operator.name == wanted)
    };
    let operators: Vec<&OperatorState> = manifest.operators.iter().filter(is_meant).collect();
    if let (Some(wanted), true) = (&args.operator, operators.is_empty()) {
        let ids = manifest.operators.iter().map(|operator| operator.id.as_str());
        return Err(Failure::error(
            format!("there is no operator '{wanted}' in checkpoint {}", manifest.checkpoint),
            format!("the operators are: {}", list(ids)),
        ));
    }
    let all = operators
        .iter()
        .flat_map(|operator| operator.tables.iter().map(move |table| (*operator, Some(table))));
    let Some(wanted) = &args.table else {
        let without = operators.iter().filter(|operator| operator.tables.is_empty());
        return Ok(all.chain(without.map(|operator| (*operator, None))).collect());
    };
    let names: Vec<&str> = all
        .clone()
        .filter_map(|(_, table)| Some(table?.name.as_str()))
        .collect();
    let chosen: Vec<Chosen> = all
        .filter(|(_, table)| table.is_some_and(|table| table.name == *wanted))
        .collect();
    match chosen.is_empty() {
        true => Err(Failure::error(
            format!("there is no table '{wanted}' in checkpoint {}", manifest.checkpoint),
            format!("the tables are: {}", list(names.into_iter())),
        )),
        false => Ok(chosen),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.dedup();
    match names.is_empty() {
        true => "none".into(),
        false => names.join(", "),
    }
}

fn headline(found: &Located) -> String {
    let manifest = &found.manifest;
    let kind = match manifest.kind {
        CheckpointKind::Checkpoint => "checkpoint",
        CheckpointKind::Savepoint => "savepoint",
    };
    let finished = if manifest.finished { ", all input read" } else { "" };
    format!(
        "{kind} {} of job '{}'{finished}: {} bytes in {} files, {} key groups\n{}\n",
        manifest.checkpoint,
        manifest.job,
        manifest.bytes(),
        manifest.files().into_iter().filter(|file| !file.is_empty()).count(),
        manifest.max_parallelism,
        found.url
    )
}

/// A row per table.
fn overview(store: &CheckpointStore, chosen: &[Chosen]) -> Result<RecordBatch> {
    let operator = |of: fn(&OperatorState) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(
            chosen.iter().map(|(operator, _)| of(operator)),
        ))
    };
    let text = |of: &dyn Fn(&TableState) -> String| -> ArrayRef {
        Arc::new(chosen.iter().map(|(_, table)| table.map(of)).collect::<StringArray>())
    };
    let number = |of: &dyn Fn(&TableState) -> u64| -> ArrayRef {
        Arc::new(chosen.iter().map(|(_, table)| table.map(of)).collect::<UInt64Array>())
    };
    let schemas = chosen.iter().map(|(_, table)| match table {
        Some(table) => Ok(store.stored_table(table).map_err(failure)?.map(|table| columns(&table))),
        None => Ok(None),
    });
    let schemas: StringArray = schemas.collect::<Result<Vec<_>>>()?.into_iter().collect();
    let parallelism = chosen.iter().map(|(operator, _)| operator.parallelism as u64);
    let finished: BooleanArray = chosen.iter().map(|(operator, _)| Some(operator.finished)).collect();
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("operator", operator(|operator| &operator.id), false),
        ("name", operator(|operator| &operator.name), false),
        (
            "parallelism",
            Arc::new(UInt64Array::from_iter_values(parallelism)) as ArrayRef,
            false,
        ),
        ("finished", Arc::new(finished) as ArrayRef, false),
        ("table", text(&|table| table.name.clone()), true),
        ("scope", text(&|table| scope(table).to_string()), true),
        ("version", number(&|table| u64::from(table.version)), true),
        ("unique", number(&|table| table.unique as u64), true),
        ("runs", number(&|table| table.runs.len() as u64), true),
        ("rows", number(&|table| sum(table, |part| part.rows)), true),
        ("deleted", number(&|table| sum(table, |part| part.deleted)), true),
        (
            "bytes",
            number(&|table| sum(table, |part| part.length + part.deleted_length)),
            true,
        ),
        ("columns", Arc::new(schemas) as ArrayRef, true),
    ]);
    Ok(batch?)
}

fn scope(table: &TableState) -> &'static str {
    match table.scope {
        StoredScope::Keyed => "keyed",
        StoredScope::Union => "union",
        StoredScope::Broadcast => "broadcast",
    }
}

fn sum(table: &TableState, of: fn(&engine::checkpoint::manifest::StoredPart) -> u64) -> u64 {
    table.runs.iter().flat_map(|run| &run.parts).map(of).sum()
}

fn columns(table: &StoredTable) -> String {
    let fields = table.spec.schema.fields().iter();
    let fields: Vec<String> = fields
        .map(|field| format!("{} {}", field.name(), field.data_type()))
        .collect();
    fields.join(", ")
}

/// All rows of a table, the newest of each key.
fn rows_of(
    store: &CheckpointStore,
    manifest: &Manifest,
    operator: &OperatorState,
    table: &StoredTable,
) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    let mut restored = store.restored(manifest, operator, 0, 1).map_err(failure)?;
    let rows = restored.take(&table.spec).map_err(failure)?;
    Ok(rows.map(|batch| batch.map_err(failure)))
}

/// A row per key group that has rows.
fn groups(store: &CheckpointStore, manifest: &Manifest, chosen: &[Chosen]) -> Result<RecordBatch> {
    let (mut operators, mut tables) = (Vec::new(), Vec::new());
    let (mut numbers, mut rows, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for (operator, table) in chosen
        .iter()
        .filter_map(|(operator, table)| Some((*operator, (*table)?)))
    {
        let Some(stored) = store.stored_table(table).map_err(failure)? else {
            continue;
        };
        if table.scope != StoredScope::Keyed {
            continue;
        }
        let Some(keys) = &stored.keys else {
            let of = format!("table '{}' of operator '{}'", table.name, operator.id);
            warn(&format!(
                "the key of {of} is computed by the program, so its key groups cannot be told"
            ));
            continue;
        };
        let mut counts = vec![(0u64, 0f64); manifest.max_parallelism as usize];
        for batch in rows_of(store, manifest, operator, &stored)? {
            let batch = batch?;
            let share = batch_bytes(&batch) as f64 / batch.num_rows().max(1) as f64;
            for group in key_groups(keys, &batch).map_err(failure)? {
                let (rows, bytes) = &mut counts[group as usize];
                *rows += 1;
                *bytes += share;
            }
        }
        for (group, (count, size)) in counts.into_iter().enumerate().filter(|(_, (count, _))| *count > 0) {
            operators.push(operator.id.as_str());
            tables.push(table.name.as_str());
            numbers.push(group as u64);
            rows.push(count);
            bytes.push(size.round() as u64);
        }
    }
    let batch = RecordBatch::try_from_iter([
        ("operator", Arc::new(StringArray::from(operators)) as ArrayRef),
        ("table", Arc::new(StringArray::from(tables))),
        ("key_group", Arc::new(UInt64Array::from(numbers))),
        ("rows", Arc::new(UInt64Array::from(rows))),
        ("bytes", Arc::new(UInt64Array::from(bytes))),
    ]);
    Ok(batch?)
}

fn show_rows(found: &Located, chosen: &[Chosen], args: &InspectArgs) -> Result<()> {
    let tables: Vec<_> = chosen
        .iter()
        .filter_map(|(operator, table)| Some((*operator, (*table)?)))
        .collect();
    let [(operator, table)] = tables.as_slice() else {
        let names: Vec<String> = tables
            .iter()
            .map(|(operator, table)| format!("{}/{}", operator.id, table.name))
            .collect();
        return Err(Failure::usage(
            format!(
                "--rows shows one table, and there are {}: {}",
                tables.len(),
                list(names.iter().map(String::as_str))
            ),
            "choose one with --operator and --table",
        ));
    };
    let Some(stored) = found.store.stored_table(table).map_err(failure)? else {
        return Err(Failure::error(
            format!(
                "table '{}' of operator '{}' has no rows, and no schema either",
                table.name, operator.id
            ),
            "choose another table",
        ));
    };
    let limit = args.rows.filter(|limit| *limit > 0);
    let mut output = Output::new(args.format, &stored.spec.schema, limit)?;
    for batch in rows_of(&found.store, &found.manifest, operator, &stored)? {
        if !output.batch(&batch?)? {
            break;
        }
    }
    output.end()
}

/// A result on its way to stdout.
struct Output {
    encoder: Box<dyn Encoder>,
    format: Format,
    buffer: Vec<u8>,
    rows: u64,
    limit: u64,
    cut: bool,
}

impl Output {
    fn new(format: Format, schema: &SchemaRef, limit: Option<u64>) -> Result<Self> {
        Ok(Self {
            encoder: encode::encoder(format, schema, terminal_width())?,
            format,
            buffer: Vec::new(),
            rows: 0,
            limit: limit.unwrap_or(u64::MAX),
            cut: false,
        })
    }

    /// Writes rows up to the limit; whether there is room for more.
    fn batch(&mut self, batch: &RecordBatch) -> Result<bool> {
        let room = usize::try_from(self.limit - self.rows).unwrap_or(usize::MAX);
        let shown = batch.num_rows().min(room);
        if shown > 0 {
            self.encoder.batch(&batch.slice(0, shown), &mut self.buffer)?;
            self.rows += shown as u64;
        }
        self.cut |= shown < batch.num_rows();
        write_out(&std::mem::take(&mut self.buffer))?;
        Ok(!self.cut)
    }

    fn end(mut self) -> Result<()> {
        let summary = Summary {
            rows: self.rows,
            elapsed: None,
            cut: false,
        };
        self.encoder.end(&summary, &mut self.buffer)?;
        if self.cut && self.format == Format::Table {
            self.buffer
                .extend_from_slice(b"there are more; --rows N shows more of them, 0 shows all\n");
        }
        write_out(&self.buffer)
    }
}
