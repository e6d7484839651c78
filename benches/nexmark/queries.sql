-- The queries of the Nexmark benchmark. A line `-- qN: title` begins each.

-- q0: pass through
SELECT auction, bidder, price, ts, extra FROM bid

-- q1: currency conversion
SELECT auction, bidder, CAST(0.908 * price AS DECIMAL(23, 3)) AS price, ts, extra FROM bid

-- q2: selection
SELECT auction, price FROM bid WHERE auction % 123 = 0

-- q3: local item suggestion
SELECT p.name, p.city, p.state, a.id
FROM auction a JOIN person p ON a.seller = p.id
WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')

-- q4: average price for a category
SELECT category, AVG(best) AS average
FROM (
    SELECT MAX(b.price) AS best, a.category
    FROM auction a JOIN bid b ON a.id = b.auction AND b.ts BETWEEN a.ts AND a.expires
    GROUP BY a.id, a.category
) t
GROUP BY category

-- q5: hot items
SELECT c.auction, c.n
FROM (
    SELECT auction, COUNT(*) AS n, window_start, window_end
    FROM TABLE(HOP(TABLE bid, DESCRIPTOR(ts), INTERVAL '2' SECOND, INTERVAL '10' SECOND))
    GROUP BY auction, window_start, window_end
) c JOIN (
    SELECT MAX(n) AS m, window_start, window_end
    FROM (
        SELECT auction, COUNT(*) AS n, window_start, window_end
        FROM TABLE(HOP(TABLE bid, DESCRIPTOR(ts), INTERVAL '2' SECOND, INTERVAL '10' SECOND))
        GROUP BY auction, window_start, window_end
    ) x
    GROUP BY window_start, window_end
) m ON c.window_start = m.window_start AND c.window_end = m.window_end AND c.n >= m.m

-- q6: average selling price by seller
SELECT seller, AVG(price) AS average
FROM (
    SELECT seller, price, ROW_NUMBER() OVER (PARTITION BY seller ORDER BY expires DESC, id DESC) AS place
    FROM (
        SELECT a.id, a.seller, a.expires, b.price,
               ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.ts) AS best
        FROM auction a JOIN bid b ON a.id = b.auction AND b.ts BETWEEN a.ts AND a.expires
    ) bids
    WHERE best <= 1
) closed
WHERE place <= 10
GROUP BY seller

-- q7: highest bid
SELECT b.auction, b.price, b.bidder, b.ts
FROM bid b JOIN (
    SELECT MAX(price) AS top, window_end
    FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(ts), INTERVAL '10' SECOND))
    GROUP BY window_start, window_end
) m ON b.price = m.top AND b.ts BETWEEN m.window_end - INTERVAL '10' SECOND AND m.window_end

-- q8: monitor new users
SELECT p.id, p.name, p.window_start
FROM (
    SELECT id, name, window_start, window_end
    FROM TABLE(TUMBLE(TABLE person, DESCRIPTOR(ts), INTERVAL '10' SECOND))
    GROUP BY id, name, window_start, window_end
) p JOIN (
    SELECT seller, window_start, window_end
    FROM TABLE(TUMBLE(TABLE auction, DESCRIPTOR(ts), INTERVAL '10' SECOND))
    GROUP BY seller, window_start, window_end
) a ON p.id = a.seller AND p.window_start = a.window_start AND p.window_end = a.window_end

-- q9: winning bids
SELECT id, item, description, initial_bid, reserve, ts, expires, seller, category, bidder, price, bid_ts
FROM (
    SELECT a.id, a.item, a.description, a.initial_bid, a.reserve, a.ts, a.expires, a.seller, a.category, b.bidder,
           b.price, b.ts AS bid_ts, ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.ts) AS best
    FROM auction a JOIN bid b ON a.id = b.auction AND b.ts BETWEEN a.ts AND a.expires
) bids
WHERE best <= 1

-- q10: log to files
SELECT auction, bidder, price, ts, extra, to_char(ts, '%Y-%m-%d') AS day, to_char(ts, '%H:%M') AS minute FROM bid

-- q11: user sessions
SELECT bidder, COUNT(*) AS n, window_start, window_end
FROM TABLE(SESSION(TABLE bid PARTITION BY bidder, DESCRIPTOR(ts), INTERVAL '10' SECOND))
GROUP BY bidder, window_start, window_end

-- q12: windows of processing time
SELECT bidder, COUNT(*) AS n, window_start, window_end
FROM TABLE(TUMBLE((SELECT bidder, PROCTIME() AS pt FROM bid), DESCRIPTOR(pt), INTERVAL '10' SECOND))
GROUP BY bidder, window_start, window_end

