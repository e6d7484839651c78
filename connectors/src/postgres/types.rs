//! Which type a column is sent as.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use thalweg_engine::{EngineError, Result};
use tokio_postgres::types::Type;

/// `rows` with the types that are sent: few, and PostgreSQL's own resolution.
///
/// # Errors
/// When a column has no such type.
pub(super) fn sent_schema(rows: &Schema) -> Result<SchemaRef> {
    let fields = rows.fields().iter().map(|field| match sent(field.data_type()) {
        Some(data_type) => Ok(Field::new(field.name(), data_type, field.is_nullable())),
        None => Err(EngineError::Plan(format!(
            "connector 'postgres': column '{}' of type {} has no form in PostgreSQL here; take it apart, or CAST it to STRING \
             (texts go into columns of json, jsonb, uuid and others, too)",
            field.name(),
            field.data_type()
        ))),
    });
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>>>()?)))
}

fn sent(data_type: &DataType) -> Option<DataType> {
    use DataType::*;
    Some(match data_type {
        Boolean => Boolean,
        Int8 | Int16 | UInt8 => Int16,
        Int32 | UInt16 => Int32,
        Int64 | UInt32 => Int64,
        UInt64 => Decimal128(20, 0),
        Float32 => Float32,
        Float64 => Float64,
        Decimal32(precision, scale) | Decimal64(precision, scale) => Decimal128(*precision, *scale),
        Decimal128(..) | Decimal256(..) => data_type.clone(),
        Utf8 | LargeUtf8 | Utf8View => Utf8,
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Binary,
        Date32 | Date64 => Date32,
        Time32(_) | Time64(_) => Time64(TimeUnit::Microsecond),
        Timestamp(_, None) => Timestamp(TimeUnit::Microsecond, None),
        Timestamp(_, Some(_)) => Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Dictionary(_, value) => sent(value)?,
        _ => return None,
    })
}

/// The array that carries a column of a type of [`sent_schema`]. Decimals travel as texts.
pub(super) fn array_type(data_type: &DataType) -> Option<Type> {
    Some(match data_type {
        DataType::Boolean => Type::BOOL_ARRAY,
        DataType::Int16 => Type::INT2_ARRAY,
        DataType::Int32 => Type::INT4_ARRAY,
        DataType::Int64 => Type::INT8_ARRAY,
        DataType::Float32 => Type::FLOAT4_ARRAY,
        DataType::Float64 => Type::FLOAT8_ARRAY,
        DataType::Utf8 | DataType::Decimal128(..) | DataType::Decimal256(..) => Type::TEXT_ARRAY,
        DataType::Binary => Type::BYTEA_ARRAY,
        DataType::Date32 => Type::DATE_ARRAY,
        DataType::Time64(TimeUnit::Microsecond) => Type::TIME_ARRAY,
        DataType::Timestamp(TimeUnit::Microsecond, None) => Type::TIMESTAMP_ARRAY,
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => Type::TIMESTAMPTZ_ARRAY,
        _ => return None,
    })
}
