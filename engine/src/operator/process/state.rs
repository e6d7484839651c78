//! The state that a process function declares: a value, a list or a map per key, by name; and maps that all keys see.
//!
//! A state is declared once ([`StateDeclarations`]); what that gives is a handle, through which the function reads and
//! writes. The operator owns what is stored: a column per state, indexed by the number of the key.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::common::ScalarValue;

use crate::data::{EngineError, Result};

/// What a state can hold.
pub trait StateValue: Clone + Debug + Send + Sync + 'static {
    /// The value in Arrow's types, as a snapshot stores it.
    fn to_scalar(&self) -> ScalarValue;

    /// Bytes that the value holds beside itself.
    fn heap_bytes(&self) -> usize {
        0
    }
}

macro_rules! plain_value {
    ($($rust:ty => $scalar:ident),*) => {
        $(impl StateValue for $rust {
            fn to_scalar(&self) -> ScalarValue {
                ScalarValue::$scalar(Some(*self))
            }
        })*
    };
}

plain_value!(bool => Boolean, i32 => Int32, i64 => Int64, u32 => UInt32, u64 => UInt64, f32 => Float32, f64 => Float64);

impl StateValue for String {
    fn to_scalar(&self) -> ScalarValue {
        ScalarValue::Utf8(Some(self.clone()))
    }

    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

impl StateValue for ScalarValue {
    fn to_scalar(&self) -> ScalarValue {
        self.clone()
    }

    fn heap_bytes(&self) -> usize {
        self.size().saturating_sub(size_of::<ScalarValue>())
    }
}

/// One state of all keys.
trait StateColumn: Any + Send {
    fn is_used(&self, key: usize) -> bool;
    /// `new_number[old]` for the keys that are used.
    fn renumber(&mut self, is_used: &[bool], new_number: &[u32]);
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

struct Cells<C> {
    cells: Vec<C>,
    is_empty: fn(&C) -> bool,
}

impl<C: Default + Send + 'static> Cells<C> {
    fn at(&mut self, key: usize) -> &mut C {
        if self.cells.len() <= key {
            self.cells.resize_with(key + 1, C::default);
        }
        &mut self.cells[key]
    }
}

impl<C: Default + Send + 'static> StateColumn for Cells<C> {
    fn is_used(&self, key: usize) -> bool {
        self.cells.get(key).is_some_and(|cell| !(self.is_empty)(cell))
    }

    fn renumber(&mut self, is_used: &[bool], new_number: &[u32]) {
        let mut old = std::mem::take(&mut self.cells);
        for (key, cell) in old.iter_mut().enumerate().filter(|(key, _)| is_used[*key]) {
            *self.at(new_number[key] as usize) = std::mem::take(cell);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

type MakeColumn = Arc<dyn Fn() -> Box<dyn StateColumn> + Send + Sync>;

/// The states of a process function.
#[derive(Clone, Default)]
pub struct StateDeclarations {
    names: Vec<String>,
    makers: Vec<MakeColumn>,
}

impl Debug for StateDeclarations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.names).finish()
    }
}

impl StateDeclarations {
    /// No states yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn add<C: Default + Send + 'static>(&mut self, name: &str, is_empty: fn(&C) -> bool) -> usize {
        self.names.push(name.to_string());
        self.makers.push(Arc::new(move || {
            Box::new(Cells::<C> {
                cells: Vec::new(),
                is_empty,
            })
        }));
        self.names.len() - 1
    }

    /// A value per key.
    pub fn value<T: StateValue>(&mut self, name: &str) -> ValueState<T> {
        ValueState(self.add::<Option<T>>(name, Option::is_none), PhantomData)
    }

    /// A list per key.
    pub fn list<T: StateValue>(&mut self, name: &str) -> ListState<T> {
        ListState(self.add::<Vec<T>>(name, Vec::is_empty), PhantomData)
    }

    /// A map per key.
    pub fn map<K: StateValue + Ord, V: StateValue>(&mut self, name: &str) -> MapState<K, V> {
        MapState(self.add::<BTreeMap<K, V>>(name, BTreeMap::is_empty), PhantomData)
    }

    /// A map that all keys see, and only the broadcast input changes.
    pub fn broadcast<K: StateValue + Ord, V: StateValue>(&mut self, name: &str) -> BroadcastState<K, V> {
        BroadcastState(self.add::<BTreeMap<K, V>>(name, |_| true), PhantomData)
    }

    /// Fails when two states have one name.
    pub(super) fn check(&self) -> Result<()> {
        let twice = self
            .names
            .iter()
            .enumerate()
            .find(|(index, name)| self.names[..*index].contains(name));
        match twice {
            Some((_, name)) => Err(EngineError::Plan(format!("two states are called '{name}'"))),
            None => Ok(()),
        }
    }

    pub(super) fn open(&self) -> States {
        States {
            columns: self.makers.iter().map(|make| make()).collect(),
            bytes: 0,
            may_broadcast: false,
        }
    }
}

