//! [`Values`]: a column as an array parameter, in PostgreSQL's binary form, without a value of its own for each row.

use std::error::Error;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType,
};
use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};

/// Days from 1970 to 2000, where PostgreSQL counts from.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

type Written = Result<(), Box<dyn Error + Sync + Send>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Values(ArrayRef);

impl Values {
    /// A column of a type of [`super::types::sent_schema`].
    pub(super) fn try_new(column: &ArrayRef) -> thalweg_engine::Result<Self> {
        Ok(match column.data_type() {
            DataType::Decimal128(..) | DataType::Decimal256(..) => Self(cast(column, &DataType::Utf8)?),
            _ => Self(ArrayRef::clone(column)),
        })
    }

    fn primitives<T: ArrowPrimitiveType>(
        &self,
        out: &mut BytesMut,
        size: i32,
        put: impl Fn(&mut BytesMut, T::Native) -> Written,
    ) -> Written {
        let values = self.0.as_primitive::<T>();
        for row in 0..values.len() {
            if values.is_null(row) {
                out.put_i32(-1);
                continue;
            }
            out.put_i32(size);
            put(out, values.value(row))?;
        }
        Ok(())
    }

    fn bytes<'a>(&self, out: &mut BytesMut, value: impl Fn(usize) -> &'a [u8]) -> Written {
        for row in 0..self.0.len() {
            if self.0.is_null(row) {
                out.put_i32(-1);
                continue;
            }
            let bytes = value(row);
            out.put_i32(i32::try_from(bytes.len())?);
            out.put_slice(bytes);
        }
        Ok(())
    }

    fn elements(&self, out: &mut BytesMut) -> Written {
        match self.0.data_type() {
            DataType::Boolean => {
                let values = self.0.as_boolean();
                self.bytes(out, |row| if values.value(row) { &[1] } else { &[0] })
            }
            DataType::Int16 => self.primitives::<Int16Type>(out, 2, |out, value| {
                out.put_i16(value);
                Ok(())
            }),
            DataType::Int32 => self.primitives::<Int32Type>(out, 4, |out, value| {
                out.put_i32(value);
                Ok(())
            }),
            DataType::Int64 => self.primitives::<Int64Type>(out, 8, |out, value| {
                out.put_i64(value);
                Ok(())
            }),
            DataType::Float32 => self.primitives::<Float32Type>(out, 4, |out, value| {
                out.put_f32(value);
                Ok(())
            }),
            DataType::Float64 => self.primitives::<Float64Type>(out, 8, |out, value| {
                out.put_f64(value);
                Ok(())
            }),
            DataType::Date32 => self.primitives::<Date32Type>(out, 4, |out, value| {
                out.put_i32(value.checked_sub(EPOCH_DAYS).ok_or("a date is out of range")?);
                Ok(())
            }),
            DataType::Time64(TimeUnit::Microsecond) => {
                self.primitives::<Time64MicrosecondType>(out, 8, |out, value| {
                    out.put_i64(value);
                    Ok(())
                })
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                self.primitives::<TimestampMicrosecondType>(out, 8, |out, value| {
                    out.put_i64(value.checked_sub(EPOCH_MICROS).ok_or("a timestamp is out of range")?);
                    Ok(())
                })
            }
            DataType::Utf8 => {
                let values = self.0.as_string::<i32>();
                self.bytes(out, |row| values.value(row).as_bytes())
            }
            DataType::Binary => {
                let values = self.0.as_binary::<i32>();
                self.bytes(out, |row| values.value(row))
            }
            other => Err(format!("{other} is no type that is sent").into()),
        }
    }
}

impl ToSql for Values {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Kind::Array(member) = ty.kind() else {
            return Err(format!("{ty} is no array").into());
        };
        // One dimension; whether there are NULLs; the type; the length; the first index.
        out.put_i32(1);
        out.put_i32(i32::from(self.0.null_count() > 0));
        out.put_u32(member.oid());
        out.put_i32(i32::try_from(self.0.len())?);
        out.put_i32(1);
        self.elements(out)?;
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(_))
    }

    to_sql_checked!();
}
