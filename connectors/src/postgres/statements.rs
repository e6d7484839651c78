//! The statements: whole columns as arrays, unnested to rows by the server.

use std::collections::HashMap;
use std::fmt;

use arrow::datatypes::{DataType, Schema};

/// A table, perhaps with its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableName {
    schema: Option<String>,
    table: String,
}

impl TableName {
    /// `table` or `schema.table`; each part is taken as it is, upper case included.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('.').map(str::trim).collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err("must name a table: table, or schema.table".into());
        }
        match parts.as_slice() {
            [table] => Ok(Self {
                schema: None,
                table: table.to_string(),
            }),
            [schema, table] => Ok(Self {
                schema: Some(schema.to_string()),
                table: table.to_string(),
            }),
            _ => Err("must be table or schema.table".into()),
        }
    }

    /// Another table of the same schema.
    pub(super) fn sibling(&self, table: &str) -> Self {
        Self {
            schema: self.schema.clone(),
            table: table.into(),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{}.", quoted(schema))?;
        }
        f.write_str(&quoted(&self.table))
    }
}

/// A name that SQL takes as it is.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A column of the table, as the server describes it.
#[derive(Clone, Debug)]
pub(super) struct TargetColumn {
    /// Its type's name, quoted.
    pub(super) type_name: String,
    /// Whether texts go there as they are.
    pub(super) is_text: bool,
}

/// The columns of the table by name.
pub(super) type TargetColumns = HashMap<String, TargetColumn>;

/// The parameters as the rows `u(c0, c1, ..)`.
fn unnested(columns: usize) -> String {
    let list = |prefix: &str| {
        let items = (0..columns).map(|i| format!("{prefix}{}", i + 1));
        items.collect::<Vec<_>>().join(", ")
    };
    format!("UNNEST({}) AS u({})", list("$"), list("c"))
}

/// Column `index` of `u`. `exact` when it must have the type of the table's column, rather than one that may be assigned to it.
fn value(index: usize, data_type: &DataType, target: &TargetColumn, exact: bool) -> String {
    let value = format!("u.c{}", index + 1);
    match data_type {
        DataType::Decimal128(..) | DataType::Decimal256(..) => format!("{value}::numeric"),
        // Only a cast reads JSON, a UUID or an enumeration from its text.
        DataType::Utf8 if !target.is_text => format!("{value}::{}", target.type_name),
        _ if exact => format!("{value}::{}", target.type_name),
        _ => value,
    }
}

fn target<'a>(targets: &'a TargetColumns, table: &TableName, name: &str) -> Result<&'a TargetColumn, String> {
    targets.get(name).ok_or_else(|| {
        let mut known: Vec<&str> = targets.keys().map(String::as_str).collect();
        known.sort_unstable();
        format!(
            "table {table} has no column '{name}'; its columns are: {}",
            known.join(", ")
        )
    })
}

/// Adds rows of `rows`, or lets them take the place of those with the same `key`.
pub(super) fn insert(
    table: &TableName,
    rows: &Schema,
    key: &[String],
    targets: &TargetColumns,
) -> Result<String, String> {
    let (mut names, mut values, mut updates) = (Vec::new(), Vec::new(), Vec::new());
    for (index, field) in rows.fields().iter().enumerate() {
        let name = quoted(field.name());
        if !key.contains(field.name()) {
            updates.push(format!("{name} = EXCLUDED.{name}"));
        }
        values.push(value(
            index,
            field.data_type(),
            target(targets, table, field.name())?,
            false,
        ));
        names.push(name);
    }
    let conflict = match (key.is_empty(), updates.is_empty()) {
        (true, _) => String::new(),
        (false, true) => format!(" ON CONFLICT ({}) DO NOTHING", list(key)),
        (false, false) => format!(" ON CONFLICT ({}) DO UPDATE SET {}", list(key), updates.join(", ")),
    };
    Ok(format!(
        "INSERT INTO {table} ({}) SELECT {} FROM {}{conflict}",
        names.join(", "),
        values.join(", "),
        unnested(names.len())
    ))
}

