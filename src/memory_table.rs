//! Tables in memory, booked on the session's budget.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session as DataFusionSession, TableProvider};
use datafusion::common::Constraints;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_plan::ExecutionPlan;
use parking_lot::Mutex;
use thalweg_memory::Reservation;

/// A [`MemTable`] whose rows count against the memory budget for as long as the table exists. Rows that are inserted
/// later are booked when the table is next read.
#[derive(Debug)]
pub(crate) struct BookedTable {
    table: MemTable,
    memory: Mutex<Reservation>,
}

impl BookedTable {
    /// A table over `table`, whose rows `memory` holds already.
    pub(crate) fn new(table: MemTable, memory: Reservation) -> Self {
        Self {
            table,
            memory: Mutex::new(memory),
        }
    }

    async fn book(&self) {
        let mut counter = RecordBatchMemoryCounter::new();
        for partition in &self.table.batches {
            for batch in partition.read().await.iter() {
                counter.count_batch(batch);
            }
        }
        self.memory.lock().resize(counter.memory_usage());
    }
}

/// Books batches on `memory` as they are gathered up.
pub(crate) struct Booking {
    counter: RecordBatchMemoryCounter,
    memory: Reservation,
}

impl Booking {
    pub(crate) fn new(memory: Reservation) -> Self {
        Self {
            counter: RecordBatchMemoryCounter::new(),
            memory,
        }
    }

    /// Books a batch more.
    ///
    /// # Errors
    /// When the budget does not hold it.
    pub(crate) fn add(&mut self, batch: &RecordBatch) -> thalweg_engine::Result<()> {
        self.counter.count_batch(batch);
        Ok(self.memory.try_resize(self.counter.memory_usage())?)
    }

    pub(crate) fn finish(self) -> Reservation {
        self.memory
    }
}

#[async_trait]
impl TableProvider for BookedTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn constraints(&self) -> Option<&Constraints> {
        self.table.constraints()
    }

    fn table_type(&self) -> TableType {
        self.table.table_type()
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        self.table.get_logical_plan()
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.table.get_column_default(column)
    }

    async fn scan(
        &self,
        state: &dyn DataFusionSession,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        self.book().await;
        self.table.scan(state, projection, filters, limit).await
    }

    async fn insert_into(
        &self,
        state: &dyn DataFusionSession,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        self.table.insert_into(state, input, insert_op).await
    }
}