/// What is stored, to be read and written through the handles.
pub struct States {
    columns: Vec<Box<dyn StateColumn>>,
    bytes: usize,
    pub(super) may_broadcast: bool,
}

impl States {
    fn cells<C: Default + Send + 'static>(&self, state: usize) -> Result<&Cells<C>> {
        let column = self
            .columns
            .get(state)
            .and_then(|column| column.as_any().downcast_ref());
        column.ok_or_else(Self::foreign)
    }

    fn cell<C: Default + Send + 'static>(&mut self, state: usize, key: usize) -> Result<&mut C> {
        let column = self.columns.get_mut(state);
        let cells: Option<&mut Cells<C>> = column.and_then(|column| column.as_any_mut().downcast_mut());
        Ok(cells.ok_or_else(Self::foreign)?.at(key))
    }

    fn foreign() -> EngineError {
        EngineError::Plan("a state was used that another function declared".into())
    }

    fn grow(&mut self, by: usize) {
        self.bytes += by;
    }

    fn shrink(&mut self, by: usize) {
        self.bytes = self.bytes.saturating_sub(by);
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.bytes
    }

    /// Sets `used` for the keys that have a state.
    pub(super) fn mark_used(&self, used: &mut [bool]) {
        for column in &self.columns {
            for (key, used) in used.iter_mut().enumerate() {
                *used |= column.is_used(key);
            }
        }
    }

    pub(super) fn renumber(&mut self, is_used: &[bool], new_number: &[u32]) {
        for column in &mut self.columns {
            // A broadcast map has no key.
            if (0..is_used.len()).any(|key| column.is_used(key)) {
                column.renumber(is_used, new_number);
            }
        }
    }
}

fn bytes_of<T: StateValue>(value: &T) -> usize {
    size_of::<T>() + value.heap_bytes()
}

/// A value per key; see [`StateDeclarations::value`].
#[derive(Debug)]
pub struct ValueState<T>(usize, PhantomData<fn() -> T>);

/// A list per key; see [`StateDeclarations::list`].
#[derive(Debug)]
pub struct ListState<T>(usize, PhantomData<fn() -> T>);

/// A map per key; see [`StateDeclarations::map`].
#[derive(Debug)]
pub struct MapState<K, V>(usize, PhantomData<fn() -> (K, V)>);

/// A map that all keys see; see [`StateDeclarations::broadcast`].
#[derive(Debug)]
pub struct BroadcastState<K, V>(usize, PhantomData<fn() -> (K, V)>);

macro_rules! copied {
    ($name:ident<$($t:ident),*>) => {
        impl<$($t),*> Clone for $name<$($t),*> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<$($t),*> Copy for $name<$($t),*> {}
    };
}

copied!(ValueState<T>);
copied!(ListState<T>);
copied!(MapState<K, V>);
copied!(BroadcastState<K, V>);

impl<T: StateValue> ValueState<T> {
    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, key: usize) -> Result<Option<&'a T>> {
        Ok(states
            .cells::<Option<T>>(self.0)?
            .cells
            .get(key)
            .and_then(Option::as_ref))
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// As for `get`.
    pub fn set(&self, states: &mut States, key: usize, value: T) -> Result<()> {
        let more = bytes_of(&value);
        let old = states.cell::<Option<T>>(self.0, key)?.replace(value);
        states.grow(more);
        states.shrink(old.as_ref().map_or(0, bytes_of));
        Ok(())
    }

    /// Forgets the value of a key.
    ///
    /// # Errors
    /// As for `get`.
    pub fn clear(&self, states: &mut States, key: usize) -> Result<()> {
        let old = states.cell::<Option<T>>(self.0, key)?.take();
        states.shrink(old.as_ref().map_or(0, bytes_of));
        Ok(())
    }
}

