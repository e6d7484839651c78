//! For tests: a changelog folded into the table that it describes, with a check that it is well formed.

use std::collections::BTreeMap;

use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::data::{Batch, RowKind, is_changelog, split_row_kind};

/// A multiset of rows as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::operator) struct Folded(pub(in crate::operator) BTreeMap<String, usize>);

/// Each row as text.
pub(in crate::operator) fn lines(batch: &Batch) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            let values: Vec<String> = columns.iter().map(|column| column.value(row).to_string()).collect();
            values.join("|")
        })
        .collect()
}

/// Each row of a changelog as text, with its kind before it.
pub(in crate::operator) fn changes(batch: &Batch) -> Vec<String> {
    let (rows, kinds) = split_row_kind(batch).unwrap();
    let kind = |row| kinds.as_ref().map_or(0, |kinds| kinds.value(row));
    let lines = lines(&rows).into_iter().enumerate();
    lines
        .map(|(row, line)| format!("{} {line}", RowKind::from_u8(kind(row)).unwrap().symbol()))
        .collect()
}

impl Folded {
    /// A table of these rows.
    pub(in crate::operator) fn of(lines: impl IntoIterator<Item = String>) -> Self {
        let mut folded = Self::default();
        for line in lines {
            folded.insert(line);
        }
        folded
    }

    pub(in crate::operator) fn insert(&mut self, line: String) {
        *self.0.entry(line).or_default() += 1;
    }

    /// Takes a full changelog: what is taken back must be there, and `+U` follows its `-U`.
    pub(in crate::operator) fn fold(&mut self, batch: &Batch) {
        let (rows, kinds) = split_row_kind(batch).unwrap();
        assert_eq!(kinds.is_some(), is_changelog(batch.schema_ref()));
        let mut before = false;
        for (row, line) in lines(&rows).into_iter().enumerate() {
            let kind = kinds.as_ref().map_or(0, |kinds| kinds.value(row));
            let kind = RowKind::from_u8(kind).unwrap();
            assert_eq!(
                kind == RowKind::UpdateAfter,
                before,
                "-U and +U do not go in pairs at {line}"
            );
            before = kind == RowKind::UpdateBefore;
            if kind.is_addition() {
                self.insert(line);
            } else {
                let count = self.0.get_mut(&line).unwrap_or_else(|| panic!("{line} is not there"));
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&line);
                }
            }
        }
        assert!(!before, "a -U without its +U");
    }

    /// Takes upserts by the first `keys` columns: `+I` only of an unknown key, `+U` and `-D` only of a known one, no `-U`.
    pub(in crate::operator) fn upsert(&mut self, batch: &Batch, keys: &[usize]) {
        let (rows, kinds) = split_row_kind(batch).unwrap();
        let key_lines = lines(&rows.project(keys).unwrap());
        let kinds = kinds.unwrap();
        for (row, (line, key)) in lines(&rows).into_iter().zip(key_lines).enumerate() {
            let key = format!("{key} => ");
            let known = self.0.keys().find(|known| known.starts_with(&key)).cloned();
            match RowKind::from_u8(kinds.value(row)).unwrap() {
                RowKind::Insert => assert_eq!(known, None, "+I of a known key"),
                RowKind::UpdateAfter | RowKind::Delete => {
                    self.0.remove(&known.expect("a change of an unknown key"));
                }
                RowKind::UpdateBefore => panic!("-U is not wanted"),
            }
            if RowKind::from_u8(kinds.value(row)).unwrap().is_addition() {
                self.insert(format!("{key}{line}"));
            }
        }
    }

    /// The rows after upserts.
    pub(in crate::operator) fn without_keys(&self) -> Self {
        let rows = self
            .0
            .iter()
            .flat_map(|(line, count)| std::iter::repeat_n(line, *count));
        Self::of(rows.map(|line| {
            line.split_once(" => ")
                .map_or(line.as_str(), |(_, row)| row)
                .to_string()
        }))
    }
}
