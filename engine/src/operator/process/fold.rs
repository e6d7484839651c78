//! States to which values are added: what is kept is what they come to.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

use super::contents::Held;
use super::handles::{copied, put_value};
use super::state::States;
use super::value::StateValue;
use crate::data::Result;

/// How values become an accumulator, and that a result (Flink's `AggregateFunction`).
pub trait AggregateFunction: Send + Sync + 'static {
    /// What is added.
    type Input;
    /// What is kept.
    type Accumulator: StateValue;
    /// What is read.
    type Output;

    /// The accumulator of no value.
    fn create(&self) -> Self::Accumulator;

    /// Adds a value.
    fn add(&self, accumulator: Self::Accumulator, value: &Self::Input) -> Self::Accumulator;

    /// What the values have come to.
    fn result(&self, accumulator: &Self::Accumulator) -> Self::Output;
}

/// A value per key to which others are added; see [`super::StateDeclarations::reducing`].
#[derive(Debug)]
pub struct ReducingState<T>(pub(super) usize, pub(super) PhantomData<fn() -> T>);

/// An aggregate per key; see [`super::StateDeclarations::aggregating`].
#[derive(Debug)]
pub struct AggregatingState<A>(pub(super) usize, pub(super) PhantomData<fn() -> A>);

copied!(ReducingState<T>);
copied!(AggregatingState<A>);

type Reduce<T> = dyn Fn(&T, &T) -> T + Send + Sync;

struct Reducer<T>(Box<Reduce<T>>);

/// What [`States::function`] finds for a reducing state.
pub(super) fn reducer<T: StateValue>(
    reduce: impl Fn(&T, &T) -> T + Send + Sync + 'static,
) -> Arc<dyn Any + Send + Sync> {
    Arc::new(Reducer(Box::new(reduce)))
}

impl<T: StateValue> ReducingState<T> {
    /// What the values of a key have come to, if there were any.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get<'a>(&self, states: &'a States, key: usize) -> Result<Option<&'a T>> {
        let cell = states.cell::<Held<T>>(self.0, key)?;
        Ok(cell.and_then(|cell| cell.get(&states.moment(self.0))))
    }

    /// Adds a value.
    ///
    /// # Errors
    /// As for `get`.
    pub fn add(&self, states: &mut States, key: usize, value: T) -> Result<()> {
        let reduce = states.function::<Reducer<T>>(self.0)?;
        let value = match self.get(states, key)? {
            Some(so_far) => (reduce.0)(so_far, &value),
            None => value,
        };
        put_value(states, self.0, key, Some(value))
    }

    /// Forgets what there was.
    ///
    /// # Errors
    /// As for `get`.
    pub fn clear(&self, states: &mut States, key: usize) -> Result<()> {
        put_value::<T>(states, self.0, key, None)
    }
}

impl<A: AggregateFunction> AggregatingState<A> {
    fn accumulator<'a>(&self, states: &'a States, key: usize) -> Result<Option<&'a A::Accumulator>> {
        let cell = states.cell::<Held<A::Accumulator>>(self.0, key)?;
        Ok(cell.and_then(|cell| cell.get(&states.moment(self.0))))
    }

    /// What the values of a key have come to, if there were any.
    ///
    /// # Errors
    /// When the handle is of another function.
    pub fn get(&self, states: &States, key: usize) -> Result<Option<A::Output>> {
        let function = states.function::<A>(self.0)?;
        let accumulator = self.accumulator(states, key)?;
        Ok(accumulator.map(|accumulator| function.result(accumulator)))
    }

    /// Adds a value.
    ///
    /// # Errors
    /// As for `get`.
    pub fn add(&self, states: &mut States, key: usize, value: &A::Input) -> Result<()> {
        let function = states.function::<A>(self.0)?;
        let so_far = self.accumulator(states, key)?.cloned();
        let accumulator = function.add(so_far.unwrap_or_else(|| function.create()), value);
        put_value(states, self.0, key, Some(accumulator))
    }

    /// Forgets what there was.
    ///
    /// # Errors
    /// As for `get`.
    pub fn clear(&self, states: &mut States, key: usize) -> Result<()> {
        put_value::<A::Accumulator>(states, self.0, key, None)
    }
}
