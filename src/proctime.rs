//! `PROCTIME()`: the time at which a row is looked at.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use thalweg_engine::time::Clock;

/// The function over the session's clock.
pub(crate) fn proctime(clock: Arc<dyn Clock>) -> ScalarUDF {
    ScalarUDF::from(ProcTime {
        signature: Signature::nullary(Volatility::Volatile),
        clock,
    })
}

#[derive(Debug)]
struct ProcTime {
    signature: Signature,
    clock: Arc<dyn Clock>,
}

impl PartialEq for ProcTime {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.clock, &other.clock)
    }
}

impl Eq for ProcTime {}

impl Hash for ProcTime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl ScalarUDFImpl for ProcTime {
    fn name(&self) -> &str {
        "proctime"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Millisecond, None))
    }

    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let data_type = self.return_type(&[])?;
        Ok(Arc::new(Field::new(self.name(), data_type, false)))
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let now = ScalarValue::TimestampMillisecond(Some(self.clock.now_ms()), None);
        Ok(ColumnarValue::Scalar(now))
    }
}
