//! The parts of a [`crate::plan::JobGraph`] that DataFusion owns (expressions, functions, scans), made serializable
//! through its protobuf form. Decoding needs a function registry: see [`crate::plan::decode_job_graph`].

use std::fmt;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::empty::EmptyExec;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::plan::codec::{decode_expr, decode_plan, encode_expr, encode_plan};

/// A schema, serialized as Arrow IPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaSpec(pub SchemaRef);

impl SchemaSpec {
    fn to_ipc(&self) -> Result<Vec<u8>, arrow::error::ArrowError> {
        StreamWriter::try_new(Vec::new(), &self.0)?.into_inner()
    }

    fn from_ipc(bytes: &[u8]) -> Result<Self, arrow::error::ArrowError> {
        Ok(Self(StreamReader::try_new(bytes, None)?.schema()))
    }
}

impl From<SchemaRef> for SchemaSpec {
    fn from(schema: SchemaRef) -> Self {
        Self(schema)
    }
}

impl Serialize for SchemaSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_ipc().map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for SchemaSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        Self::from_ipc(&bytes).map_err(de::Error::custom)
    }
}

/// A vectorized expression over batches of one schema.
#[derive(Clone)]
pub struct ScalarExpr {
    /// The expression.
    pub expr: Arc<dyn PhysicalExpr>,
    /// The schema of the batches it is evaluated on.
    pub input: SchemaRef,
}

impl ScalarExpr {
    /// `expr` over batches of schema `input`.
    pub fn new(expr: Arc<dyn PhysicalExpr>, input: SchemaRef) -> Self {
        Self { expr, input }
    }

    /// Column `index` of schema `input`.
    pub fn column(index: usize, input: &SchemaRef) -> Self {
        let name = input.field(index).name();
        Self::new(
            Arc::new(datafusion::physical_expr::expressions::Column::new(name, index)),
            Arc::clone(input),
        )
    }
}

impl fmt::Debug for ScalarExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.expr)
    }
}

impl fmt::Display for ScalarExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.expr)
    }
}

#[derive(Serialize, Deserialize)]
struct PortableExpr {
    expr: Vec<u8>,
    input: SchemaSpec,
}

impl Serialize for ScalarExpr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        PortableExpr {
            expr: encode_expr(&self.expr).map_err(ser::Error::custom)?,
            input: SchemaSpec(Arc::clone(&self.input)),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ScalarExpr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let portable = PortableExpr::deserialize(deserializer)?;
        Ok(Self {
            expr: decode_expr(&portable.expr, &portable.input.0).map_err(de::Error::custom)?,
            input: portable.input.0,
        })
    }
}

/// One key of an order.
#[derive(Clone, Serialize, Deserialize)]
pub struct SortKey {
    /// What to order by.
    pub expr: ScalarExpr,
    /// Largest first.
    pub descending: bool,
    /// NULLs before values.
    pub nulls_first: bool,
}

impl SortKey {
    /// Arrow's form of the direction.
    pub fn options(&self) -> SortOptions {
        SortOptions {
            descending: self.descending,
            nulls_first: self.nulls_first,
        }
    }

    /// From DataFusion's form, over batches of schema `input`.
    pub fn from_physical(key: &PhysicalSortExpr, input: &SchemaRef) -> Self {
        Self {
            expr: ScalarExpr::new(Arc::clone(&key.expr), Arc::clone(input)),
            descending: key.options.descending,
            nulls_first: key.options.nulls_first,
        }
    }

    /// DataFusion's form.
    pub fn to_physical(&self) -> PhysicalSortExpr {
        PhysicalSortExpr::new(Arc::clone(&self.expr.expr), self.options())
    }

    /// DataFusion's form of an order; `None` when `keys` is empty.
    pub fn to_ordering(keys: &[SortKey]) -> Option<LexOrdering> {
        LexOrdering::new(keys.iter().map(SortKey::to_physical))
    }
}

impl fmt::Debug for SortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.descending { "DESC" } else { "ASC" };
        let nulls = if self.nulls_first { "FIRST" } else { "LAST" };
        write!(f, "{} {direction} NULLS {nulls}", self.expr)
    }
}

/// A DataFusion plan: a scan, or an operator of the long tail.
#[derive(Clone)]
pub struct PhysicalPlan(pub Arc<dyn ExecutionPlan>);

impl fmt::Debug for PhysicalPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = datafusion::physical_plan::displayable(self.0.as_ref())
            .one_line()
            .to_string();
        f.write_str(one_line.trim_end())
    }
}

impl Serialize for PhysicalPlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&encode_plan(&self.0).map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for PhysicalPlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        decode_plan(&bytes).map(Self).map_err(de::Error::custom)
    }
}

/// Aggregate functions, each with its FILTER condition, over the raw input of an aggregation.
#[derive(Clone)]
pub struct Aggregates {
    /// The functions.
    pub functions: Vec<Arc<AggregateFunctionExpr>>,
    /// One condition per function.
    pub filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    /// The schema that the functions' arguments and the filters refer to.
    pub input: SchemaRef,
}

impl fmt::Debug for Aggregates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self
            .functions
            .iter()
            .zip(&self.filters)
            .map(|(function, filter)| match filter {
                Some(filter) => format!("{} FILTER ({filter})", function.name()),
                None => function.name().to_string(),
            });
        f.debug_list().entries(names).finish()
    }
}

impl Serialize for Aggregates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The functions travel inside an aggregation plan, the only form that DataFusion's protobuf has for them.
        let carrier = AggregateExec::try_new(
            AggregateMode::Single,
            PhysicalGroupBy::default(),
            self.functions.clone(),
            self.filters.clone(),
            Arc::new(EmptyExec::new(Arc::clone(&self.input))),
            Arc::clone(&self.input),
        )
        .map_err(ser::Error::custom)?;
        PhysicalPlan(Arc::new(carrier)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Aggregates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let PhysicalPlan(plan) = PhysicalPlan::deserialize(deserializer)?;
        let carrier = plan
            .downcast_ref::<AggregateExec>()
            .ok_or_else(|| de::Error::custom("aggregate functions are not inside an aggregation"))?;
        Ok(Self {
            functions: carrier.aggr_expr().to_vec(),
            filters: carrier.filter_expr().to_vec(),
            input: carrier.input_schema(),
        })
    }
}

/// Serializes a `JoinType` by its name.
pub(crate) mod join_type_text {
    use std::str::FromStr;

    use datafusion::common::JoinType;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &JoinType, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JoinType, D::Error> {
        JoinType::from_str(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Serializes join sides as letters.
pub(crate) mod join_side_text {
    use datafusion::common::JoinSide;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &[(JoinSide, usize)], serializer: S) -> Result<S::Ok, S::Error> {
        let letters: Vec<(char, usize)> = value
            .iter()
            .map(|(side, index)| match side {
                JoinSide::Left => ('l', *index),
                JoinSide::Right => ('r', *index),
                JoinSide::None => ('m', *index),
            })
            .collect();
        letters.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(JoinSide, usize)>, D::Error> {
        Vec::<(char, usize)>::deserialize(deserializer)?
            .into_iter()
            .map(|(letter, index)| match letter {
                'l' => Ok((JoinSide::Left, index)),
                'r' => Ok((JoinSide::Right, index)),
                'm' => Ok((JoinSide::None, index)),
                other => Err(de::Error::custom(format!("'{other}' is no join side"))),
            })
            .collect()
    }
}
