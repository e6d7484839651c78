//! One connection: batches as transactions, and the marks of what has been committed.

use std::collections::HashMap;
use std::error::Error as _;

use async_trait::async_trait;
use thalweg_engine::Batch;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Statement, Transaction};

use super::statements::{self, TableName, TargetColumn, TargetColumns};
use super::types::array_type;
use super::values::Values;
use crate::upsert::{Changes, Failure, Prepared, Session};

/// So many rows travel in one statement.
const STATEMENT_ROWS_MAX: usize = 16 << 10;

/// See the module.
pub(super) struct PostgresSession {
    client: Client,
    writer: Writer,
    commits: TableName,
}

/// What makes statements.
struct Writer {
    table: TableName,
    targets: TargetColumns,
    prepared: HashMap<String, Statement>,
}

impl PostgresSession {
    /// Connects, and looks whether `table` has these columns.
    pub(super) async fn open(config: &Config, table: TableName, columns: Vec<String>) -> Result<Self, Failure> {
        let (client, connection) = config.connect(NoTls).await.map_err(failure)?;
        // Ends when the client is dropped or the server goes; whoever uses the client then is told.
        tokio::spawn(connection);
        client.batch_execute("SET TIME ZONE 'UTC'").await.map_err(failure)?;
        let described = client.query(statements::DESCRIBE, &[&table.to_string()]).await;
        let mut targets = HashMap::new();
        for row in described.map_err(failure)? {
            let category: String = row.try_get(2).map_err(failure)?;
            let column = TargetColumn {
                type_name: row.try_get(1).map_err(failure)?,
                is_text: category == "S",
            };
            targets.insert(row.try_get(0).map_err(failure)?, column);
        }
        if targets.is_empty() {
            return Err(Failure::Never(format!(
                "there is no table {table}; create it in PostgreSQL first"
            )));
        }
        for column in &columns {
            if !targets.contains_key(column) {
                let mut known: Vec<&str> = targets.keys().map(String::as_str).collect();
                known.sort_unstable();
                return Err(Failure::Never(format!(
                    "table {table} has no column '{column}'; its columns are: {}",
                    known.join(", ")
                )));
            }
        }
        Ok(Self {
            client,
            commits: table.sibling("thalweg_commits"),
            writer: Writer {
                table,
                targets,
                prepared: HashMap::new(),
            },
        })
    }

    async fn make_commits(&self) -> Result<(), Failure> {
        let name = self.commits.to_string();
        let there = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
        let row = self.client.query_one(there, &[&name]).await.map_err(failure)?;
        if row.try_get(0).map_err(failure)? {
            return Ok(());
        }
        match self
            .client
            .batch_execute(&statements::create_commits(&self.commits))
            .await
        {
            // Another sink of the job was quicker.
            Err(e) if matches!(e.code(), Some(&SqlState::UNIQUE_VIOLATION | &SqlState::DUPLICATE_TABLE)) => Ok(()),
            Err(e) => match failure(e) {
                Failure::Never(why) => Err(Failure::Never(format!(
                    "the table {name}, which 'sink.isolation' = 'read-committed' needs, cannot be made: {why}"
                ))),
                again => Err(again),
            },
            Ok(()) => Ok(()),
        }
    }
}

#[async_trait]
impl Session for PostgresSession {
    async fn apply(&mut self, changes: &Changes) -> Result<(), Failure> {
        let transaction = self.client.transaction().await.map_err(failure)?;
        self.writer.write(&transaction, changes).await?;
        transaction.commit().await.map_err(failure)
    }

    async fn commit(&mut self, prepared: &[Prepared]) -> Result<(), Failure> {
        self.make_commits().await?;
        let transaction = self.client.transaction().await.map_err(failure)?;
        let record = transaction
            .prepare(&statements::record_commit(&self.commits))
            .await
            .map_err(failure)?;
        for Prepared { mark, changes } in prepared {
            let number = |number: u64| i64::try_from(number).map_err(|e| Failure::Never(e.to_string()));
            let (subtask, checkpoint) = (number(mark.subtask as u64)?, number(mark.checkpoint)?);
            let recorded = transaction
                .execute(&record, &[&mark.job, &mark.run, &subtask, &checkpoint])
                .await;
            if recorded.map_err(failure)? > 0 {
                self.writer.write(&transaction, changes).await?;
            }
        }
        transaction.commit().await.map_err(failure)
    }

