//! Statements that change the catalog. `CREATE TABLE .. WITH ('connector' = ..)` is planned here, as DataFusion's
//! planner does not know it; CREATE TABLE AS runs its query on our runtime.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::TableReference;
use datafusion::logical_expr::{CreateMemoryTable, DdlStatement, LogicalPlan};
use datafusion::sql::parser::Statement as DFStatement;
use datafusion::sql::sqlparser::ast::{
    CreateTable, CreateTableOptions, Expr, HiveDistributionStyle, SqlOption, Statement as SqlStatement, Value,
};

use crate::error::{Error, Result};
use crate::memory_table::{BookedTable, Booking};
use crate::result::Outcome;
use crate::session::Session;
use crate::stream_ddl::refuse_enforced;

impl Session {
    /// `CREATE TABLE .. WITH (..)`, when the statement is one.
    pub(crate) fn create_connector_table(&self, statement: &DFStatement) -> Result<Option<Outcome>> {
        let DFStatement::Statement(statement) = statement else {
            return Ok(None);
        };
        let SqlStatement::CreateTable(create) = statement.as_ref() else {
            return Ok(None);
        };
        let CreateTableOptions::With(options) = &create.table_options else {
            return Ok(None);
        };
        refuse_enforced(create)?;
        let options = options_of(options)?;
        let (schema, query) = self.columns_and_query(create)?;
        let partitions = partition_columns(create, &schema)?;
        let name = table_reference(create)?;
        if let Some(exists) = self.existing(create, &name)? {
            return Ok(Some(exists));
        }
        let state = self.state();
        let declared: SchemaRef = match &query {
            Some(plan) => Arc::new(plan.schema().as_arrow().clone()),
            None => Arc::new(schema),
        };
        let table = self.block_on(thalweg_connectors::create_table(
            &state,
            name.table(),
            declared,
            &partitions,
            &options,
        ))?;
        self.replace_table(&name, Some(table))?;
        match query {
            None => Ok(Some(Outcome::Done(format!("table {name} created")))),
            Some(_) => {
                let Some(select) = &create.query else { return Ok(None) };
                let inserted = self
                    .execute(&format!("INSERT INTO {} {select}", create.name))
                    .and_then(Outcome::collect);
                if inserted.is_err() {
                    self.replace_table(&name, None)?;
                }
                inserted?;
                Ok(Some(Outcome::Done(format!("table {name} created"))))
            }
        }
    }

