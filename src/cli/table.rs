//! Results as tables that fit the terminal.
//!
//! The first rows are held until they are many enough to judge the widths of the columns by; then they are printed, and
//! every later row as it comes. On a terminal, cells are cut with `…` and the columns in the middle give way to a
//! column of `…`; elsewhere everything is printed whole.

mod layout;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::encode::{Encoder, Summary};
use super::failure::Result;
use layout::{Column, Layout, Slot};

/// Rows and bytes that are held to size the columns.
const SAMPLE_ROWS: usize = 1000;
const SAMPLE_BYTES: usize = 4 << 20;

/// One result as a table.
pub(crate) struct Table {
    names: Vec<String>,
    numeric: Vec<bool>,
    terminal_width: Option<usize>,
    sample: Vec<Vec<String>>,
    sample_bytes: usize,
    layout: Option<Layout>,
}

impl Table {
    /// A table of this schema for a terminal of this width, or of any width.
    pub(crate) fn new(schema: &SchemaRef, terminal_width: Option<usize>) -> Self {
        Self {
            names: schema.fields().iter().map(|field| visible(field.name())).collect(),
            numeric: schema
                .fields()
                .iter()
                .map(|field| is_numeric(field.data_type()))
                .collect(),
            terminal_width,
            sample: Vec::new(),
            sample_bytes: 0,
            layout: None,
        }
    }

    /// Chooses the widths from the rows held, and prints those.
    fn start(&mut self, out: &mut String) {
        let columns: Vec<_> = (0..self.names.len()).map(|i| self.measure(i)).collect();
        let layout = layout::fit(&columns, self.terminal_width);
        rule(&layout, ['┌', '┬', '┐'], out);
        self.row(&layout, &self.names, out);
        rule(&layout, ['├', '┼', '┤'], out);
        for row in std::mem::take(&mut self.sample) {
            self.row(&layout, &row, out);
        }
        self.layout = Some(layout);
    }

    fn measure(&self, column: usize) -> Column {
        Column {
            header: self.names[column].width(),
            cells: self.sample.iter().map(|row| row[column].width()).max().unwrap_or(0),
            numeric: self.numeric[column],
        }
    }

    fn row(&self, layout: &Layout, cells: &[String], out: &mut String) {
        for slot in &layout.slots {
            out.push_str("│ ");
            match slot {
                Slot::Elision => out.push('…'),
                Slot::Column { index, width } => self.cell(&cells[*index], *width, self.numeric[*index], out),
            }
            out.push(' ');
        }
        out.push_str("│\n");
    }

    fn cell(&self, text: &str, width: usize, right: bool, out: &mut String) {
        let mut used = text.width();
        let cut;
        let mut text = text;
        // A number that turns up later and is wider than its column is printed whole: cut, it would read as another.
        if self.terminal_width.is_some() && used > width && !(right && used <= layout::NUMBER_MIN) {
            cut = cut_to(text, width);
            text = &cut;
            used = text.width();
        }
        let padding = width.saturating_sub(used);
        if right {
            out.extend(std::iter::repeat_n(' ', padding));
        }
        out.push_str(text);
        if !right {
            out.extend(std::iter::repeat_n(' ', padding));
        }
    }
}

impl Encoder for Table {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        let options = FormatOptions::default().with_null("NULL");
        let columns = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options));
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            let cells: Vec<_> = columns
                .iter()
                .map(|column| visible(&column.value(row).to_string()))
                .collect();
            if let Some(layout) = &self.layout {
                self.row(layout, &cells, &mut text);
                continue;
            }
            self.sample_bytes += cells.iter().map(String::len).sum::<usize>();
            self.sample.push(cells);
            if self.sample.len() >= SAMPLE_ROWS || self.sample_bytes >= SAMPLE_BYTES {
                self.start(&mut text);
            }
        }
        out.extend(text.bytes());
        Ok(())
    }

    fn settle(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if self.layout.is_none() && !self.sample.is_empty() {
            let mut text = String::new();
            self.start(&mut text);
            out.extend(text.bytes());
        }
        Ok(())
    }

    fn end(&mut self, summary: &Summary, out: &mut Vec<u8>) -> Result<()> {
        let mut text = String::new();
        if self.layout.is_none() {
            self.start(&mut text);
        }
        if let Some(layout) = &self.layout {
            rule(layout, ['└', '┴', '┘'], &mut text);
            text.push_str(&footer(summary, layout.hidden, self.names.len()));
        }
        out.extend(text.bytes());
        Ok(())
    }
}

fn rule(layout: &Layout, [left, middle, right]: [char; 3], out: &mut String) {
    for (i, slot) in layout.slots.iter().enumerate() {
        out.push(if i == 0 { left } else { middle });
        out.extend(std::iter::repeat_n('─', slot.width() + 2));
    }
    out.push(right);
    out.push('\n');
}

/// `3 rows in 0.12 s`, and what is not shown.
fn footer(summary: &Summary, hidden: usize, columns: usize) -> String {
    let mut text = format!("{} {}", summary.rows, if summary.rows == 1 { "row" } else { "rows" });
    if let Some(elapsed) = summary.elapsed {
        let _ = write!(text, " in {:.2} s", elapsed.as_secs_f64());
    }
    if hidden > 0 {
        let _ = write!(text, " ({} of {columns} columns shown)", columns - hidden);
    }
    if summary.cut {
        text.push_str(" (there are more; `\\set limit N` or --max-rows N shows more of them, 0 shows all)");
    }
    text.push('\n');
    text
}

/// Control characters would move the cursor or break the rows: they are shown as escapes.
fn visible(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_string();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
    }
    shown
}

/// The longest beginning that leaves room for `…` within `width`.
fn cut_to(text: &str, width: usize) -> String {
    let (mut used, mut end) = (0, 0);
    for (start, cluster) in text.grapheme_indices(true) {
        used += cluster.width();
        if used + 1 > width {
            break;
        }
        end = start + cluster.len();
    }
    format!("{}…", &text[..end])
}

fn is_numeric(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_numeric(value),
        other => other.is_numeric(),
    }
}
