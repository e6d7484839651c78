//! Where a partition is read from and up to, by the options `scan.startup.*` and `scan.bounded.*`.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use thalweg_engine::{EngineError, Result};

use crate::Options;
use crate::kafka::client::{KafkaContext, failed};
use crate::kafka::options::Flavor;

/// So long a question to the broker may take.
const ASK: Duration = Duration::from_secs(30);

/// Offsets by partition, as `partition:0,offset:42;partition:1,offset:300`.
type Offsets = BTreeMap<i32, i64>;

/// Where to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// With the first record that there is.
    Earliest,
    /// With what comes later.
    Latest,
    /// Where the consumer group was.
    Group,
    /// With the first record of this time, in milliseconds, or later.
    Timestamp(i64),
    /// Here; partitions that are not named from their first record.
    Offsets(Offsets),
}

/// Where to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// Never.
    None,
    /// With the last record that there is when the reading begins.
    Latest,
    /// Where the consumer group is.
    Group,
    /// Before the first record of this time, in milliseconds, or later.
    Timestamp(i64),
    /// Before these; partitions that are not named with their last record.
    Offsets(Offsets),
}

fn parse_offsets(text: &str) -> Option<Offsets> {
    let mut offsets = Offsets::new();
    for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
        let (partition, offset) = item.split_once(',')?;
        let partition: i32 = partition.trim().strip_prefix("partition:")?.trim().parse().ok()?;
        let offset: i64 = offset.trim().strip_prefix("offset:")?.trim().parse().ok()?;
        if partition < 0 || offset < 0 || offsets.insert(partition, offset).is_some() {
            return None;
        }
    }
    (!offsets.is_empty()).then_some(offsets)
}

fn take_offsets(options: &mut Options, key: &str) -> Result<Option<Offsets>> {
    let Some(text) = options.take(key) else {
        return Ok(None);
    };
    let offsets = parse_offsets(&text).ok_or_else(|| {
        let why =
            "must be offsets from 0 by partition, each partition once: partition:0,offset:42;partition:1,offset:300";
        options.bad_value(key, &text, why)
    })?;
    Ok(Some(offsets))
}

fn needed<T>(options: &Options, mode: (&str, &str), key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| options.bad_value(mode.0, mode.1, &format!("needs the option '{key}'")))
}

impl Start {
    /// Takes what the options say.
    pub(super) fn take(flavor: Flavor, options: &mut Options) -> Result<Self> {
        const MODE: &str = "scan.startup.mode";
        const MILLIS: &str = "scan.startup.timestamp-millis";
        const OFFSETS: &str = "scan.startup.specific-offsets";
        let millis: Option<i64> = options.take_parsed(MILLIS)?;
        let offsets = take_offsets(options, OFFSETS)?;
        let text = options.take(MODE);
        let default = match flavor {
            Flavor::Log => "group-offsets",
            Flavor::Upsert => "earliest-offset",
        };
        let mode = text.as_deref().unwrap_or(default).trim().to_lowercase();
        let start = match mode.as_str() {
            "earliest-offset" => Start::Earliest,
            "latest-offset" => Start::Latest,
            "group-offsets" => Start::Group,
            "timestamp" => Start::Timestamp(needed(options, (MODE, &mode), MILLIS, millis)?),
            "specific-offsets" => Start::Offsets(needed(options, (MODE, &mode), OFFSETS, offsets.clone())?),
            _ => {
                let why = "must be earliest-offset, latest-offset, group-offsets, timestamp or specific-offsets";
                return Err(options.bad_value(MODE, &mode, why));
            }
        };
        unused(
            options,
            MILLIS,
            millis.is_some() && !matches!(start, Start::Timestamp(_)),
        )?;
        unused(
            options,
            OFFSETS,
            offsets.is_some() && !matches!(start, Start::Offsets(_)),
        )?;
        Ok(start)
    }
}

impl Bound {
    /// Takes what the options say.
    pub(super) fn take(options: &mut Options) -> Result<Self> {
        const MODE: &str = "scan.bounded.mode";
        const MILLIS: &str = "scan.bounded.timestamp-millis";
        const OFFSETS: &str = "scan.bounded.specific-offsets";
        let millis: Option<i64> = options.take_parsed(MILLIS)?;
        let offsets = take_offsets(options, OFFSETS)?;
        let text = options.take(MODE);
        let mode = text.as_deref().unwrap_or("unbounded").trim().to_lowercase();
        let bound = match mode.as_str() {
            "unbounded" => Bound::None,
            "latest-offset" => Bound::Latest,
            "group-offsets" => Bound::Group,
            "timestamp" => Bound::Timestamp(needed(options, (MODE, &mode), MILLIS, millis)?),
            "specific-offsets" => Bound::Offsets(needed(options, (MODE, &mode), OFFSETS, offsets.clone())?),
            _ => {
                let why = "must be unbounded, latest-offset, group-offsets, timestamp or specific-offsets";
                return Err(options.bad_value(MODE, &mode, why));
            }
        };
        unused(
            options,
            MILLIS,
            millis.is_some() && !matches!(bound, Bound::Timestamp(_)),
        )?;
        unused(
            options,
            OFFSETS,
            offsets.is_some() && !matches!(bound, Bound::Offsets(_)),
        )?;
        Ok(bound)
    }
}

