//! `CREATE TABLE` with computed columns, metadata, watermarks and keys, and INSERT into such tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, TableReference};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, Projection, WriteOp};
use datafusion::sql::parser::Statement as DFStatement;
use datafusion::sql::sqlparser::ast::{
    ColumnOption, CreateTable, CreateTableOptions, Expr as SqlExpr, ExprWithAlias, Ident, Insert, ObjectName,
    Statement as SqlStatement, TableObject,
};
use thalweg_connectors::METADATA_KEY;
use thalweg_optimizer::logical::{WatermarkNode, as_plan};

use crate::ddl::{options_of, partition_columns, table_reference};
use crate::error::{Error, Result};
use crate::memory_table::{BookedTable, Booking};
use crate::result::{Outcome, QueryResult};
use crate::session::Session;
use crate::settings::milliseconds;
use crate::statement::{ColumnClause, MetadataColumn, TableClauses, restore};
use crate::stream_table::{StreamTable, TableDefinition};

/// The option that tells [`TableDefinition::idle_timeout_ms`]; it is not the connector's.
const IDLE_TIMEOUT: &str = "scan.watermark.idle-timeout";
/// The connectors that are told the primary key, as an option.
const WITH_PRIMARY_KEY: [&str; 1] = ["upsert-kafka"];
/// The connectors that have no metadata columns.
const WITHOUT_METADATA: [&str; 6] = ["filesystem", "datagen", "print", "blackhole", "redis", "postgres"];

