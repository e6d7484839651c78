//! `'connector' = 'ysb'` and `'connector' = 'ysb-campaigns'`: the advertising events of the Yahoo streaming benchmark,
//! and the table that says to which campaign an ad belongs.
//!
//! The events are those of the harness that measures the peers, by the same arithmetic: event `n` depends on `n` and
//! the seed only. `ysb.form` = `typed` has a column a field; `json` has one column `line` with the event as JSON.

mod events;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::error::Result as DataFusionResult;
use parking_lot::Mutex;
use thalweg_engine::Result;

use crate::Options;
use crate::generate::{GeneratedTable, Interleave, Rows, Ticks, check_columns};
use crate::ysb::events::{ADS, CampaignRows, EventRows, Events, Form};

const BASE_TIME: i64 = 1_600_000_000_000;
/// Events in a block of one split; see [`Interleave`].
const BLOCK: u64 = 1000;
const PACED_BLOCK: u64 = 50;

/// The table of `CREATE TABLE .. WITH ('connector' = 'ysb')`. Options: `ysb.form` (`typed`, `json`), `ysb.campaigns`,
/// `ysb.events`, `ysb.event-time-rate`, `ysb.splits`, `rows-per-second`, `seed`.
///
/// # Errors
/// When an option is unknown or wrong, or other columns are declared than it has.
pub fn create_table(columns: SchemaRef, options: &BTreeMap<String, String>) -> Result<Arc<dyn TableProvider>> {
    let mut options = Options::new("ysb", options);
    let form = match options.take("ysb.form") {
        None => Form::Typed,
        Some(text) => match text.trim().to_lowercase().as_str() {
            "typed" => Form::Typed,
            "json" => Form::Json,
            _ => return Err(options.bad_value("ysb.form", &text, "must be typed or json")),
        },
    };
    let campaigns = campaigns(&mut options)?;
    let events: Option<u64> = options.take_parsed("ysb.events")?;
    let per_second = options.take_positive("ysb.event-time-rate")?.unwrap_or(100_000);
    let splits = options.take_positive("ysb.splits")?.map(|splits| splits as usize);
    let pace = options.take_positive("rows-per-second")?;
    let seed: u64 = options.take_parsed("seed")?.unwrap_or(0);
    options.finish()?;
    let schema = match form {
        Form::Typed => typed_schema(),
        Form::Json => Arc::new(Schema::new(vec![Field::new("line", DataType::Utf8View, false)])),
    };
    let schema = check_columns("ysb", &columns, &schema)?;
    let made = Arc::new(Events::new(seed, campaigns, Ticks::new(BASE_TIME, per_second, 0)));
    let block = pace.map_or(BLOCK, |_| PACED_BLOCK);
    let full = Arc::clone(&schema);
    let make = move |projection: &[usize], splits: usize| -> DataFusionResult<Arc<dyn Rows>> {
        Ok(Arc::new(EventRows {
            events: Arc::clone(&made),
            form,
            schema: Arc::new(full.project(projection)?),
            projection: projection.to_vec(),
            deal: Interleave::new(splits, block),
            spare: (0..splits).map(|_| Mutex::default()).collect(),
        }))
    };
    Ok(Arc::new(GeneratedTable {
        connector: "ysb",
        schema,
        events,
        pace,
        splits,
        make: Box::new(make),
    }))
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'ysb-campaigns')`: each ad and its campaign. Its option is
/// `ysb.campaigns`.
///
/// # Errors
/// As for [`create_table`].
pub fn create_campaigns(columns: SchemaRef, options: &BTreeMap<String, String>) -> Result<Arc<dyn TableProvider>> {
    let mut options = Options::new("ysb-campaigns", options);
    let campaigns = campaigns(&mut options)?;
    options.finish()?;
    let column = |name| Field::new(name, DataType::Int64, false);
    let schema = Arc::new(Schema::new(vec![column("ad_id"), column("campaign_id")]));
    let schema = check_columns("ysb-campaigns", &columns, &schema)?;
    let full = Arc::clone(&schema);
    let make = move |projection: &[usize], splits: usize| -> DataFusionResult<Arc<dyn Rows>> {
        Ok(Arc::new(CampaignRows {
            schema: Arc::new(full.project(projection)?),
            projection: projection.to_vec(),
            deal: Interleave::new(splits, BLOCK),
        }))
    };
    Ok(Arc::new(GeneratedTable {
        connector: "ysb-campaigns",
        schema,
        events: Some(campaigns * ADS),
        pace: None,
        splits: None,
        make: Box::new(make),
    }))
}

fn campaigns(options: &mut Options) -> Result<u64> {
    let campaigns = options.take_positive("ysb.campaigns")?.unwrap_or(100);
    if campaigns > 1 << 40 {
        return Err(options.bad_value("ysb.campaigns", &campaigns.to_string(), "is too large"));
    }
    Ok(campaigns)
}

fn typed_schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8View, false);
    Arc::new(Schema::new(vec![
        text("user_id"),
        text("page_id"),
        Field::new("ad_id", DataType::Int64, false),
        text("ad_type"),
        text("event_type"),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        text("ip_address"),
    ]))
}
