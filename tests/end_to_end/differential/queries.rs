//! Random queries whose answer is fixed as a multiset of rows.

use rand::Rng;
use rand::rngs::StdRng;

const ALL: [&str; 15] = [
    "k", "n", "b", "s", "v", "g", "f", "d", "h", "o", "ts", "dt", "iv", "l", "st",
];
/// Columns that can be compared and ordered.
const SCALAR: [&str; 12] = ["k", "n", "b", "s", "v", "g", "f", "d", "h", "o", "ts", "dt"];
const GROUPABLE: [&str; 14] = ["k", "b", "s", "v", "g", "f", "d", "h", "o", "ts", "dt", "iv", "l", "st"];
const JOINABLE: [&str; 9] = ["k", "s", "v", "g", "d", "h", "dt", "f", "ts"];

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[random.random_range(0..from.len())]
}

fn several(random: &mut StdRng, from: &[&str], most: usize) -> Vec<String> {
    let count = random.random_range(1..=most);
    let mut columns: Vec<String> = (0..count).map(|_| pick(random, from).to_string()).collect();
    columns.sort();
    columns.dedup();
    columns
}

fn table(random: &mut StdRng) -> &'static str {
    ["t", "t", "t", "u", "e"][random.random_range(0..5)]
}

/// A predicate over the columns of `alias`.
fn predicate(random: &mut StdRng, alias: &str) -> String {
    let simple = |random: &mut StdRng| {
        let int = random.random_range(-5..15);
        match random.random_range(0..12) {
            0 => format!("{alias}.k > {int}"),
            1 => format!("{alias}.k = {int}"),
            2 => format!("{alias}.s LIKE '%a%'"),
            3 => format!("{alias}.f < 1.5"),
            4 => format!("{alias}.g IN ('red', 'blue')"),
            5 => format!("{alias}.o"),
            6 => format!("{alias}.d BETWEEN -1 AND 2.5"),
            7 => format!("{alias}.l IS NOT NULL"),
            8 => format!("{alias}.k IS NULL"),
            9 => format!("{alias}.dt >= DATE '2011-01-28'"),
            10 => format!("{alias}.v NOT IN ('a', 'b')"),
            _ => format!("{alias}.st['x'] = 1"),
        }
    };
    match random.random_range(0..6) {
        0 => format!("({} AND {})", simple(random), simple(random)),
        1 => format!("({} OR {})", simple(random), simple(random)),
        2 => format!("NOT ({})", simple(random)),
        _ => simple(random),
    }
}

fn aggregate(random: &mut StdRng) -> String {
    let call = match random.random_range(0..14) {
        0 => "count(*)".to_string(),
        1 => format!("count({})", pick(random, &ALL)),
        2 => format!("count(DISTINCT {})", pick(random, &["k", "s", "g", "d", "f", "dt"])),
        3 => format!("sum({})", pick(random, &["k", "n", "d", "h"])),
        4 => format!(
            "min({})",
            pick(random, &["k", "n", "s", "v", "d", "h", "ts", "dt", "b"])
        ),
        5 => format!(
            "max({})",
            pick(random, &["k", "n", "s", "v", "d", "h", "ts", "dt", "b"])
        ),
        6 => format!("avg({})", pick(random, &["k", "d"])),
        7 => "sum(DISTINCT k)".to_string(),
        8 => "array_agg(n ORDER BY n)".to_string(),
        9 => "bool_or(o)".to_string(),
        10 => "median(k)".to_string(),
        11 => "first_value(n ORDER BY n DESC)".to_string(),
        12 => "bit_xor(b)".to_string(),
        _ => "string_agg(CAST(n AS VARCHAR), ',' ORDER BY n)".to_string(),
    };
    if random.random_bool(0.2) && !call.contains("ORDER BY") {
        format!("{call} FILTER (WHERE {})", predicate(random, "x"))
    } else {
        call
    }
}

fn select(random: &mut StdRng) -> String {
    let columns = several(random, &ALL, 6).join(", ");
    let expression = match random.random_range(0..5) {
        0 => ", k + 1, n * 2",
        1 => ", CASE WHEN k > 3 THEN s ELSE v END",
        2 => ", coalesce(k, 0), upper(s)",
        3 => ", f * 2, d + 1",
        _ => "",
    };
    let filter = if random.random_bool(0.7) {
        format!(" WHERE {}", predicate(random, "x"))
    } else {
        String::new()
    };
    let distinct = if expression.is_empty() && random.random_bool(0.3) {
        "DISTINCT "
    } else {
        ""
    };
    format!(
        "SELECT {distinct}{columns}{expression} FROM {} x{filter}",
        table(random)
    )
}

