//! The expected answers, computed naively from the definition of the relations.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::digest::{Digest, NULL, image};
use crate::relation::{Relation, Row};

/// The two relations of a cell.
pub(crate) struct Pair {
    pub(crate) t: Relation,
    pub(crate) u: Relation,
}

/// Which rows of a join come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    Inner,
    Left,
    Right,
    Full,
}

/// The images of a relation's row as `id, payload`, or of one that is not there.
struct Side<'a> {
    relation: &'a Relation,
    payloads: HashMap<u64, Vec<u64>>,
}

impl<'a> Side<'a> {
    fn new(relation: &'a Relation) -> Self {
        let payloads = HashMap::new();
        Self { relation, payloads }
    }

    fn payload(&mut self, text: u64) -> &[u64] {
        self.payloads
            .entry(text)
            .or_insert_with(|| self.relation.payload_images(text))
    }

    fn images(&mut self, row: Option<&Row>) -> Vec<u64> {
        match row {
            Some(row) => [row.id as u64]
                .into_iter()
                .chain(self.payload(row.text).iter().copied())
                .collect(),
            None => [NULL].into_iter().chain(self.relation.no_payload()).collect(),
        }
    }
}

/// `SELECT id, k, v, payload FROM t`: of all rows or some of them.
pub(crate) fn whole_rows(relation: &Relation, rows: &[Row]) -> Digest {
    let mut digest = Digest::default();
    let mut side = Side::new(relation);
    for row in rows {
        let head = [row.id as u64, relation.key_image(row.k), image(row.v)];
        digest.add(head.into_iter().chain(side.payload(row.text).iter().copied()));
    }
    digest
}

/// `ORDER BY k, id LIMIT limit OFFSET offset`.
pub(crate) fn first_rows(relation: &Relation, offset: usize, limit: usize) -> Digest {
    let mut rows = relation.all_rows();
    // NULL comes last.
    rows.sort_by_key(|row| (row.k.is_none(), row.k, row.id));
    let rows: Vec<_> = rows.into_iter().skip(offset).take(limit).collect();
    whole_rows(relation, &rows)
}

fn by_key(rows: &[Row]) -> HashMap<i64, Vec<usize>> {
    let mut places: HashMap<i64, Vec<usize>> = HashMap::new();
    for (place, row) in rows.iter().enumerate() {
        if let Some(key) = row.k {
            places.entry(key).or_default().push(place);
        }
    }
    places
}

/// `SELECT t.id, t.payload, u.id, u.payload FROM t JOIN u ON t.k = u.k AND condition`.
pub(crate) fn equi_join(pair: &Pair, join: Join, condition: impl Fn(&Row, &Row) -> bool) -> Digest {
    let (left, right) = (pair.t.all_rows(), pair.u.all_rows());
    let places = by_key(&right);
    join_rows(pair, join, &left, &right, |row| {
        let matches = row.k.and_then(|key| places.get(&key)).into_iter().flatten().copied();
        matches.filter(|place| condition(row, &right[*place])).collect()
    })
}

/// `SELECT t.id, t.payload, u.id, u.payload FROM t JOIN u ON condition`.
pub(crate) fn any_join(pair: &Pair, join: Join, condition: impl Fn(&Row, &Row) -> bool) -> Digest {
    let (left, right) = (pair.t.all_rows(), pair.u.all_rows());
    join_rows(pair, join, &left, &right, |row| {
        (0..right.len())
            .filter(|place| condition(row, &right[*place]))
            .collect()
    })
}

fn join_rows(pair: &Pair, join: Join, left: &[Row], right: &[Row], matches: impl Fn(&Row) -> Vec<usize>) -> Digest {
    let (mut t, mut u) = (Side::new(&pair.t), Side::new(&pair.u));
    let mut digest = Digest::default();
    let mut add = |left: Option<&Row>, right: Option<&Row>| {
        digest.add(t.images(left).into_iter().chain(u.images(right)));
    };
    let mut matched = vec![false; right.len()];
    for row in left {
        let places = matches(row);
        if places.is_empty() && matches!(join, Join::Left | Join::Full) {
            add(Some(row), None);
        }
        for place in places {
            matched[place] = true;
            add(Some(row), Some(&right[place]));
        }
    }
    if matches!(join, Join::Right | Join::Full) {
        let alone = right.iter().zip(&matched).filter(|(_, matched)| !**matched);
        alone.for_each(|(row, _)| add(None, Some(row)));
    }
    digest
}

/// `SELECT t.id, t.payload FROM t WHERE keep(t, the rows of u with its key)`.
pub(crate) fn kept_by_key(pair: &Pair, keep: impl Fn(&Row, &[&Row]) -> bool) -> Digest {
    let right = pair.u.all_rows();
    let places = by_key(&right);
    let mut side = Side::new(&pair.t);
    let mut digest = Digest::default();
    for row in pair.t.all_rows() {
        let matches = row.k.and_then(|key| places.get(&key)).into_iter().flatten();
        let matches: Vec<&Row> = matches.map(|place| &right[*place]).collect();
        if keep(&row, &matches) {
            digest.add(side.images(Some(&row)));
        }
    }
    digest
}

/// `SELECT t.id, t.payload FROM t WHERE [NOT] EXISTS (SELECT 1 FROM u WHERE condition)`.
pub(crate) fn kept_by_any(pair: &Pair, exists: bool, condition: impl Fn(&Row, &Row) -> bool) -> Digest {
    let right = pair.u.all_rows();
    let mut side = Side::new(&pair.t);
    let mut digest = Digest::default();
    for row in pair.t.all_rows() {
        if right.iter().any(|other| condition(&row, other)) == exists {
            digest.add(side.images(Some(&row)));
        }
    }
    digest
}

