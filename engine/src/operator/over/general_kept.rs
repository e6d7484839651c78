//! What functions of DataFusion keep, as columns: the state of accumulators that nothing leaves, and the arguments of the rows
//! in a frame for the others, whose accumulators follow from them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, new_empty_array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field};
use datafusion::common::ScalarValue;

use super::general::{General, Partition, Way, arguments_bytes, create};
use super::kept::{Entered, FrozenFunction, Kept, KeptFields, Room};
use crate::data::{EngineError, Result};

/// The values of a [`General`].
struct Frozen {
    way: Way,
    /// Per partition what its accumulator has, where nothing leaves.
    states: Vec<Option<Vec<ScalarValue>>>,
    state_types: Vec<DataType>,
    slots: Vec<Option<Box<[ScalarValue]>>>,
    argument_types: Vec<DataType>,
}

/// One column of these types from rows of values; NULL where there is no row.
fn columns<'a>(rows: &[Option<&'a [ScalarValue]>], types: &[DataType]) -> Result<Vec<ArrayRef>> {
    let presence: BooleanArray = rows.iter().map(|row| Some(row.is_some())).collect();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(presence)];
    for (index, data_type) in types.iter().enumerate() {
        if rows.is_empty() {
            columns.push(new_empty_array(data_type));
            continue;
        }
        let null = ScalarValue::try_from(data_type)?;
        let values = rows
            .iter()
            .map(|row| row.map_or(&null, |row: &'a [ScalarValue]| &row[index]));
        let column = ScalarValue::iter_to_array(values.cloned())?;
        columns.push(match column.data_type() == data_type {
            true => column,
            false => cast(&column, data_type)?,
        });
    }
    Ok(columns)
}

fn presence(columns: &[ArrayRef]) -> Result<(&BooleanArray, &[ArrayRef])> {
    let (first, rest) = columns
        .split_first()
        .ok_or_else(|| EngineError::Internal("the state of an OVER function lacks a column".into()))?;
    Ok((first.as_boolean(), rest))
}

impl FrozenFunction for Frozen {
    fn groups(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        if self.way != Way::Grow {
            return Ok(Vec::new());
        }
        let rows = groups
            .iter()
            .map(|group| self.states.get(*group as usize).and_then(|state| state.as_deref()));
        columns(&rows.collect::<Vec<_>>(), &self.state_types)
    }

    fn slots(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        let rows = slots.iter().map(|slot| self.slots[*slot as usize].as_deref());
        columns(&rows.collect::<Vec<_>>(), &self.argument_types)
    }
}

impl General {
    fn state_types(&self) -> Result<Vec<DataType>> {
        let fields = self.function.state_fields()?;
        Ok(fields.iter().map(|field| field.data_type().clone()).collect())
    }

    /// What the accumulator of a partition has. Asking may use it up, so another one goes on from there.
    fn state_of(&mut self, group: usize) -> Result<Option<Vec<ScalarValue>>> {
        let Some(accumulator) = &mut self.partitions[group].accumulator else {
            return Ok(None);
        };
        let state = accumulator.state()?;
        let arrays = state.iter().map(ScalarValue::to_array);
        self.go_on(group, &arrays.collect::<datafusion::error::Result<Vec<_>>>()?)?;
        Ok(Some(state))
    }

    /// A new accumulator for a partition, from the state of another.
    fn go_on(&mut self, group: usize, state: &[ArrayRef]) -> Result<()> {
        let mut accumulator = create(&self.function, self.way)?;
        accumulator.merge_batch(state)?;
        let bytes = accumulator.size();
        let partition = &mut self.partitions[group];
        self.bytes = self.bytes + bytes - std::mem::replace(&mut partition.bytes, bytes);
        partition.accumulator = Some(accumulator);
        Ok(())
    }

    fn fit(&mut self, room: Room) {
        self.partitions.resize_with(room.groups, Partition::default);
        self.slots.resize(room.slots, None);
    }
}

impl Kept for General {
    fn fields(&self) -> Result<KeptFields> {
        let mut fields = KeptFields::default();
        let presence = |name| Field::new(name, DataType::Boolean, false);
        if self.way == Way::Grow {
            fields.groups.push(presence("has state"));
            let types = self.state_types()?.into_iter().enumerate();
            fields
                .groups
                .extend(types.map(|(index, state)| Field::new(format!("state {index}"), state, true)));
        } else {
            fields.slots.push(presence("counts"));
            let types = self.arguments.iter().enumerate();
            fields
                .slots
                .extend(types.map(|(index, value)| Field::new(format!("argument {index}"), value.clone(), true)));
        }
        Ok(fields)
    }

    fn freeze(&mut self) -> Result<Arc<dyn FrozenFunction>> {
        let states = match self.way {
            Way::Grow => (0..self.partitions.len())
                .map(|group| self.state_of(group))
                .collect::<Result<Vec<_>>>()?,
            Way::Retract | Way::Recompute => Vec::new(),
        };
        Ok(Arc::new(Frozen {
            way: self.way,
            states,
            state_types: self.state_types()?,
            slots: self.slots.clone(),
            argument_types: self.arguments.clone(),
        }))
    }

    fn restore_groups(&mut self, groups: &[usize], columns: &[ArrayRef], room: Room) -> Result<()> {
        self.fit(room);
        if self.way != Way::Grow {
            return Ok(());
        }
        let (presence, states) = presence(columns)?;
        for (row, group) in groups.iter().enumerate().filter(|(row, _)| presence.value(*row)) {
            let state: Vec<ArrayRef> = states.iter().map(|column| column.slice(row, 1)).collect();
            self.go_on(*group, &state)?;
        }
        Ok(())
    }

    fn restore_slots(&mut self, rows: &Entered, columns: &[ArrayRef], room: Room) -> Result<()> {
        self.fit(room);
        let (presence, values) = presence(columns)?;
        let mut start = 0;
        for of_group in rows.groups.chunk_by(|one, next| one == next) {
            let (group, end) = (of_group[0], start + of_group.len());
            let mut counted = Vec::new();
            for row in (start..end).filter(|row| presence.value(*row)) {
                let arguments = values.iter().map(|column| ScalarValue::try_from_array(column, row));
                let arguments = arguments.collect::<datafusion::error::Result<Box<[_]>>>()?;
                self.bytes += arguments_bytes(&arguments);
                self.slots[rows.slots[row] as usize] = Some(arguments);
                if self.way == Way::Recompute {
                    self.partitions[group].rows.push_back(rows.slots[row]);
                }
                counted.push(row as u32);
            }
            start = end;
            if self.way == Way::Recompute || counted.is_empty() {
                continue;
            }
            let counted = arrow::array::UInt32Array::from(counted);
            let arrays = values.iter().map(|column| Ok(take(column, &counted, None)?));
            self.accumulator(group)?
                .update_batch(&arrays.collect::<Result<Vec<_>>>()?)?;
            let partition = &mut self.partitions[group];
            let bytes = partition
                .accumulator
                .as_ref()
                .map_or(0, |accumulator| accumulator.size());
            self.bytes = self.bytes + bytes - std::mem::replace(&mut partition.bytes, bytes);
        }
        Ok(())
    }
}