impl<T: StateValue> ListState<T> {
    /// The list of a key.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, key: usize) -> Result<&'a [T]> {
        let cells = &states.cells::<Vec<T>>(self.0)?.cells;
        Ok(cells.get(key).map_or(&[], Vec::as_slice))
    }

    /// Adds to the list of a key.
    ///
    /// # Errors
    /// As for `get`.
    pub fn push(&self, states: &mut States, key: usize, value: T) -> Result<()> {
        states.grow(bytes_of(&value));
        states.cell::<Vec<T>>(self.0, key)?.push(value);
        Ok(())
    }

    /// Forgets the list of a key and gives it away.
    ///
    /// # Errors
    /// As for `get`.
    pub fn take(&self, states: &mut States, key: usize) -> Result<Vec<T>> {
        let list = std::mem::take(states.cell::<Vec<T>>(self.0, key)?);
        states.shrink(list.iter().map(bytes_of).sum());
        Ok(list)
    }
}

impl<K: StateValue + Ord, V: StateValue> MapState<K, V> {
    /// What a key's map holds for an entry.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, key: usize, entry: &K) -> Result<Option<&'a V>> {
        let cells = &states.cells::<BTreeMap<K, V>>(self.0)?.cells;
        Ok(cells.get(key).and_then(|map| map.get(entry)))
    }

    /// The entries of a key's map, in order.
    ///
    /// # Errors
    /// As for `get`.
    pub fn entries<'a>(&self, states: &'a States, key: usize) -> Result<impl Iterator<Item = (&'a K, &'a V)>> {
        let cells = &states.cells::<BTreeMap<K, V>>(self.0)?.cells;
        Ok(cells.get(key).into_iter().flatten())
    }

    /// Sets an entry of a key's map.
    ///
    /// # Errors
    /// As for `get`.
    pub fn put(&self, states: &mut States, key: usize, entry: K, value: V) -> Result<()> {
        put(states, self.0, key, entry, value)
    }

    /// Forgets an entry of a key's map.
    ///
    /// # Errors
    /// As for `get`.
    pub fn remove(&self, states: &mut States, key: usize, entry: &K) -> Result<Option<V>> {
        remove(states, self.0, key, entry)
    }

    /// Forgets a key's map.
    ///
    /// # Errors
    /// As for `get`.
    pub fn clear(&self, states: &mut States, key: usize) -> Result<()> {
        let map = std::mem::take(states.cell::<BTreeMap<K, V>>(self.0, key)?);
        states.shrink(map.iter().map(|(entry, value)| bytes_of(entry) + bytes_of(value)).sum());
        Ok(())
    }
}

impl<K: StateValue + Ord, V: StateValue> BroadcastState<K, V> {
    /// What the map holds for an entry.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, entry: &K) -> Result<Option<&'a V>> {
        let cells = &states.cells::<BTreeMap<K, V>>(self.0)?.cells;
        Ok(cells.first().and_then(|map| map.get(entry)))
    }

    /// The entries, in order.
    ///
    /// # Errors
    /// As for `get`.
    pub fn entries<'a>(&self, states: &'a States) -> Result<impl Iterator<Item = (&'a K, &'a V)>> {
        let cells = &states.cells::<BTreeMap<K, V>>(self.0)?.cells;
        Ok(cells.first().into_iter().flatten())
    }

    /// Sets an entry.
    ///
    /// # Errors
    /// As for `get`, and while the function takes rows that are not broadcast: other subtasks would not know.
    pub fn put(&self, states: &mut States, entry: K, value: V) -> Result<()> {
        Self::check(states)?;
        put(states, self.0, 0, entry, value)
    }

    /// Forgets an entry.
    ///
    /// # Errors
    /// As for `put`.
    pub fn remove(&self, states: &mut States, entry: &K) -> Result<Option<V>> {
        Self::check(states)?;
        remove(states, self.0, 0, entry)
    }

    fn check(states: &States) -> Result<()> {
        if states.may_broadcast {
            return Ok(());
        }
        Err(EngineError::Plan(
            "only rows of the broadcast input may change a broadcast state".into(),
        ))
    }
}

fn put<K: StateValue + Ord, V: StateValue>(
    states: &mut States,
    state: usize,
    key: usize,
    entry: K,
    value: V,
) -> Result<()> {
    let (entry_bytes, value_bytes) = (bytes_of(&entry), bytes_of(&value));
    let old = states.cell::<BTreeMap<K, V>>(state, key)?.insert(entry, value);
    states.grow(value_bytes);
    match old {
        Some(old) => states.shrink(bytes_of(&old)),
        None => states.grow(entry_bytes),
    }
    Ok(())
}

fn remove<K: StateValue + Ord, V: StateValue>(
    states: &mut States,
    state: usize,
    key: usize,
    entry: &K,
) -> Result<Option<V>> {
    let old = states.cell::<BTreeMap<K, V>>(state, key)?.remove(entry);
    if let Some(old) = &old {
        states.shrink(bytes_of(entry) + bytes_of(old));
    }
    Ok(old)
}