-- q13: join with a bounded side input
SELECT b.auction, b.bidder, b.price, b.ts, s.value
FROM (SELECT *, auction % 10000 AS side_key, PROCTIME() AS pt FROM bid) b
JOIN side_input FOR SYSTEM_TIME AS OF b.pt AS s ON b.side_key = s.key

-- q14: calculation
SELECT auction, bidder, 0.908 * price AS price,
       CASE WHEN date_part('hour', ts) BETWEEN 8 AND 18 THEN 'day'
            WHEN date_part('hour', ts) <= 6 OR date_part('hour', ts) >= 20 THEN 'night'
            ELSE 'other' END AS time_of_day,
       ts, extra, character_length(extra) - character_length(replace(extra, 'c', '')) AS c_counts
FROM bid
WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000

-- q15: bidding statistics of a day
SELECT to_char(ts, '%Y-%m-%d') AS day, COUNT(*) AS bids,
       COUNT(*) FILTER (WHERE price < 10000) AS low_bids,
       COUNT(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS middle_bids,
       COUNT(*) FILTER (WHERE price >= 1000000) AS high_bids,
       COUNT(DISTINCT bidder) AS bidders,
       COUNT(DISTINCT bidder) FILTER (WHERE price < 10000) AS low_bidders,
       COUNT(DISTINCT bidder) FILTER (WHERE price >= 10000 AND price < 1000000) AS middle_bidders,
       COUNT(DISTINCT bidder) FILTER (WHERE price >= 1000000) AS high_bidders,
       COUNT(DISTINCT auction) AS auctions,
       COUNT(DISTINCT auction) FILTER (WHERE price < 10000) AS low_auctions,
       COUNT(DISTINCT auction) FILTER (WHERE price >= 10000 AND price < 1000000) AS middle_auctions,
       COUNT(DISTINCT auction) FILTER (WHERE price >= 1000000) AS high_auctions
FROM bid GROUP BY to_char(ts, '%Y-%m-%d')

-- q16: channel statistics of a day
SELECT channel, to_char(ts, '%Y-%m-%d') AS day, MAX(to_char(ts, '%H:%M')) AS minute, COUNT(*) AS bids,
       COUNT(*) FILTER (WHERE price < 10000) AS low_bids,
       COUNT(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS middle_bids,
       COUNT(*) FILTER (WHERE price >= 1000000) AS high_bids,
       COUNT(DISTINCT bidder) AS bidders,
       COUNT(DISTINCT bidder) FILTER (WHERE price < 10000) AS low_bidders,
       COUNT(DISTINCT auction) AS auctions,
       COUNT(DISTINCT auction) FILTER (WHERE price < 10000) AS low_auctions
FROM bid GROUP BY channel, to_char(ts, '%Y-%m-%d')

-- q17: auction statistics of a day
SELECT auction, to_char(ts, '%Y-%m-%d') AS day, COUNT(*) AS bids,
       COUNT(*) FILTER (WHERE price < 10000) AS low_bids,
       COUNT(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS middle_bids,
       COUNT(*) FILTER (WHERE price >= 1000000) AS high_bids,
       MIN(price) AS least, MAX(price) AS most, AVG(price) AS average, SUM(price) AS total
FROM bid GROUP BY auction, to_char(ts, '%Y-%m-%d')

-- q18: the last bid of each bidder on each auction
SELECT auction, bidder, price, channel, url, ts, extra
FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY bidder, auction ORDER BY ts DESC) AS place FROM bid
) b
WHERE place <= 1

-- q19: the ten highest bids of each auction
SELECT *
FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC) AS place FROM bid
) b
WHERE place <= 10

-- q20: bids with their auctions
SELECT b.auction, b.bidder, b.price, b.channel, b.url, b.ts AS bid_ts, b.extra AS bid_extra,
       a.item, a.description, a.initial_bid, a.reserve, a.ts, a.expires, a.seller, a.category, a.extra
FROM bid b JOIN auction a ON b.auction = a.id
WHERE a.category = 10

-- q21: channel ids
SELECT auction, bidder, price, channel,
       CASE WHEN lower(channel) = 'apple' THEN '0'
            WHEN lower(channel) = 'google' THEN '1'
            WHEN lower(channel) = 'facebook' THEN '2'
            WHEN lower(channel) = 'baidu' THEN '3'
            ELSE (regexp_match(url, '(&|^)channel_id=([^&]*)'))[2] END AS channel_id
FROM bid
WHERE regexp_like(url, '(&|^)channel_id=([^&]*)') OR lower(channel) IN ('apple', 'google', 'facebook', 'baidu')

-- q22: directories of a URL
SELECT auction, bidder, price, channel, split_part(url, '/', 4) AS dir1, split_part(url, '/', 5) AS dir2,
       split_part(url, '/', 6) AS dir3
FROM bid