fn top(random: &mut StdRng) -> String {
    // Ordered by all its columns: which rows are the first is fixed.
    let columns = several(random, &SCALAR, 4);
    let order: Vec<String> = columns
        .iter()
        .map(|column| {
            let direction = ["", " DESC"][random.random_range(0..2)];
            let nulls = ["", " NULLS FIRST", " NULLS LAST"][random.random_range(0..3)];
            format!("{column}{direction}{nulls}")
        })
        .collect();
    let (limit, offset) = (random.random_range(0..50), random.random_range(0..20));
    let columns = columns.join(", ");
    format!(
        "SELECT {columns} FROM {} x ORDER BY {} LIMIT {limit} OFFSET {offset}",
        table(random),
        order.join(", ")
    )
}

fn group(random: &mut StdRng) -> String {
    let keys = several(random, &GROUPABLE, 3).join(", ");
    let calls = (0..random.random_range(1..4))
        .map(|_| aggregate(random))
        .collect::<Vec<_>>()
        .join(", ");
    let filter = if random.random_bool(0.4) {
        format!(" WHERE {}", predicate(random, "x"))
    } else {
        String::new()
    };
    let table = table(random);
    let shape = random.random_range(0..8);
    // DataFusion takes a key that a filter makes constant for a sorted one, and then emits the groups of the other
    // grouping sets before they are complete.
    let filter = if (2..=4).contains(&shape) && filter.contains("x.k =") {
        String::new()
    } else {
        filter
    };
    match shape {
        0 => format!("SELECT {calls} FROM {table} x{filter}"),
        1 => format!("SELECT {keys}, {calls} FROM {table} x{filter} GROUP BY {keys} HAVING count(*) > 1"),
        2 => format!("SELECT g, o, grouping(g), {calls} FROM {table} x{filter} GROUP BY ROLLUP (g, o)"),
        3 => format!("SELECT g, k, {calls} FROM {table} x{filter} GROUP BY GROUPING SETS ((g), (k), ())"),
        4 => format!("SELECT g, o, {calls} FROM {table} x{filter} GROUP BY CUBE (g, o)"),
        _ => format!("SELECT {keys}, {calls} FROM {table} x{filter} GROUP BY {keys}"),
    }
}

fn join(random: &mut StdRng) -> String {
    let kind = pick(
        random,
        &[
            "JOIN",
            "LEFT JOIN",
            "RIGHT JOIN",
            "FULL JOIN",
            "LEFT SEMI JOIN",
            "LEFT ANTI JOIN",
        ],
    );
    let first = pick(random, &JOINABLE);
    let mut condition = format!("x.{first} = y.{first}");
    if random.random_bool(0.3) {
        let second = pick(random, &JOINABLE);
        condition.push_str(&format!(" AND x.{second} = y.{second}"));
    }
    if random.random_bool(0.3) {
        condition.push_str(" AND x.n < y.n + 20");
    }
    if random.random_bool(0.15) {
        condition = format!("x.{first} IS NOT DISTINCT FROM y.{first}");
    }
    if random.random_bool(0.1) {
        condition = "x.k < y.k AND x.f > y.f".into();
    }
    let columns = match kind {
        "LEFT SEMI JOIN" | "LEFT ANTI JOIN" => "x.n, x.k, x.s",
        _ => "x.n, x.s, y.n, y.g, y.l",
    };
    let filter = match random.random_range(0..3) {
        0 => format!(" WHERE {}", predicate(random, "x")),
        _ => String::new(),
    };
    format!(
        "SELECT {columns} FROM {} x {kind} {} y ON {condition}{filter}",
        table(random),
        ["t", "u", "u", "e"][random.random_range(0..4)]
    )
}