/// `SELECT count(*), sum(t.id * 3 + u.id) FROM t JOIN u ON t.k = u.k`.
pub(crate) fn count_of_join(pair: &Pair) -> Digest {
    let sums = |rows: Vec<Row>| {
        let mut sums: HashMap<i64, (i64, i64)> = HashMap::new();
        for row in rows {
            if let Some(key) = row.k {
                let (count, sum) = sums.entry(key).or_default();
                *count += 1;
                *sum += row.id;
            }
        }
        sums
    };
    let (left, right) = (sums(pair.t.all_rows()), sums(pair.u.all_rows()));
    let (mut count, mut sum) = (0, 0);
    for (key, (count_t, sum_t)) in &left {
        if let Some((count_u, sum_u)) = right.get(key) {
            count += count_t * count_u;
            sum += 3 * sum_t * count_u + sum_u * count_t;
        }
    }
    let mut digest = Digest::default();
    digest.add([count as u64, image((count > 0).then_some(sum))]);
    digest
}

#[derive(Default)]
struct Sums {
    rows: i64,
    count: i64,
    sum: i64,
    min: Option<i64>,
    max: Option<i64>,
}

impl Sums {
    fn add(&mut self, row: &Row) {
        self.rows += 1;
        if let Some(v) = row.v {
            self.count += 1;
            self.sum += v;
            self.min = Some(self.min.map_or(v, |min| min.min(v)));
            self.max = Some(self.max.map_or(v, |max| max.max(v)));
        }
    }

    fn sum(&self) -> Option<i64> {
        (self.count > 0).then_some(self.sum)
    }

    /// `count(*), count(v), sum(v), min(v), max(v), avg(v)`.
    fn images(&self) -> [u64; 6] {
        let average = self
            .sum()
            .map_or(NULL, |sum| (sum as f64 / self.count as f64).to_bits());
        [
            self.rows as u64,
            self.count as u64,
            image(self.sum()),
            image(self.min),
            image(self.max),
            average,
        ]
    }
}

/// `SELECT k, aggregates FROM t GROUP BY k`.
pub(crate) fn groups_of_key(relation: &Relation) -> Digest {
    let mut groups: HashMap<Option<i64>, Sums> = HashMap::new();
    relation
        .all_rows()
        .iter()
        .for_each(|row| groups.entry(row.k).or_default().add(row));
    let mut digest = Digest::default();
    for (key, sums) in groups {
        digest.add([relation.key_image(key)].into_iter().chain(sums.images()));
    }
    digest
}

/// `SELECT payload, aggregates FROM t GROUP BY payload`.
pub(crate) fn groups_of_text(relation: &Relation) -> Digest {
    let mut groups: HashMap<u64, Sums> = HashMap::new();
    relation
        .all_rows()
        .iter()
        .for_each(|row| groups.entry(row.text).or_default().add(row));
    let mut digest = Digest::default();
    for (text, sums) in groups {
        digest.add(relation.payload_images(text).into_iter().chain(sums.images()));
    }
    digest
}

/// `SELECT k, payload FROM t UNION SELECT k, payload FROM u`, and the like: distinct rows.
pub(crate) fn distinct_rows(relation: &Relation, rows: impl IntoIterator<Item = Row>) -> Digest {
    let rows: HashSet<(Option<i64>, u64)> = rows.into_iter().map(|row| (row.k, row.text)).collect();
    let mut side = Side::new(relation);
    let mut digest = Digest::default();
    for (key, text) in rows {
        let key = relation.key_image(key);
        digest.add([key].into_iter().chain(side.payload(text).iter().copied()));
    }
    digest
}

/// `SELECT DISTINCT k, v FROM t`.
pub(crate) fn distinct_keys(relation: &Relation) -> Digest {
    let rows: HashSet<_> = relation.all_rows().iter().map(|row| (row.k, row.v)).collect();
    let mut digest = Digest::default();
    for (key, v) in rows {
        digest.add([relation.key_image(key), image(v)]);
    }
    digest
}

/// One row of one count.
pub(crate) fn count(count: usize) -> Digest {
    let mut digest = Digest::default();
    digest.add([count as u64]);
    digest
}

/// `SELECT id, payload, f(rows of the partition before and with this one, sum of all v) OVER (PARTITION BY k ORDER BY id)`.
pub(crate) fn window(relation: &Relation, f: impl Fn(&Running, &Running) -> u64) -> Digest {
    let rows = relation.all_rows();
    let mut partitions: BTreeMap<Option<i64>, Vec<&Row>> = BTreeMap::new();
    // Rows come in the order of their ids.
    rows.iter()
        .for_each(|row| partitions.entry(row.k).or_default().push(row));
    let mut side = Side::new(relation);
    let mut digest = Digest::default();
    for partition in partitions.values() {
        let mut whole = Running::default();
        partition.iter().for_each(|row| whole.0.add(row));
        let mut running = Running::default();
        for row in partition {
            running.0.add(row);
            let value = f(&running, &whole);
            digest.add(side.images(Some(row)).into_iter().chain([value]));
        }
    }
    digest
}

/// The rows of a window.
#[derive(Default)]
pub(crate) struct Running(Sums);

impl Running {
    pub(crate) fn rows(&self) -> u64 {
        self.0.rows as u64
    }

    pub(crate) fn sum(&self) -> u64 {
        image(self.0.sum())
    }
}