impl Session {
    /// The table of this name, when it was declared with computed columns, a watermark or a key.
    ///
    /// # Errors
    /// When there is no table of this name.
    pub fn stream_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let provider = self.block_on(self.context().table_provider(TableReference::parse_str(name)))?;
        Ok(StreamTable::of(provider.as_ref()).is_some().then_some(provider))
    }

    /// The primary key of a table; empty when it has none.
    ///
    /// # Errors
    /// When there is no table of this name.
    pub fn primary_key_of(&self, name: &str) -> Result<Vec<String>> {
        let table = self.stream_table(name)?;
        let table = table.as_ref().and_then(|table| StreamTable::of(table.as_ref()));
        Ok(table.map_or_else(Vec::new, |table| table.definition().primary_key.clone()))
    }

    /// `CREATE TABLE` with clauses of Flink's.
    pub(crate) fn create_stream_table(
        &self,
        statement: &DFStatement,
        clauses: &TableClauses,
        sql: &str,
    ) -> Result<Outcome> {
        let create = match statement {
            DFStatement::Statement(statement) => match statement.as_ref() {
                SqlStatement::CreateTable(create) => create,
                other => return Err(Error::statement(format!("'{other}' is no CREATE TABLE"))),
            },
            other => return Err(Error::statement(format!("'{other}' is no CREATE TABLE"))),
        };
        refuse_unsupported(create)?;
        let name = table_reference(create)?;
        if let Some(exists) = self.existing(create, &name)? {
            return Ok(exists);
        }
        let mut definition = TableDefinition {
            name: name.to_string(),
            sql: sql.trim().to_string(),
            ..TableDefinition::default()
        };
        self.describe(create, clauses, &mut definition)?;
        let physical = self.physical_table(create, &name, &definition)?;
        let table = self.stream_table_over(physical, clauses, definition, &name)?;
        self.replace_table(&name, Some(Arc::new(table)))?;
        Ok(Outcome::Done(format!("table {name} created")))
    }

    /// What the clauses say, but for the expressions.
    fn describe(&self, create: &CreateTable, clauses: &TableClauses, definition: &mut TableDefinition) -> Result<()> {
        if let CreateTableOptions::With(options) = &create.table_options {
            definition.options = options_of(options)?;
        }
        if let Some(text) = definition.options.remove(IDLE_TIMEOUT) {
            let ms = milliseconds(&text).ok().and_then(|ms| u64::try_from(ms).ok());
            let Some(ms) = ms else {
                return Err(
                    Error::statement(format!("'{IDLE_TIMEOUT}' is '{text}', which is no length of time"))
                        .with_remedy("write '1 min' or '5 s'"),
                );
            };
            definition.idle_timeout_ms = (ms > 0).then_some(ms);
        }
        for MetadataColumn { name, key, is_virtual } in &clauses.metadata {
            let name = self.normalized(name);
            if *is_virtual {
                definition.virtual_columns.push(name.clone());
            }
            let key = key.clone().unwrap_or_else(|| name.clone());
            definition.metadata.push((name, key));
        }
        for column in &clauses.columns {
            if let ColumnClause::Computed(name, _) = column {
                definition.computed.push(self.normalized(name));
            }
        }
        definition.rowtime = clauses.watermark.as_ref().map(|(name, _)| self.normalized(name));
        definition.primary_key = clauses.primary_key.iter().map(|name| self.normalized(name)).collect();
        check_metadata(definition)
    }

    fn normalized(&self, name: &Ident) -> String {
        let state = self.state();
        match name.quote_style {
            None if state.config_options().sql_parser.enable_ident_normalization => name.value.to_lowercase(),
            _ => name.value.clone(),
        }
    }

    /// The connector's table, or one in memory.
    fn physical_table(
        &self,
        create: &CreateTable,
        name: &TableReference,
        definition: &TableDefinition,
    ) -> Result<Arc<dyn TableProvider>> {
        let state = self.state();
        let (declared, _) = self.columns_and_query(create)?;
        let zone = state.config_options().execution.time_zone.clone();
        let schema = with_metadata_keys(&restore(&declared, zone.as_deref()), definition);
        let schema: SchemaRef = Arc::new(schema);
        if matches!(create.table_options, CreateTableOptions::With(_)) {
            let partitions = partition_columns(create, &schema)?;
            let options = options_with_key(definition)?;
            let schema = thalweg_connectors::with_primary_key(&schema, &definition.primary_key)?;
            let table = thalweg_connectors::create_table(&state, name.table(), schema, &partitions, &options);
            return Ok(self.block_on(table)?);
        }
        if schema.fields().is_empty() {
            return Err(Error::statement(format!("table {name} has no columns of its own"))
                .with_remedy("declare columns with types, or a connector in WITH (..) that knows them"));
        }
        let table = MemTable::try_new(schema, self.spread(Vec::new()))?;
        let booking = Booking::new(self.memory().reservation(format!("the table {name} in memory")));
        Ok(Arc::new(BookedTable::new(table, booking.finish())))
    }

    /// The whole table over the connector's.
    fn stream_table_over(
        &self,
        physical: Arc<dyn TableProvider>,
        clauses: &TableClauses,
        definition: TableDefinition,
        name: &TableReference,
    ) -> Result<StreamTable> {
        let definition = Arc::new(definition);
        let schema = physical.schema();
        let all = definition
            .computed
            .iter()
            .chain(schema.fields().iter().map(|field| field.name()));
        let mut seen = std::collections::HashSet::new();
        for column in all {
            if !seen.insert(column) {
                return Err(
                    Error::statement(format!("table {name} would have two columns '{column}'"))
                        .with_remedy("give one of them another name"),
                );
            }
        }
        for key in &definition.primary_key {
            if schema.field_with_name(key).is_err() {
                return Err(Error::statement(format!(
                    "PRIMARY KEY names '{key}', which is no column that the connector stores"
                ))
                .with_remedy("name columns that are declared with a type"));
            }
        }
        let scanned = StreamTable::scanned(Arc::clone(&definition), Arc::clone(&physical));
        let scan = LogicalPlanBuilder::scan(name.clone(), provider_as_source(Arc::new(scanned)), None)?.build()?;
        let projected = self.computed(scan, clauses)?;
        let plan = match &clauses.watermark {
            Some((column, expr)) => self.watermarked(projected, column, expr, definition.idle_timeout_ms)?,
            None => projected,
        };
        Ok(StreamTable::whole(definition, physical, plan))
    }

    /// The declared columns in their order; those that only the connector knows come first.
    fn computed(&self, scan: LogicalPlan, clauses: &TableClauses) -> Result<LogicalPlan> {
        let is_computed = |column: &ColumnClause| matches!(column, ColumnClause::Computed(..));
        if !clauses.columns.iter().any(is_computed) {
            return Ok(scan);
        }
        let schema = Arc::clone(scan.schema());
        let declares_columns = !clauses.columns.iter().all(is_computed);
        let mut exprs: Vec<Expr> = Vec::new();
        if !declares_columns {
            exprs.extend(schema.columns().into_iter().map(Expr::Column));
        }
        for column in &clauses.columns {
            exprs.push(match column {
                ColumnClause::Physical(name) => {
                    let name = self.normalized(name);
                    Expr::Column(Column::from(schema.qualified_field_with_unqualified_name(&name)?))
                }
                ColumnClause::Computed(name, expr) => {
                    let name = self.normalized(name);
                    self.planned(expr, &schema)?.alias(name)
                }
            });
        }
        Ok(LogicalPlanBuilder::from(scan).project(exprs)?.build()?)
    }

    fn watermarked(
        &self,
        input: LogicalPlan,
        column: &Ident,
        expr: &SqlExpr,
        idle_timeout_ms: Option<u64>,
    ) -> Result<LogicalPlan> {
        let schema = Arc::clone(input.schema());
        let name = self.normalized(column);
        let rowtime = Column::from(schema.qualified_field_with_unqualified_name(&name)?);
        let expr = self.planned(expr, &schema)?;
        let node = WatermarkNode::try_new(Arc::new(input), rowtime, expr, idle_timeout_ms)?;
        Ok(as_plan(node))
    }

    fn planned(&self, expr: &SqlExpr, schema: &datafusion::common::DFSchema) -> Result<Expr> {
        let expr = ExprWithAlias {
            expr: expr.clone(),
            alias: None,
        };
        Ok(self.state().create_logical_expr_from_sql_expr(expr, schema)?)
    }

    /// Runs inserts one after the other; none before all are planned. One row for each, with the count of its rows.
    pub(crate) fn execute_set(&self, inserts: Vec<DFStatement>) -> Result<Outcome> {
        let plans = inserts.into_iter().map(|insert| self.plan(insert));
        let plans = plans.collect::<Result<Vec<_>>>()?;
        let streaming = plans.iter().map(|plan| self.is_streaming(plan));
        if streaming.collect::<Result<Vec<_>>>()?.contains(&true) {
            return Ok(Outcome::Rows(self.run_streaming_set(&plans)?));
        }
        let mut schema = None;
        let mut counts = Vec::new();
        for plan in plans {
            let rows = self.run(&plan)?;
            schema.get_or_insert_with(|| rows.schema());
            counts.extend(rows.collect::<Result<Vec<RecordBatch>>>()?);
        }
        let schema = schema.unwrap_or_else(|| Arc::new(Schema::empty()));
        Ok(Outcome::Rows(QueryResult::ready(schema, counts)))
    }

    /// Names the columns of an INSERT without a list into a table with columns that are not stored.
    pub(crate) fn name_inserted_columns(&self, statement: &mut DFStatement) -> Result<()> {
        match statement {
            DFStatement::Explain(explain) => self.name_inserted_columns(&mut explain.statement),
            DFStatement::Statement(statement) => match statement.as_mut() {
                SqlStatement::Insert(insert) => self.name_columns(insert),
                SqlStatement::Prepare { statement, .. } => match statement.as_mut() {
                    SqlStatement::Insert(insert) => self.name_columns(insert),
                    _ => Ok(()),
                },
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn name_columns(&self, insert: &mut Insert) -> Result<()> {
        let TableObject::TableName(name) = &insert.table else {
            return Ok(());
        };
        let name = TableReference::parse_str(&name.to_string());
        // One that does not exist is the planner's to tell.
        let Ok(provider) = self.block_on(self.context().table_provider(name.clone())) else {
            return Ok(());
        };
        let Some(table) = StreamTable::of(provider.as_ref()) else {
            return Ok(());
        };
        let definition = table.definition();
        if insert.columns.is_empty() {
            let quoted = |name: String| ObjectName::from(vec![Ident::with_quote('"', name)]);
            insert.columns = table.persisted_columns().into_iter().map(quoted).collect();
            return Ok(());
        }
        for column in &insert.columns {
            let Some(column) = column.0.last().and_then(|part| part.as_ident()) else {
                continue;
            };
            let column = self.normalized(column);
            if definition.computed.contains(&column) || definition.virtual_columns.contains(&column) {
                return Err(Error::statement(format!(
                    "INSERT INTO {name} gives a value for '{column}', which is not stored but computed"
                ))
                .with_remedy("leave the column out of the list"));
            }
        }
        Ok(())
    }
}

/// Points an INSERT at the connector's table, with the columns that it stores.
///
/// # Errors
/// When the plan is of another form than the SQL planner gives it.
pub(crate) fn insert_into_physical(plan: LogicalPlan) -> Result<LogicalPlan> {
    let rewritten = plan.transform_down(|node| {
        let LogicalPlan::Dml(dml) = &node else {
            return Ok(Transformed::no(node));
        };
        if !matches!(dml.op, WriteOp::Insert(_)) {
            return Ok(Transformed::no(node));
        }
        let Ok(target) = source_as_provider(&dml.target) else {
            return Ok(Transformed::no(node));
        };
        let Some(table) = StreamTable::of(target.as_ref()) else {
            return Ok(Transformed::no(node));
        };
        let LogicalPlan::Projection(projection) = dml.input.as_ref() else {
            return datafusion::common::internal_err!("an INSERT is no projection to the columns of its table");
        };
        let (whole, stored) = (target.schema(), table.physical().schema());
        let exprs = stored
            .fields()
            .iter()
            .map(|field| Ok(projection.expr[whole.index_of(field.name())?].clone()))
            .collect::<datafusion::error::Result<Vec<Expr>>>()?;
        let input = Projection::try_new(exprs, Arc::clone(&projection.input))?;
        Ok(Transformed::yes(LogicalPlan::Dml(DmlStatement::new(
            dml.table_name.clone(),
            provider_as_source(Arc::clone(table.physical())),
            dml.op.clone(),
            Arc::new(LogicalPlan::Projection(input)),
        ))))
    })?;
    Ok(rewritten.data)
}

/// Refuses constraints: nobody checks them.
///
/// # Errors
/// When the statement has one.
pub(crate) fn refuse_enforced(create: &CreateTable) -> Result<()> {
    let of_columns = create.columns.iter().flat_map(|column| &column.options);
    let mut of_columns = of_columns.map(|option| &option.option);
    let has_one = !create.constraints.is_empty()
        || of_columns.any(|option| {
            matches!(
                option,
                ColumnOption::PrimaryKey(_)
                    | ColumnOption::Unique(_)
                    | ColumnOption::ForeignKey(_)
                    | ColumnOption::Check(_)
            )
        });
    if has_one {
        return Err(Error::unsupported("keys and checks of such a table are not enforced")
            .with_remedy("write PRIMARY KEY (..) NOT ENFORCED, and leave other constraints out"));
    }
    Ok(())
}

fn refuse_unsupported(create: &CreateTable) -> Result<()> {
    if create.temporary {
        return Err(Error::unsupported("temporary tables are not supported")
            .with_remedy("leave out TEMPORARY: tables end with the session"));
    }
    if create.query.is_some() || create.like.is_some() {
        return Err(Error::unsupported(
            "CREATE TABLE .. AS or LIKE with watermarks, keys, computed columns or types of Flink's is not supported",
        )
        .with_remedy("declare the table with its columns, and fill it with INSERT INTO"));
    }
    refuse_enforced(create)
}

fn check_metadata(definition: &TableDefinition) -> Result<()> {
    let Some((name, _)) = definition.metadata.first() else {
        return Ok(());
    };
    let connector = definition
        .options
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("connector"));
    let without = match connector {
        Some((_, connector)) => WITHOUT_METADATA
            .iter()
            .find(|known| connector.trim().eq_ignore_ascii_case(known)),
        None => {
            return Err(
                Error::statement(format!("column '{name}' is METADATA, but the table has no connector"))
                    .with_remedy("leave METADATA out, or name a connector that has such columns"),
            );
        }
    };
    match without {
        Some(connector) => Err(Error::unsupported(format!(
            "the connector '{connector}' has no metadata columns such as '{name}'"
        ))
        .with_remedy("leave the column out")),
        None => Ok(()),
    }
}

/// The options that the connector is handed.
fn options_with_key(definition: &TableDefinition) -> Result<BTreeMap<String, String>> {
    let mut options = definition.options.clone();
    let connector = options.iter().find(|(key, _)| key.eq_ignore_ascii_case("connector"));
    let connector = connector.map(|(_, connector)| connector.trim().to_lowercase());
    if connector.is_some_and(|connector| WITH_PRIMARY_KEY.contains(&connector.as_str())) {
        let key = serde_json::to_string(&definition.primary_key).map_err(|e| Error::statement(e.to_string()))?;
        options.insert(thalweg_connectors::PRIMARY_KEY.into(), key);
    }
    Ok(options)
}

/// The schema with the keys of its metadata columns, as connectors are told them.
fn with_metadata_keys(schema: &Schema, definition: &TableDefinition) -> Schema {
    let keys: BTreeMap<&String, &String> = definition.metadata.iter().map(|(name, key)| (name, key)).collect();
    let fields = schema.fields().iter().map(|field| {
        let mut field = field.as_ref().clone();
        if let Some(key) = keys.get(field.name()) {
            let mut metadata = field.metadata().clone();
            metadata.insert(METADATA_KEY.into(), (*key).clone());
            field = field.with_metadata(metadata);
        }
        field
    });
    Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone())
}