fn subquery(random: &mut StdRng) -> String {
    let inner = ["u", "t", "e"][random.random_range(0..3)];
    let filter = predicate(random, "y");
    let not = ["", "NOT "][random.random_range(0..2)];
    let key = pick(random, &["k", "s", "d"]);
    let table = table(random);
    match random.random_range(0..7) {
        0 => format!("SELECT n FROM {table} x WHERE {key} {not}IN (SELECT {key} FROM {inner} y WHERE {filter})"),
        1 => format!(
            "SELECT n FROM {table} x WHERE {not}EXISTS (SELECT 1 FROM {inner} y WHERE y.{key} = x.{key} AND {filter})"
        ),
        2 => format!("SELECT n, (SELECT max(n) FROM {inner} y WHERE {filter}) FROM {table} x"),
        3 => format!("SELECT n FROM {table} x WHERE n > (SELECT avg(n) FROM {inner} y WHERE {filter})"),
        4 => format!("SELECT n, (SELECT count(*) FROM {inner} y WHERE y.k = x.k) FROM {table} x"),
        5 => format!("SELECT n FROM {table} x WHERE k > 3 OR {key} IN (SELECT {key} FROM {inner} y WHERE {filter})"),
        _ => format!("SELECT n FROM {table} x WHERE x.n < ALL (SELECT n FROM {inner} y WHERE {filter})"),
    }
}

fn set(random: &mut StdRng) -> String {
    let columns = several(random, &SCALAR, 3).join(", ");
    // INTERSECT ALL and EXCEPT ALL count copies as SQL does, which DataFusion does not: tests/sql has them.
    let operator = pick(random, &["UNION ALL", "UNION", "INTERSECT", "EXCEPT"]);
    let (left, right) = (predicate(random, "x"), predicate(random, "y"));
    format!(
        "SELECT {columns} FROM {} x WHERE {left} {operator} SELECT {columns} FROM u y WHERE {right}",
        table(random)
    )
}

fn window(random: &mut StdRng) -> String {
    let partition = pick(random, &["g", "k", "s", "o", "dt"]);
    let order = pick(random, &["k", "f", "d", "ts", "n", "s"]);
    let call = match random.random_range(0..8) {
        0 => format!("rank() OVER (PARTITION BY {partition} ORDER BY {order})"),
        1 => format!("dense_rank() OVER (PARTITION BY {partition} ORDER BY {order} DESC)"),
        2 => format!("sum(k) OVER (PARTITION BY {partition} ORDER BY {order})"),
        3 => format!("count(*) OVER (PARTITION BY {partition})"),
        4 => format!("row_number() OVER (PARTITION BY {partition} ORDER BY n)"),
        5 => format!("lag(n) OVER (PARTITION BY {partition} ORDER BY n)"),
        6 => format!("max(d) OVER (PARTITION BY {partition} ORDER BY n ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING)"),
        _ => "row_number() OVER (ORDER BY n), ntile(3) OVER (ORDER BY n DESC)".to_string(),
    };
    format!("SELECT n, {call} FROM {} x", table(random))
}

fn other(random: &mut StdRng) -> String {
    let table = table(random);
    let limit = random.random_range(1..10);
    match random.random_range(0..7) {
        0 => format!("SELECT n, unnest(l) FROM {table} x"),
        1 => format!("SELECT DISTINCT ON (k) k, n FROM {table} x ORDER BY k, n"),
        2 => format!(
            "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r WHERE i < {limit}) SELECT i, n FROM r JOIN {table} x ON x.k = r.i"
        ),
        3 => format!(
            "SELECT a, count(*) FROM (VALUES (1, 'x'), (2, NULL), (NULL, 'y')) v(a, c) LEFT JOIN {table} x ON x.k = a GROUP BY a"
        ),
        4 => format!("SELECT count(*) FROM (SELECT n FROM {table} x LIMIT {limit})"),
        5 => format!("SELECT x.n, y.n FROM {table} x CROSS JOIN (SELECT n FROM u y WHERE n < 3) y"),
        _ => format!("SELECT st, l, count(*) FROM {table} x GROUP BY st, l"),
    }
}

/// One query.
pub(crate) fn query(random: &mut StdRng) -> String {
    match random.random_range(0..16) {
        0..=1 => select(random),
        2..=3 => top(random),
        4..=6 => group(random),
        7..=9 => join(random),
        10..=11 => subquery(random),
        12 => set(random),
        13..=14 => window(random),
        _ => other(random),
    }
}
