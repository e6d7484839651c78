//! `'connector' = 'print'`: rows as text on stdout (or stderr), in Flink's style: `+I[1, a]`, and of a changelog
//! `-U[1, a]`, `+U[1, b]`, `-D[1, b]`. What is printed cannot be taken back, so this sink is neither atomic nor
//! exactly-once: it is for looking.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt8Array};
use arrow::datatypes::{SchemaRef, UInt8Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use thalweg_engine::operator::{PreparedSink, SinkConnector, SinkJob, SinkWriter};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{Batch, EngineError, Result};

use crate::{Options, SinkTable};

/// Makes print sinks. Options: `print-identifier`, `standard-error`.
#[derive(Clone, Copy, Debug)]
pub struct PrintConnector;

#[derive(Clone, Debug)]
struct Print {
    identifier: String,
    standard_error: bool,
}

impl Print {
    fn parse(options: &BTreeMap<String, String>) -> Result<Self> {
        let mut options = Options::new("print", options);
        let print = Self {
            identifier: options.take("print-identifier").unwrap_or_default(),
            standard_error: options.take_bool("standard-error", false)?,
        };
        options.finish()?;
        Ok(print)
    }
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'print')`.
///
/// # Errors
/// When an option is given that it does not have, or no columns are.
pub fn create_table(
    name: &str,
    columns: SchemaRef,
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    Print::parse(options)?;
    let mut options = options.clone();
    options.retain(|key, _| !key.eq_ignore_ascii_case("connector"));
    let sink = SinkSpec {
        connector: "print".into(),
        options,
        schema: SchemaSpec(Arc::clone(&columns)),
    };
    Ok(Arc::new(SinkTable::try_new(name, columns, sink)?))
}

impl SinkConnector for PrintConnector {
    fn name(&self) -> &str {
        "print"
    }

    fn prepare(&self, spec: &SinkSpec, _job: &SinkJob) -> Result<Arc<dyn PreparedSink>> {
        Ok(Arc::new(Print::parse(&spec.options)?))
    }
}

impl PreparedSink for Print {
    fn max_parallelism(&self) -> Option<usize> {
        None
    }

    fn writer(&self, subtask: usize, parallelism: usize) -> Result<Box<dyn SinkWriter>> {
        // As Flink does: with several subtasks every line tells which one printed it.
        let prefix = match (self.identifier.as_str(), parallelism > 1) {
            ("", false) => String::new(),
            ("", true) => format!("{}> ", subtask + 1),
            (identifier, false) => format!("{identifier}> "),
            (identifier, true) => format!("{identifier}:{}> ", subtask + 1),
        };
        Ok(Box::new(PrintWriter {
            prefix,
            standard_error: self.standard_error,
        }))
    }

    fn commit(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self) {}
}

/// The column, behind all others, that says of each row of a changelog what kind it is.
const ROW_KIND: &str = "$row_kind";

/// The kinds of the rows, where the batch is of a changelog, and the columns to print.
fn split_row_kinds(batch: &Batch) -> Result<(Option<&UInt8Array>, &[ArrayRef])> {
    let columns = batch.columns();
    let schema = batch.schema_ref();
    let Some((kinds, values)) = columns.split_last() else {
        return Ok((None, columns));
    };
    if schema.field(values.len()).name() != ROW_KIND {
        return Ok((None, columns));
    }
    match kinds.as_primitive_opt::<UInt8Type>() {
        Some(kinds) if kinds.null_count() == 0 => Ok((Some(kinds), values)),
        _ => Err(EngineError::Internal(format!(
            "{ROW_KIND} must be unsigned bytes and never NULL"
        ))),
    }
}

/// A kind as Flink writes it.
fn row_kind(kind: u8) -> Result<&'static str> {
    const KINDS: [&str; 4] = ["+I", "-U", "+U", "-D"];
    KINDS
        .get(usize::from(kind))
        .copied()
        .ok_or_else(|| EngineError::Internal(format!("there is no row kind {kind}")))
}

struct PrintWriter {
    prefix: String,
    standard_error: bool,
}

impl PrintWriter {
    fn lines(&self, batch: &Batch) -> Result<String> {
        let format = FormatOptions::default().with_null("NULL");
        let (kinds, values) = split_row_kinds(batch)?;
        let columns = values
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &format))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            text.push_str(&self.prefix);
            text.push_str(match kinds {
                None => "+I",
                Some(kinds) => row_kind(kinds.value(row))?,
            });
            text.push('[');
            for (i, column) in columns.iter().enumerate() {
                if i > 0 {
                    text.push_str(", ");
                }
                column
                    .value(row)
                    .write(&mut text)
                    .map_err(|e| EngineError::Internal(e.to_string()))?;
            }
            text.push_str("]\n");
        }
        Ok(text)
    }
}

impl SinkWriter for PrintWriter {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let text = self.lines(batch)?;
        // One call per batch under the stream's lock: lines of several subtasks do not mix.
        let (path, written) = if self.standard_error {
            ("stderr", std::io::stderr().lock().write_all(text.as_bytes()))
        } else {
            ("stdout", std::io::stdout().lock().write_all(text.as_bytes()))
        };
        written.map_err(|source| EngineError::Io {
            path: path.into(),
            source,
        })
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        std::io::stdout().flush().map_err(|source| EngineError::Io {
            path: "stdout".into(),
            source,
        })
    }

    fn next_roll_ms(&self) -> Option<i64> {
        None
    }

    fn roll(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    #[test]
    fn prints_in_flinks_style() {
        let a: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        let b: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        let batch = Batch::try_from_iter([("a", a), ("b", b)]).unwrap();
        let writer = PrintWriter {
            prefix: "p:2> ".into(),
            standard_error: false,
        };
        assert_eq!(writer.lines(&batch).unwrap(), "p:2> +I[1, x]\np:2> +I[NULL, y]\n");
    }

    #[test]
    fn a_changelog_says_the_kind_of_each_row() {
        let a: ArrayRef = Arc::new(Int64Array::from(vec![1, 1, 2, 2]));
        let changelog = |kinds: ArrayRef| Batch::try_from_iter([("a", Arc::clone(&a)), ("$row_kind", kinds)]).unwrap();
        let writer = PrintWriter {
            prefix: String::new(),
            standard_error: false,
        };
        let lines = writer
            .lines(&changelog(Arc::new(UInt8Array::from(vec![0, 1, 2, 3]))))
            .unwrap();
        assert_eq!(lines, "+I[1]\n-U[1]\n+U[2]\n-D[2]\n");
        for wrong in [
            vec![Some(0), Some(1), Some(2), Some(4)],
            vec![Some(0), None, Some(1), Some(2)],
        ] {
            assert!(writer.lines(&changelog(Arc::new(UInt8Array::from(wrong)))).is_err());
        }
        // A column of that name elsewhere is a column.
        let kinds: ArrayRef = Arc::new(UInt8Array::from(vec![3, 3, 3, 3]));
        let batch = Batch::try_from_iter([("$row_kind", kinds), ("a", a)]).unwrap();
        assert!(writer.lines(&batch).unwrap().starts_with("+I[3, 1]\n"));
    }

    #[test]
    fn an_unknown_option_is_named_with_the_valid_ones() {
        let options = BTreeMap::from([("print-identifer".to_string(), "x".to_string())]);
        let message = Print::parse(&options).unwrap_err().to_string();
        assert!(
            message.contains("'print-identifer'") && message.contains("print-identifier, standard-error"),
            "{message}"
        );
    }
}