/// Deletes the rows with these keys.
pub(super) fn delete(table: &TableName, keys: &Schema, targets: &TargetColumns) -> Result<String, String> {
    let mut conditions = Vec::new();
    for (index, field) in keys.fields().iter().enumerate() {
        let target = target(targets, table, field.name())?;
        let value = value(index, field.data_type(), target, true);
        conditions.push(format!("t.{} = {value}", quoted(field.name())));
    }
    Ok(format!(
        "DELETE FROM {table} AS t USING {} WHERE {}",
        unnested(conditions.len()),
        conditions.join(" AND ")
    ))
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// The columns of a table that is named by `$1`.
pub(super) const DESCRIBE: &str = "SELECT a.attname::text, format('%I.%I', n.nspname, t.typname), t.typcategory::text \
     FROM pg_catalog.pg_attribute a \
     JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
     JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
     WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";

/// Makes the table of what has been committed.
pub(super) fn create_commits(commits: &TableName) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {commits} (job text NOT NULL, run text NOT NULL, subtask bigint NOT NULL, \
         checkpoint bigint NOT NULL, committed_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (job, run, subtask))"
    )
}

/// Records a checkpoint; no row is affected when it, or a later one, is recorded already.
pub(super) fn record_commit(commits: &TableName) -> String {
    format!(
        "INSERT INTO {commits} AS c (job, run, subtask, checkpoint) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (job, run, subtask) DO UPDATE SET checkpoint = EXCLUDED.checkpoint, committed_at = now() \
         WHERE c.checkpoint < EXCLUDED.checkpoint"
    )
}

/// Forgets runs that nobody will publish for again.
pub(super) fn forget_commits(commits: &TableName) -> String {
    format!("DELETE FROM {commits} WHERE committed_at < now() - interval '90 days'")
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn names_are_quoted_and_values_cast_where_they_must_be() {
        let table = TableName::parse("s.a\"b").unwrap();
        let column = |type_name: &str, is_text| TargetColumn {
            type_name: type_name.into(),
            is_text,
        };
        let targets = HashMap::from([
            ("k".to_string(), column("pg_catalog.int4", false)),
            ("j".to_string(), column("pg_catalog.jsonb", false)),
            ("n".to_string(), column("pg_catalog.numeric", false)),
        ]);
        let k = Field::new("k", DataType::Int64, false);
        let schema = Schema::new(vec![
            k.clone(),
            Field::new("j", DataType::Utf8, true),
            Field::new("n", DataType::Decimal128(10, 2), true),
        ]);
        assert_eq!(
            insert(&table, &schema, &["k".into()], &targets).unwrap(),
            r#"INSERT INTO "s"."a""b" ("k", "j", "n") SELECT u.c1, u.c2::pg_catalog.jsonb, u.c3::numeric FROM UNNEST($1, $2, $3) AS u(c1, c2, c3) ON CONFLICT ("k") DO UPDATE SET "j" = EXCLUDED."j", "n" = EXCLUDED."n""#
        );
        let keys = Schema::new(vec![k]);
        assert_eq!(
            delete(&table, &keys, &targets).unwrap(),
            r#"DELETE FROM "s"."a""b" AS t USING UNNEST($1) AS u(c1) WHERE t."k" = u.c1::pg_catalog.int4"#
        );
        assert!(
            insert(&table, &keys, &["k".into()], &targets)
                .unwrap()
                .ends_with("DO NOTHING")
        );
        let missing = Schema::new(vec![Field::new("x", DataType::Int64, true)]);
        assert!(
            insert(&table, &missing, &[], &targets)
                .unwrap_err()
                .contains("has no column 'x'; its columns are: j, k, n")
        );
    }
}