fn unused(options: &Options, key: &str, is_unused: bool) -> Result<()> {
    match is_unused {
        true => Err(options.bad_value(key, "..", "is for another mode than the one that is set")),
        false => Ok(()),
    }
}

/// What the broker knows of a partition; asking blocks.
pub(super) struct Partition<'a> {
    pub(super) consumer: &'a BaseConsumer<KafkaContext>,
    pub(super) topic: &'a str,
    pub(super) partition: i32,
}

impl Partition<'_> {
    fn failed(&self, what: &str, error: impl std::fmt::Display) -> EngineError {
        failed(
            &format!("topic {}, partition {}: {what}", self.topic, self.partition),
            error,
        )
    }

    /// The first offset and the one after the last; of what is committed only, when that is all that is read.
    pub(super) fn range(&self) -> Result<(i64, i64)> {
        self.consumer
            .fetch_watermarks(self.topic, self.partition, ASK)
            .map_err(|e| self.failed("cannot find out its offsets", e))
    }

    fn of_time(&self, millis: i64) -> Result<i64> {
        let mut asked = TopicPartitionList::new();
        let what = "cannot find the offset of a time";
        asked
            .add_partition_offset(self.topic, self.partition, Offset::Offset(millis))
            .map_err(|e| self.failed(what, e))?;
        let told = self
            .consumer
            .offsets_for_times(asked, ASK)
            .map_err(|e| self.failed(what, e))?;
        let told = told.find_partition(self.topic, self.partition);
        let Some(told) = told else {
            return Err(self.failed(what, "no answer"));
        };
        told.error().map_err(|e| self.failed(what, e))?;
        match told.offset() {
            Offset::Offset(offset) => Ok(offset),
            // There is no later record.
            _ => Ok(self.range()?.1),
        }
    }

    fn of_group(&self) -> Result<Option<i64>> {
        let mut asked = TopicPartitionList::new();
        let what = "cannot find out the offset of the consumer group";
        asked.add_partition(self.topic, self.partition);
        let told = self
            .consumer
            .committed_offsets(asked, ASK)
            .map_err(|e| self.failed(what, e))?;
        let told = told.find_partition(self.topic, self.partition);
        let Some(told) = told else {
            return Err(self.failed(what, "no answer"));
        };
        told.error().map_err(|e| self.failed(what, e))?;
        match told.offset() {
            Offset::Offset(offset) => Ok(Some(offset)),
            _ => Ok(None),
        }
    }

    /// Where to begin; `reset` is what the property `auto.offset.reset` says.
    pub(super) fn start(&self, start: &Start, reset: Option<&str>) -> Result<i64> {
        match start {
            Start::Earliest => Ok(self.range()?.0),
            Start::Latest => Ok(self.range()?.1),
            Start::Timestamp(millis) => self.of_time(*millis),
            Start::Offsets(offsets) => match offsets.get(&self.partition) {
                Some(offset) => Ok(*offset),
                None => Ok(self.range()?.0),
            },
            Start::Group => match (self.of_group()?, reset) {
                (Some(offset), _) => Ok(offset),
                (None, Some("earliest" | "smallest" | "beginning")) => Ok(self.range()?.0),
                (None, Some("latest" | "largest" | "end")) => Ok(self.range()?.1),
                (None, _) => Err(self.failed(
                    "the consumer group has no offset",
                    "set 'scan.startup.mode' = 'earliest-offset', or 'properties.auto.offset.reset'",
                )),
            },
        }
    }

    /// The offset before which the reading ends.
    pub(super) fn end(&self, bound: &Bound) -> Result<Option<i64>> {
        Ok(match bound {
            Bound::None => None,
            Bound::Latest => Some(self.range()?.1),
            Bound::Timestamp(millis) => Some(self.of_time(*millis)?),
            Bound::Offsets(offsets) => match offsets.get(&self.partition) {
                Some(offset) => Some(*offset),
                None => Some(self.range()?.1),
            },
            Bound::Group => match self.of_group()? {
                Some(offset) => Some(offset),
                None => return Err(self.failed("the consumer group has no offset", "the reading cannot end there")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_written_as_flink_writes_them() {
        let expected = Offsets::from([(0, 42), (1, 300)]);
        assert_eq!(
            parse_offsets("partition:0,offset:42;partition:1,offset:300"),
            Some(expected)
        );
        for wrong in [
            "",
            "partition:0",
            "partition:0,offset:-1",
            "partition:0,offset:1;partition:0,offset:2",
            "0:1",
            "partition:x,offset:1",
        ] {
            assert_eq!(parse_offsets(wrong), None, "{wrong}");
        }
    }
}
