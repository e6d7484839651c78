//! `'connector' = 'nexmark'`: the events of an auction house, as the Nexmark benchmark has them: of 50 events in a
//! row one is a new person, three are new auctions and 46 are bids.
//!
//! It makes the events of the harness that measures the peers, by the same arithmetic, so that two engines can be
//! measured over the same fields made in process. Event `n` depends on `n` and the seed only. `nexmark.table` = `all`
//! is that harness' table: one row an event, with a structure for each type of event of which one is not NULL. The
//! tables `person`, `auction` and `bid` hold the events of one type, flat.

mod columns;
mod events;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::error::Result as DataFusionResult;
use thalweg_engine::Result;

use crate::Options;
use crate::generate::{GeneratedTable, Interleave, Rows, Ticks, check_columns};
use crate::nexmark::columns::NexmarkRows;
use crate::nexmark::events::{EPOCH, Events};
use crate::nexmark::schema::Shape;

/// Epochs in a block of events of one split: long runs at full speed; short ones where the rate is kept by the wall
/// clock, or a split would wait for the others' blocks to be over.
const BLOCK_EPOCHS: u64 = 20;
const PACED_BLOCK_EPOCHS: u64 = 1;

/// The table of `CREATE TABLE .. WITH ('connector' = 'nexmark')`. Options: `nexmark.table` (`all`, `person`,
/// `auction`, `bid`), `nexmark.events`, `nexmark.event-time-rate`, `nexmark.base-time`, `nexmark.splits`,
/// `nexmark.out-of-order-ms`, `nexmark.pushdown`, `rows-per-second`, `seed`.
///
/// # Errors
/// When an option is unknown or wrong, or other columns are declared than it has.
pub fn create_table(columns: SchemaRef, options: &BTreeMap<String, String>) -> Result<Arc<dyn TableProvider>> {
    let mut options = Options::new("nexmark", options);
    let table = options.take("nexmark.table").unwrap_or_else(|| "all".into());
    let shape = Shape::parse(&table)
        .ok_or_else(|| options.bad_value("nexmark.table", &table, "must be all, person, auction or bid"))?;
    let events: Option<u64> = options.take_parsed("nexmark.events")?;
    let per_second = options.take_positive("nexmark.event-time-rate")?.unwrap_or(100_000);
    let base = options.take_parsed("nexmark.base-time")?.unwrap_or(1_600_000_000_000);
    let disorder: u64 = options.take_parsed("nexmark.out-of-order-ms")?.unwrap_or(0);
    if disorder > i64::MAX as u64 / 2 {
        return Err(options.bad_value("nexmark.out-of-order-ms", &disorder.to_string(), "is too large"));
    }
    let splits = options.take_positive("nexmark.splits")?.map(|splits| splits as usize);
    let pushdown = options.take_bool("nexmark.pushdown", true)?;
    let pace = options.take_positive("rows-per-second")?;
    let seed: u64 = options.take_parsed("seed")?.unwrap_or(0);
    options.finish()?;
    let schema = check_columns("nexmark", &columns, &shape.schema())?;
    let full = Arc::clone(&schema);
    let events_made = Arc::new(Events::new(seed, Ticks::new(base, per_second, disorder)));
    let block = EPOCH
        * match pace {
            Some(_) => PACED_BLOCK_EPOCHS,
            None => BLOCK_EPOCHS,
        };
    let make = move |projection: &[usize], splits: usize| -> DataFusionResult<Arc<dyn Rows>> {
        let deal = Interleave::new(splits, block);
        let rows = NexmarkRows::try_new(Arc::clone(&events_made), shape, &full, projection, pushdown, deal)?;
        Ok(Arc::new(rows))
    };
    Ok(Arc::new(GeneratedTable {
        connector: "nexmark",
        schema,
        events,
        pace,
        splits,
        make: Box::new(make),
    }))
}
