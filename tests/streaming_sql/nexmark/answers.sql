-- What the queries of benches/nexmark/queries.sql must give, said again in DuckDB's SQL: windows by arithmetic on
-- milliseconds, sessions by gaps, the first rows of a group by sorted lists. A line `-- qN: how` begins each.

-- q0: as it is
SELECT auction, bidder, price, ts, extra FROM bid

-- q1: in decimals
SELECT auction, bidder, CAST(CAST(0.908 AS DECIMAL(4, 3)) * price AS DECIMAL(23, 3)), ts, extra FROM bid

-- q2: by the remainder
SELECT auction, price FROM bid WHERE mod(auction, 123) = 0

-- q3: persons by a semi join over lists of states
SELECT p.name, p.city, p.state, a.id
FROM (FROM person WHERE list_contains(['OR', 'ID', 'CA'], state)) p, (FROM auction WHERE category = 10) a
WHERE p.id = a.seller

-- q4: the maximum by a correlated lookup in a list
WITH best AS (
    SELECT a.id, any_value(a.category) AS category, list_max(list(b.price)) AS price
    FROM auction a, bid b
    WHERE b.auction = a.id AND epoch_ms(b.ts) >= epoch_ms(a.ts) AND epoch_ms(b.ts) <= epoch_ms(a.expires)
    GROUP BY a.id
)
SELECT category, CAST(sum(price) AS DOUBLE) / count(*) FROM best GROUP BY category

