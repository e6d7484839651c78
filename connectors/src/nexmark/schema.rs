//! The tables' columns.

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use crate::nexmark::events::EPOCH;

/// A type of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Person,
    Auction,
    Bid,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Person, Self::Auction, Self::Bid];

    /// The offsets in an epoch of 50 events that are of this type.
    pub(super) fn offsets(self) -> Range<u64> {
        match self {
            Self::Person => 0..1,
            Self::Auction => 1..4,
            Self::Bid => 4..EPOCH,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Auction => "auction",
            Self::Bid => "bid",
        }
    }

    /// The columns of this type's events, without `ts`.
    pub(super) fn columns(self) -> &'static [(&'static str, Of)] {
        use Of::{Long, Text, Time};
        match self {
            Self::Person => &[
                ("id", Long),
                ("name", Text),
                ("email", Text),
                ("card", Text),
                ("city", Text),
                ("state", Text),
                ("extra", Text),
            ],
            Self::Auction => &[
                ("id", Long),
                ("item", Text),
                ("description", Text),
                // `initialBid` without quotes, which SQL reads so.
                ("initialbid", Long),
                ("reserve", Long),
                ("expires", Time),
                ("seller", Long),
                ("category", Long),
                ("extra", Text),
            ],
            Self::Bid => &[
                ("auction", Long),
                ("bidder", Long),
                ("price", Long),
                ("channel", Text),
                ("url", Text),
                ("extra", Text),
            ],
        }
    }

    /// The columns as fields. Inside a structure they are NULL where the structure is.
    pub(super) fn fields(self, nullable: bool) -> Fields {
        let field = |(name, of): &(&str, Of)| Field::new(*name, of.data_type(), nullable);
        self.columns().iter().map(field).collect()
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    Long,
    Text,
    Time,
}

impl Of {
    fn data_type(self) -> DataType {
        match self {
            Self::Long => DataType::Int64,
            Self::Text => DataType::Utf8View,
            Self::Time => DataType::Timestamp(TimeUnit::Millisecond, None),
        }
    }
}

/// `nexmark.table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    All,
    Only(Kind),
}

impl Shape {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_lowercase();
        if text == "all" {
            return Some(Self::All);
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == text)?;
        Some(Self::Only(kind))
    }

    /// The offsets in an epoch of the events that are rows.
    pub(super) fn offsets(self) -> Range<u64> {
        match self {
            Self::All => 0..EPOCH,
            Self::Only(kind) => kind.offsets(),
        }
    }

    pub(super) fn schema(self) -> SchemaRef {
        let ts = Field::new("ts", Of::Time.data_type(), false);
        let fields: Vec<Field> = match self {
            Self::All => {
                let of = |kind: Kind| Field::new(kind.name(), DataType::Struct(kind.fields(true)), true);
                let mut fields = vec![Field::new("event_type", DataType::Int32, false)];
                fields.extend(Kind::ALL.map(of));
                fields.push(ts);
                fields
            }
            Self::Only(kind) => {
                let columns = kind.fields(false);
                let columns = columns.iter().map(|field| field.as_ref().clone());
                columns.chain([ts]).collect()
            }
        };
        Arc::new(Schema::new(fields))
    }
}
