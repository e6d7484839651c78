-- The events of an auction house and, as views, its persons, auctions and bids. {options} are more options of the source.
CREATE TABLE nexmark (
    event_type INT,
    person ROW<id BIGINT, name STRING, email STRING, card STRING, city STRING, state STRING, extra STRING>,
    auction ROW<id BIGINT, item STRING, description STRING, initialbid BIGINT, reserve BIGINT, expires TIMESTAMP(3),
                seller BIGINT, category BIGINT, extra STRING>,
    bid ROW<auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, extra STRING>,
    ts TIMESTAMP(3),
    WATERMARK FOR ts AS ts - INTERVAL '1' SECOND
) WITH ('connector' = 'nexmark', {options});

CREATE VIEW person AS
SELECT person.id AS id, person.name AS name, person.email AS email, person.card AS card, person.city AS city,
       person.state AS state, person.extra AS extra, ts
FROM nexmark WHERE event_type = 0;

CREATE VIEW auction AS
SELECT auction.id AS id, auction.item AS item, auction.description AS description,
       auction.initialbid AS initial_bid, auction.reserve AS reserve, auction.expires AS expires,
       auction.seller AS seller, auction.category AS category, auction.extra AS extra, ts
FROM nexmark WHERE event_type = 1;

CREATE VIEW bid AS
SELECT bid.auction AS auction, bid.bidder AS bidder, bid.price AS price, bid.channel AS channel, bid.url AS url,
       bid.extra AS extra, ts
FROM nexmark WHERE event_type = 2;