    /// The declared columns and the planned query of `CREATE TABLE .. AS`, by planning the statement without its options.
    pub(crate) fn columns_and_query(&self, create: &CreateTable) -> Result<(Schema, Option<LogicalPlan>)> {
        if create.columns.is_empty() && create.query.is_none() {
            return Ok((Schema::empty(), None));
        }
        let mut bare = create.clone();
        bare.table_options = CreateTableOptions::None;
        bare.hive_distribution = HiveDistributionStyle::NONE;
        bare.partition_by = None;
        let statement = DFStatement::Statement(Box::new(SqlStatement::CreateTable(bare)));
        let state = self.state();
        let plan = self.block_on(state.statement_to_plan(statement))?;
        match plan {
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(CreateMemoryTable { input, .. })) => {
                let schema = input.schema().as_arrow().clone();
                let query = create.query.is_some().then(|| Arc::unwrap_or_clone(input));
                Ok((schema, query))
            }
            other => Err(Error::unsupported(format!(
                "CREATE TABLE .. WITH cannot be combined with {}",
                other.display()
            ))),
        }
    }

    /// `CREATE TABLE [AS]` in memory.
    pub(crate) fn create_memory_table(&self, create: CreateMemoryTable) -> Result<Outcome> {
        let CreateMemoryTable {
            name,
            constraints,
            input,
            if_not_exists,
            or_replace,
            column_defaults,
            temporary,
        } = create;
        if temporary {
            return Err(Error::unsupported("temporary tables are not supported")
                .with_remedy("leave out TEMPORARY: tables in memory end with the session"));
        }
        if self.table_exists(&name)? {
            if if_not_exists {
                return Ok(Outcome::Done(format!("table {name} already exists")));
            }
            if !or_replace {
                return Err(table_exists(&name));
            }
        }
        let mut schema: SchemaRef = Arc::new(input.schema().as_arrow().clone());
        let mut names = std::collections::HashSet::new();
        if let Some(twice) = schema.fields().iter().find(|field| !names.insert(field.name())) {
            return Err(
                Error::statement(format!("table {name} would have two columns '{}'", twice.name()))
                    .with_remedy("give one of them an alias"),
            );
        }
        let mut booking = Booking::new(self.memory().reservation(format!("the table {name} in memory")));
        let batches = match input.as_ref() {
            LogicalPlan::EmptyRelation(relation) if !relation.produce_one_row => Vec::new(),
            query => {
                // That the query gives no NULL is no promise about what is inserted later.
                let nullable = schema
                    .fields()
                    .iter()
                    .map(|field| field.as_ref().clone().with_nullable(true));
                schema = Arc::new(Schema::new(nullable.collect::<Vec<_>>()));
                self.run_complete(query, "CREATE TABLE .. AS")?
                    .map(|batch| {
                        let batch = RecordBatch::try_new(Arc::clone(&schema), batch?.columns().to_vec())?;
                        booking.add(&batch)?;
                        Ok(batch)
                    })
                    .collect::<Result<Vec<_>>>()?
            }
        };
        let table = MemTable::try_new(schema, self.spread(batches))?
            .with_constraints(constraints)
            .with_column_defaults(column_defaults.into_iter().collect());
        let table = BookedTable::new(table, booking.finish());
        self.replace_table(&name, Some(Arc::new(table)))?;
        Ok(Outcome::Done(format!("table {name} created")))
    }

    /// What is to be said instead of creating the table, when there is one of its name.
    pub(crate) fn existing(&self, create: &CreateTable, name: &TableReference) -> Result<Option<Outcome>> {
        if !self.table_exists(name)? || create.or_replace {
            return Ok(None);
        }
        if create.if_not_exists {
            return Ok(Some(Outcome::Done(format!("table {name} already exists"))));
        }
        Err(table_exists(name))
    }

    fn table_exists(&self, name: &TableReference) -> Result<bool> {
        Ok(self.context().table_exist(name.clone())?)
    }

    pub(crate) fn replace_table(&self, name: &TableReference, table: Option<Arc<dyn TableProvider>>) -> Result<()> {
        self.context().deregister_table(name.clone())?;
        if let Some(table) = table {
            self.context().register_table(name.clone(), table)?;
        }
        Ok(())
    }
}

fn table_exists(name: &TableReference) -> Error {
    Error::statement(format!("there is already a table '{name}'"))
        .with_remedy("DROP it first, or use CREATE OR REPLACE TABLE or CREATE TABLE IF NOT EXISTS")
}

pub(crate) fn table_reference(create: &CreateTable) -> Result<TableReference> {
    Ok(TableReference::parse_str(&create.name.to_string()))
}

pub(crate) fn options_of(options: &[SqlOption]) -> Result<BTreeMap<String, String>> {
    options
        .iter()
        .map(|option| match option {
            SqlOption::KeyValue { key, value } => {
                let text = match value {
                    Expr::Value(value) => match &value.value {
                        Value::SingleQuotedString(text) => text.clone(),
                        other => other.to_string(),
                    },
                    other => other.to_string(),
                };
                Ok((key.value.clone(), text))
            }
            other => Err(Error::statement(format!(
                "'{other}' is not an option of the form 'key' = 'value'"
            ))),
        })
        .collect()
}

pub(crate) fn partition_columns(create: &CreateTable, schema: &Schema) -> Result<Vec<String>> {
    let names: Vec<String> = match &create.hive_distribution {
        HiveDistributionStyle::PARTITIONED { columns } => {
            columns.iter().map(|column| column.name.value.clone()).collect()
        }
        _ => Vec::new(),
    };
    for name in &names {
        if !schema.fields().is_empty() && schema.field_with_name(name).is_err() {
            return Err(Error::statement(format!(
                "PARTITIONED BY names '{name}', which is not a column of the table"
            )));
        }
    }
    Ok(names)
}

/// What to tell the user after a statement that DataFusion's context carried out.
pub(crate) fn done_message(ddl: &DdlStatement) -> String {
    match ddl {
        DdlStatement::CreateExternalTable(create) => format!("table {} created", create.name),
        DdlStatement::CreateView(create) => format!("view {} created", create.name),
        DdlStatement::CreateCatalogSchema(create) => format!("schema {} created", create.schema_name),
        DdlStatement::DropTable(drop) => format!("table {} dropped", drop.name),
        DdlStatement::DropView(drop) => format!("view {} dropped", drop.name),
        other => format!("{} done", other.name()),
    }
}