    async fn recover(&mut self) -> Result<(), Failure> {
        self.make_commits().await?;
        let forget = statements::forget_commits(&self.commits);
        self.client.batch_execute(&forget).await.map_err(failure)
    }
}

impl Writer {
    async fn write(&mut self, transaction: &Transaction<'_>, changes: &Changes) -> Result<(), Failure> {
        if changes.deletes.num_rows() > 0 {
            let sql = statements::delete(&self.table, changes.deletes.schema_ref(), &self.targets);
            self.execute(transaction, sql, &changes.deletes).await?;
        }
        if changes.upserts.num_rows() > 0 {
            let rows = changes.upserts.schema_ref();
            let sql = statements::insert(&self.table, rows, &changes.key(), &self.targets);
            self.execute(transaction, sql, &changes.upserts).await?;
        }
        Ok(())
    }

    async fn execute(
        &mut self,
        transaction: &Transaction<'_>,
        sql: Result<String, String>,
        rows: &Batch,
    ) -> Result<(), Failure> {
        let statement = self.statement(transaction, sql.map_err(Failure::Never)?, rows).await?;
        let mut from = 0;
        while from < rows.num_rows() {
            let slice = rows.slice(from, STATEMENT_ROWS_MAX.min(rows.num_rows() - from));
            from += slice.num_rows();
            let values = slice
                .columns()
                .iter()
                .map(Values::try_new)
                .collect::<Result<Vec<_>, _>>();
            let values = values.map_err(|e| Failure::Never(e.to_string()))?;
            let parameters: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
            transaction.execute(&statement, &parameters).await.map_err(failure)?;
        }
        Ok(())
    }

    async fn statement(
        &mut self,
        transaction: &Transaction<'_>,
        sql: String,
        rows: &Batch,
    ) -> Result<Statement, Failure> {
        if let Some(statement) = self.prepared.get(&sql) {
            return Ok(statement.clone());
        }
        let fields = rows.schema_ref().fields().iter();
        let types = fields.map(|field| {
            let data_type = field.data_type();
            array_type(data_type).ok_or_else(|| Failure::Never(format!("{data_type} is no type that is sent")))
        });
        let types = types.collect::<Result<Vec<Type>, Failure>>()?;
        let statement = transaction.prepare_typed(&sql, &types).await.map_err(failure)?;
        self.prepared.insert(sql, statement.clone());
        Ok(statement)
    }
}

/// What an error of the client means.
fn failure(error: tokio_postgres::Error) -> Failure {
    let why = explain(&error);
    let again = match error.code() {
        // The server is going, coming or busy; a deadlock or a serialization failure.
        Some(code) => {
            let code = code.code();
            code.starts_with("08") || code.starts_with("57P0") || code.starts_with("40") || code == "53300"
        }
        None => {
            let io = error.source().is_some_and(|cause| cause.is::<std::io::Error>());
            io || error.is_closed()
        }
    };
    match again {
        true => Failure::Again(why),
        false => Failure::Never(why),
    }
}

/// What the server, or the system, said.
pub(super) fn explain(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        return match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
    };
    let mut text = db.message().to_string();
    if let Some(detail) = db.detail() {
        text.push_str(&format!(" ({detail})"));
    }
    if *db.code() == SqlState::INVALID_COLUMN_REFERENCE {
        text.push_str(
            "; the table in PostgreSQL needs a PRIMARY KEY or UNIQUE constraint on the columns of the sink's key",
        );
    } else if let Some(hint) = db.hint() {
        text.push_str(&format!("; {hint}"));
    }
    text
}