-- q5: the windows of a bid by arithmetic, the hottest by their rank
WITH counted AS (
    SELECT auction, (epoch_ms(ts) // 2000 - k) * 2000 AS start, count(*) AS n
    FROM bid, generate_series(0, 4) s(k)
    GROUP BY ALL
)
SELECT auction, n FROM (SELECT *, rank() OVER (PARTITION BY start ORDER BY n DESC) AS place FROM counted) WHERE place = 1

-- q6: the last ten of a seller as a list
WITH closed AS (
    SELECT a.id, any_value(a.seller) AS seller, any_value(a.expires) AS expires, max(b.price) AS price
    FROM auction a, bid b WHERE b.auction = a.id AND b.ts >= a.ts AND b.ts <= a.expires
    GROUP BY a.id
)
SELECT seller, list_avg(list(price ORDER BY expires DESC, id DESC)[1:10]) FROM closed GROUP BY seller

-- q7: the window of a bid by arithmetic; one at the very end of a window counts for it too
WITH tops AS (
    SELECT epoch_ms(ts) // 10000 AS w, max(price) AS top FROM bid GROUP BY w
)
SELECT b.auction, b.price, b.bidder, b.ts
FROM bid b, tops t
WHERE b.price = t.top AND epoch_ms(b.ts) >= t.w * 10000 AND epoch_ms(b.ts) <= (t.w + 1) * 10000

-- q8: who entered and sold in the same window
SELECT DISTINCT p.id, p.name, make_timestamp(epoch_ms(p.ts) // 10000 * 10000000)
FROM person p
WHERE EXISTS (FROM auction a WHERE a.seller = p.id AND epoch_ms(a.ts) // 10000 = epoch_ms(p.ts) // 10000)

-- q9: the winner by the greatest structure
WITH won AS (
    SELECT b.auction AS id, max({'price': b.price, 'early': -epoch_ms(b.ts), 'bidder': b.bidder}) AS best
    FROM auction a, bid b WHERE b.auction = a.id AND b.ts >= a.ts AND b.ts <= a.expires
    GROUP BY b.auction
)
SELECT a.id, a.item, a.description, a.initialbid, a.reserve, a.ts, a.expires, a.seller, a.category, best.bidder,
       best.price, make_timestamp(-best.early * 1000)
FROM won w JOIN auction a ON a.id = w.id

-- q10: the day and the minute as text
SELECT auction, bidder, price, ts, extra, strftime(ts, '%Y-%m-%d'), strftime(ts, '%H:%M') FROM bid

-- q11: a session begins where the bid before is ten seconds or more away
WITH marked AS (
    SELECT bidder, epoch_ms(ts) AS t,
           CASE WHEN epoch_ms(ts) - lag(epoch_ms(ts)) OVER w < 10000 THEN 0 ELSE 1 END AS begins
    FROM bid WINDOW w AS (PARTITION BY bidder ORDER BY ts)
), numbered AS (
    SELECT *, sum(begins) OVER (PARTITION BY bidder ORDER BY t RANGE UNBOUNDED PRECEDING) AS session FROM marked
)
SELECT bidder, count(*), make_timestamp(min(t) * 1000), make_timestamp((max(t) + 10000) * 1000)
FROM numbered GROUP BY bidder, session

-- q12: all bids of a bidder, whenever they are counted
SELECT bidder, count(*) FROM bid GROUP BY bidder

-- q13: the text of the key
SELECT auction, bidder, price, ts, CAST(mod(auction, 10000) AS VARCHAR) FROM bid

-- q14: hours, and letters counted one by one
SELECT auction, bidder, CAST(0.908 AS DOUBLE) * price,
       CASE WHEN hour(ts) IN (8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18) THEN 'day'
            WHEN hour(ts) IN (7, 19) THEN 'other' ELSE 'night' END,
       ts, extra, len(list_filter(string_split(extra, ''), c -> c = 'c'))
FROM bid WHERE CAST(0.908 AS DOUBLE) * price > 1000000 AND CAST(0.908 AS DOUBLE) * price < 50000000

-- q15: distinct values as lists
WITH b AS (SELECT *, strftime(ts, '%Y-%m-%d') AS day,
                  CASE WHEN price < 10000 THEN 'l' WHEN price < 1000000 THEN 'm' ELSE 'h' END AS class FROM bid)
SELECT day, count(*), sum((class = 'l')::INT)::BIGINT, sum((class = 'm')::INT)::BIGINT, sum((class = 'h')::INT)::BIGINT,
       len(list_distinct(list(bidder))),
       len(list_distinct(list(CASE class WHEN 'l' THEN bidder END))),
       len(list_distinct(list(CASE class WHEN 'm' THEN bidder END))),
       len(list_distinct(list(CASE class WHEN 'h' THEN bidder END))),
       len(list_distinct(list(auction))),
       len(list_distinct(list(CASE class WHEN 'l' THEN auction END))),
       len(list_distinct(list(CASE class WHEN 'm' THEN auction END))),
       len(list_distinct(list(CASE class WHEN 'h' THEN auction END)))
FROM b GROUP BY day

-- q16: the same by channel
WITH b AS (SELECT *, strftime(ts, '%Y-%m-%d') AS day,
                  CASE WHEN price < 10000 THEN 'l' WHEN price < 1000000 THEN 'm' ELSE 'h' END AS class FROM bid)
SELECT channel, day, strftime(max(date_trunc('minute', ts)), '%H:%M'), count(*), sum((class = 'l')::INT)::BIGINT,
       sum((class = 'm')::INT)::BIGINT, sum((class = 'h')::INT)::BIGINT,
       len(list_distinct(list(bidder))), len(list_distinct(list(CASE class WHEN 'l' THEN bidder END))),
       len(list_distinct(list(auction))), len(list_distinct(list(CASE class WHEN 'l' THEN auction END)))
FROM b GROUP BY channel, day

-- q17: from lists of prices
WITH b AS (SELECT auction, strftime(ts, '%Y-%m-%d') AS day, list(price) AS p FROM bid GROUP BY ALL)
SELECT auction, day, len(p), len(list_filter(p, x -> x < 10000)),
       len(list_filter(p, x -> x >= 10000 AND x < 1000000)), len(list_filter(p, x -> x >= 1000000)),
       list_min(p), list_max(p), list_avg(p), list_sum(p)::BIGINT
FROM b

-- q18: the latest
SELECT bid.auction, bid.bidder, bid.price, bid.channel, bid.url, bid.ts, bid.extra
FROM bid JOIN (SELECT auction, bidder, max(ts) AS last FROM bid GROUP BY ALL) l
  ON bid.auction = l.auction AND bid.bidder = l.bidder AND bid.ts = l.last

-- q19: auction, price and place: which of two equal prices comes first is open
WITH sorted AS (SELECT auction, list_slice(list(price ORDER BY price DESC), 1, 10) AS prices FROM bid GROUP BY auction)
SELECT auction, unnest(prices) AS price, unnest(generate_series(1, len(prices))) AS place FROM sorted

-- q20: auctions of one category
SELECT b.auction, b.bidder, b.price, b.channel, b.url, b.ts, b.extra, a.item, a.description, a.initialbid, a.reserve,
       a.ts, a.expires, a.seller, a.category, a.extra
FROM auction a, bid b WHERE a.id = b.auction AND a.category = 10

-- q21: by a map of channels, else from the URL
SELECT * FROM (
    SELECT auction, bidder, price, channel,
           coalesce(map(['apple', 'google', 'facebook', 'baidu'], ['0', '1', '2', '3'])[lower(channel)],
                    CASE WHEN contains(url, 'channel_id=')
                         THEN split_part(split_part(url, 'channel_id=', 2), '&', 1) END) AS channel_id
    FROM bid
) WHERE channel_id IS NOT NULL

-- q22: from the list of the URL's parts
SELECT auction, bidder, price, channel, coalesce(parts[4], ''), coalesce(parts[5], ''), coalesce(parts[6], '')
FROM (SELECT *, string_split(url, '/') AS parts FROM bid)
