//! Handles of typed states: through them a function reads and writes.

use std::marker::PhantomData;

use super::contents::{Held, Listed, Mapped};
use super::state::States;
use super::value::{StateValue, bytes_of};
use crate::data::{EngineError, Result};

/// A value per key; see [`super::StateDeclarations::value`].
#[derive(Debug)]
pub struct ValueState<T>(pub(super) usize, pub(super) PhantomData<fn() -> T>);

/// A list per key; see [`super::StateDeclarations::list`].
#[derive(Debug)]
pub struct ListState<T>(pub(super) usize, pub(super) PhantomData<fn() -> T>);

/// A map per key; see [`super::StateDeclarations::map`].
#[derive(Debug)]
pub struct MapState<K, V>(pub(super) usize, pub(super) PhantomData<fn() -> (K, V)>);

/// A map that all keys see; see [`super::StateDeclarations::broadcast`].
#[derive(Debug)]
pub struct BroadcastState<K, V>(pub(super) usize, pub(super) PhantomData<fn() -> (K, V)>);

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

pub(super) use copied;

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
        let cell = states.cell::<Held<T>>(self.0, key)?;
        Ok(cell.and_then(|cell| cell.get(&states.moment(self.0))))
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// As for `get`.
    pub fn set(&self, states: &mut States, key: usize, value: T) -> Result<()> {
        put_value(states, self.0, key, Some(value))
    }

    /// Forgets the value of a key.
    ///
    /// # Errors
    /// As for `get`.
    pub fn clear(&self, states: &mut States, key: usize) -> Result<()> {
        put_value::<T>(states, self.0, key, None)
    }
}

/// Sets or forgets the value of a key.
pub(super) fn put_value<T: StateValue>(states: &mut States, state: usize, key: usize, value: Option<T>) -> Result<()> {
    let moment = states.moment(state);
    let more = value.as_ref().map_or(0, bytes_of);
    let less = states.cell_mut::<Held<T>>(state, key)?.set(value, &moment);
    states.grow(more);
    states.shrink(less);
    Ok(())
}

impl<T: StateValue> ListState<T> {
    /// The list of a key.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, key: usize) -> Result<&'a [T]> {
        let cell = states.cell::<Listed<T>>(self.0, key)?;
        Ok(cell.map_or(&[], |cell| cell.get(&states.moment(self.0))))
    }

    /// Adds to the list of a key.
    ///
    /// # Errors
    /// As for `get`.
    pub fn push(&self, states: &mut States, key: usize, value: T) -> Result<()> {
        let moment = states.moment(self.0);
        let more = bytes_of(&value);
        let less = states.cell_mut::<Listed<T>>(self.0, key)?.push(value, &moment);
        states.grow(more);
        states.shrink(less);
        Ok(())
    }

    /// Forgets the list of a key and gives it away.
    ///
    /// # Errors
    /// As for `get`.
    pub fn take(&self, states: &mut States, key: usize) -> Result<Vec<T>> {
        let moment = states.moment(self.0);
        let (list, less) = states.cell_mut::<Listed<T>>(self.0, key)?.take(&moment);
        states.shrink(less);
        Ok(list)
    }
}

impl<K: StateValue + Ord, V: StateValue> MapState<K, V> {
    /// What a key's map holds for an entry.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, key: usize, entry: &K) -> Result<Option<&'a V>> {
        let cell = states.cell::<Mapped<K, V>>(self.0, key)?;
        Ok(cell.and_then(|cell| cell.get(entry, &states.moment(self.0))))
    }

    /// The entries of a key's map, in order.
    ///
    /// # Errors
    /// As for `get`.
    pub fn entries<'a>(&self, states: &'a States, key: usize) -> Result<impl Iterator<Item = (&'a K, &'a V)>> {
        let cell = states.cell::<Mapped<K, V>>(self.0, key)?;
        let moment = states.moment(self.0);
        Ok(cell.into_iter().flat_map(move |cell| cell.entries(moment)))
    }

    /// Sets an entry of a key's map.
    ///
    /// # Errors
    /// As for `get`.
    pub fn put(&self, states: &mut States, key: usize, entry: K, value: V) -> Result<()> {
        put_entry(states, self.0, key, entry, value)
    }

    /// Forgets an entry of a key's map.
    ///
    /// # Errors
    /// As for `get`.
    pub fn remove(&self, states: &mut States, key: usize, entry: &K) -> Result<Option<V>> {
        remove_entry(states, self.0, key, entry)
    }

    /// Forgets a key's map.
    ///
    /// # Errors
    /// As for `get`.
    pub fn clear(&self, states: &mut States, key: usize) -> Result<()> {
        let less = states.cell_mut::<Mapped<K, V>>(self.0, key)?.clear();
        states.shrink(less);
        Ok(())
    }
}

impl<K: StateValue + Ord, V: StateValue> BroadcastState<K, V> {
    /// What the map holds for an entry.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, entry: &K) -> Result<Option<&'a V>> {
        let cell = states.cell::<Mapped<K, V>>(self.0, 0)?;
        Ok(cell.and_then(|cell| cell.get(entry, &states.moment(self.0))))
    }

    /// The entries, in order.
    ///
    /// # Errors
    /// As for `get`.
    pub fn entries<'a>(&self, states: &'a States) -> Result<impl Iterator<Item = (&'a K, &'a V)>> {
        let cell = states.cell::<Mapped<K, V>>(self.0, 0)?;
        let moment = states.moment(self.0);
        Ok(cell.into_iter().flat_map(move |cell| cell.entries(moment)))
    }

    /// Sets an entry.
    ///
    /// # Errors
    /// As for `get`, and while the function takes rows that are not broadcast: other subtasks would not know.
    pub fn put(&self, states: &mut States, entry: K, value: V) -> Result<()> {
        Self::check(states)?;
        put_entry(states, self.0, 0, entry, value)
    }

    /// Forgets an entry.
    ///
    /// # Errors
    /// As for `put`.
    pub fn remove(&self, states: &mut States, entry: &K) -> Result<Option<V>> {
        Self::check(states)?;
        remove_entry(states, self.0, 0, entry)
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

fn put_entry<K: StateValue + Ord, V: StateValue>(
    states: &mut States,
    state: usize,
    key: usize,
    entry: K,
    value: V,
) -> Result<()> {
    let moment = states.moment(state);
    let cell = states.cell_mut::<Mapped<K, V>>(state, key)?;
    let (more, less) = cell.put(entry, value, &moment);
    states.grow(more);
    states.shrink(less);
    Ok(())
}

fn remove_entry<K: StateValue + Ord, V: StateValue>(
    states: &mut States,
    state: usize,
    key: usize,
    entry: &K,
) -> Result<Option<V>> {
    let moment = states.moment(state);
    let (old, less) = states.cell_mut::<Mapped<K, V>>(state, key)?.remove(entry, &moment);
    states.shrink(less);
    Ok(old)
}
