//! A schema registry, as Confluent's: schemas by number, over HTTP.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use thalweg_engine::{EngineError, Result};
use ureq::Agent;

/// So long the registry may take.
const ASK: Duration = Duration::from_secs(30);

/// What begins a record whose schema is in a registry.
pub(super) const MAGIC: u8 = 0;
/// The length of that beginning: the magic byte and the schema's number.
pub(super) const HEADER_BYTES: usize = 5;

/// The number of the schema that a record was written with.
pub(super) fn schema_id(record: &[u8]) -> Option<u32> {
    match record {
        [MAGIC, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// Asks a registry and remembers what it said.
pub(super) struct Registry {
    url: String,
    agent: Agent,
    /// Schemas as JSON; `None` where there is none of the number.
    schemas: Mutex<HashMap<u32, Option<Arc<str>>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.url)
    }
}

#[derive(Deserialize)]
struct Found {
    schema: String,
    #[serde(rename = "schemaType", default)]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

impl Registry {
    /// The registry at `url`.
    pub(super) fn new(url: &str) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(ASK))
            .http_status_as_error(false)
            .build();
        Self {
            url: url.trim_end_matches('/').to_string(),
            agent: config.into(),
            schemas: Mutex::default(),
        }
    }

    fn failed(&self, what: &str, why: impl fmt::Display) -> EngineError {
        EngineError::BadInput(format!("schema registry {}: {what}: {why}", self.url))
    }

    /// Finds the schemas of records out, where they are not known yet. Blocks.
    ///
    /// # Errors
    /// When the registry cannot be asked. A schema that it does not have is not an error here, but one of the record.
    pub(super) fn learn<'a>(&self, records: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        let mut last = None;
        for id in records.filter_map(schema_id) {
            if last == Some(id) {
                continue;
            }
            last = Some(id);
            if !self.schemas.lock().contains_key(&id) {
                let found = self.ask(id)?;
                // Not there today may be there tomorrow, when a job reads on.
                self.schemas.lock().insert(id, found.map(Into::into));
            }
        }
        Ok(())
    }

    /// A schema that was learned.
    pub(super) fn schema(&self, id: u32) -> Option<Arc<str>> {
        self.schemas.lock().get(&id).cloned().flatten()
    }

    fn ask(&self, id: u32) -> Result<Option<String>> {
        let what = format!("cannot fetch schema {id}");
        let url = format!("{}/schemas/ids/{id}", self.url);
        let mut answer = self.agent.get(&url).call().map_err(|e| self.failed(&what, e))?;
        match answer.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            status => return Err(self.failed(&what, format!("HTTP status {status}"))),
        }
        let found: Found = answer.body_mut().read_json().map_err(|e| self.failed(&what, e))?;
        if let Some(other) = found.schema_type.filter(|kind| !kind.eq_ignore_ascii_case("AVRO")) {
            return Err(self.failed(&what, format!("it is {other}; only AVRO is supported")));
        }
        if !found.references.is_empty() {
            return Err(self.failed(&what, "it refers to other schemas, which is not supported"));
        }
        Ok(Some(found.schema))
    }

    /// The number of `schema` under `subject`, which has it from now on. Blocks.
    ///
    /// # Errors
    /// When the registry cannot be asked or does not take the schema.
    pub(super) fn register(&self, subject: &str, schema: &str) -> Result<u32> {
        let what = format!("cannot register the schema of subject '{subject}'");
        let url = format!("{}/subjects/{subject}/versions", self.url);
        let mut answer = self
            .agent
            .post(&url)
            .send_json(json!({ "schema": schema }))
            .map_err(|e| self.failed(&what, e))?;
        if answer.status().as_u16() != 200 {
            let why = answer.body_mut().read_to_string().unwrap_or_default();
            return Err(self.failed(&what, format!("HTTP status {}: {why}", answer.status().as_u16())));
        }
        let registered: Registered = answer.body_mut().read_json().map_err(|e| self.failed(&what, e))?;
        Ok(registered.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_begins_with_the_number_of_its_schema() {
        assert_eq!(schema_id(&[0, 0, 0, 1, 2, 9]), Some(258));
        assert_eq!(schema_id(&[0, 0, 0, 1]), None);
        assert_eq!(schema_id(&[1, 0, 0, 1, 2, 9]), None);
        assert_eq!(schema_id(&[]), None);
    }
}
