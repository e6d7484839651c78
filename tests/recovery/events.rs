//! The input of the jobs that are killed: events in files, some of them out of order, with NULLs, by a seed.

use std::fmt::Write;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rows of a file.
pub(crate) const FILE_ROWS: usize = 200;
/// Event time between two rows, in ms.
const STEP_MS: i64 = 50;
/// How far behind a row may come, in ms; the tables' watermarks wait for so long.
const DISORDER_MS: i64 = 900;

/// The text of file `number`: `id,k,v,ts` as CSV without a header. The times of all rows of a file are after those of the file
/// before, but for the disorder.
pub(crate) fn file(seed: u64, number: usize) -> String {
    let mut random = StdRng::seed_from_u64(seed ^ (number as u64) << 20);
    let mut text = String::new();
    for row in 0..FILE_ROWS {
        let id = number * FILE_ROWS + row;
        let key = random.random_range(0..12);
        let key = if key == 11 { String::new() } else { format!("key {key}") };
        let value = match random.random_range(0..20) {
            0 => String::new(),
            _ => random.random_range(-1000..1000).to_string(),
        };
        // Silences between bursts, so that there are sessions.
        let burst = (id / 40) as i64 * 4000;
        let time = 1_600_000_000_000 + id as i64 * STEP_MS + burst - random.random_range(0..DISORDER_MS);
        let _ = writeln!(text, "{id},{key},{value},{}", timestamp(time));
    }
    text
}

/// Milliseconds since the epoch as a SQL timestamp.
fn timestamp(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // The civil calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        rest / 3_600_000,
        rest / 60_000 % 60,
        rest / 1000 % 60,
        rest % 1000
    )
}

/// Puts file `number` into `folder`, at once and whole.
pub(crate) fn put(folder: &Path, seed: u64, number: usize) {
    let aside = folder.join(format!(".{number:05}.writing"));
    std::fs::write(&aside, file(seed, number)).unwrap();
    std::fs::rename(aside, folder.join(format!("{number:05}.csv"))).unwrap();
}

#[test]
fn times_are_written_as_sql_reads_them() {
    assert_eq!(timestamp(0), "1970-01-01 00:00:00.000");
    assert_eq!(timestamp(1_600_000_000_123), "2020-09-13 12:26:40.123");
    assert_eq!(timestamp(951_782_400_000), "2000-02-29 00:00:00.000");
}
