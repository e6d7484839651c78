//! The states that a process function declares: a value, a list, a map, a fold or a column per key, by name; and maps that
//! all keys see.
//!
//! A state is declared once ([`StateDeclarations`]); what that gives is a handle, through which the function reads and
//! writes. The operator owns what is stored: typed states as cells by the number of the key, columns as tables by key.
//!
//! In a snapshot each state is a table of its own ("value NAME", ..), so that a state can be added, or dropped.

use std::any::Any;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};

use super::cells::{Cells, StateColumn};
use super::column::{ColumnState, ColumnTable};
use super::contents::{Content, Held, Listed, Mapped, Moment};
use super::fold::{AggregateFunction, AggregatingState, ReducingState, reducer};
use super::handles::{BroadcastState, ListState, MapState, ValueState};
use super::keys::KeyNumbers;
use super::value::StateValue;
use crate::data::{EngineError, Result};
use crate::operator::Context;
use crate::state::{History, Restored, Snapshot, Ttl};

/// States that are looked at for what has expired, each time.
const SWEPT: usize = 4096;

/// What is stored of one state.
enum Stored {
    Keyed(Box<dyn StateColumn>),
    Broadcast(Box<dyn StateColumn>),
    Column(Box<ColumnTable>),
}

type MakeStored = dyn Fn(&KeyNumbers, Option<Ttl>) -> Result<Stored> + Send + Sync;

#[derive(Clone)]
struct Declared {
    name: String,
    ttl: Option<Ttl>,
    make: Arc<MakeStored>,
    /// What the program brings along for it.
    function: Option<Arc<dyn Any + Send + Sync>>,
    is_broadcast: bool,
}

/// The states of a process function.
#[derive(Clone, Default)]
pub struct StateDeclarations {
    states: Vec<Declared>,
    ttl: Option<Ttl>,
}

impl Debug for StateDeclarations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.states.iter().map(|state| &state.name))
            .finish()
    }
}

impl StateDeclarations {
    /// No states yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state that is declared next expires: `states.with_ttl(Ttl::on_write(hour)).value("name")`. Of a list each item
    /// expires for itself, of a map each entry.
    pub fn with_ttl(&mut self, ttl: Ttl) -> &mut Self {
        self.ttl = Some(ttl);
        self
    }

    fn add(
        &mut self,
        name: &str,
        make: impl Fn(&KeyNumbers, Option<Ttl>) -> Result<Stored> + Send + Sync + 'static,
    ) -> usize {
        self.states.push(Declared {
            name: name.to_string(),
            ttl: self.ttl.take(),
            make: Arc::new(make),
            function: None,
            is_broadcast: false,
        });
        self.states.len() - 1
    }

    fn add_cells<C: Content>(&mut self, name: &str) -> usize {
        self.add(name, |_, ttl| Ok(Stored::Keyed(Box::new(Cells::<C>::new(ttl)))))
    }

    /// A value per key.
    pub fn value<T: StateValue>(&mut self, name: &str) -> ValueState<T> {
        ValueState(self.add_cells::<Held<T>>(name), PhantomData)
    }

    /// A list per key.
    pub fn list<T: StateValue>(&mut self, name: &str) -> ListState<T> {
        ListState(self.add_cells::<Listed<T>>(name), PhantomData)
    }

    /// A map per key.
    pub fn map<K: StateValue + Ord, V: StateValue>(&mut self, name: &str) -> MapState<K, V> {
        MapState(self.add_cells::<Mapped<K, V>>(name), PhantomData)
    }

    /// A value per key to which others are added: what was there and what comes become one by `reduce`.
    pub fn reducing<T: StateValue>(
        &mut self,
        name: &str,
        reduce: impl Fn(&T, &T) -> T + Send + Sync + 'static,
    ) -> ReducingState<T> {
        let state = self.add_cells::<Held<T>>(name);
        self.states[state].function = Some(reducer(reduce));
        ReducingState(state, PhantomData)
    }

    /// An aggregate per key: what is added goes into an accumulator, from which the result is made.
    pub fn aggregating<A: AggregateFunction>(&mut self, name: &str, function: A) -> AggregatingState<A> {
        let state = self.add_cells::<Held<A::Accumulator>>(name);
        self.states[state].function = Some(Arc::new(function));
        AggregatingState(state, PhantomData)
    }

    /// A value per key that is read and written for whole batches of keys. Only what has changed goes into a snapshot
    /// that builds on another, and what does not fit into memory goes to disk.
    pub fn column(&mut self, name: &str, data_type: DataType) -> ColumnState {
        let table = format!("column {name}");
        ColumnState(self.add(name, move |keys, ttl| {
            let value = Field::new("value", data_type.clone(), true);
            let mut spec = keys.spec(table.clone(), vec![value], 0);
            spec.unique = keys.width();
            Ok(Stored::Column(Box::new(ColumnTable::new(spec, ttl)?)))
        }))
    }

    /// A map that all keys see, and only the broadcast input changes.
    pub fn broadcast<K: StateValue + Ord, V: StateValue>(&mut self, name: &str) -> BroadcastState<K, V> {
        let state = self.add(name, |_, _| {
            Ok(Stored::Broadcast(Box::new(Cells::<Mapped<K, V>>::new(None))))
        });
        self.states[state].is_broadcast = true;
        BroadcastState(state, PhantomData)
    }

    /// Fails when two states have one name, or one expires that cannot.
    pub(super) fn check(&self) -> Result<()> {
        for (index, state) in self.states.iter().enumerate() {
            let name = &state.name;
            if self.states[..index].iter().any(|other| other.name == *name) {
                return Err(EngineError::Plan(format!("two states are called '{name}'")));
            }
            if state.is_broadcast && state.ttl.is_some() {
                return Err(EngineError::Plan(format!(
                    "the broadcast state '{name}' cannot expire: each subtask would have its own time; \
                     remove its entries by a record of the broadcast input"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn open(&self, keys: KeyNumbers) -> Result<States> {
        let open = |state: &Declared| {
            Ok(State {
                name: state.name.clone(),
                ttl: state.ttl,
                function: state.function.clone(),
                stored: (state.make)(&keys, state.ttl)?,
            })
        };
        Ok(States {
            states: self.states.iter().map(open).collect::<Result<_>>()?,
            keys,
            bytes: 0,
            now_ms: 0,
            may_broadcast: false,
            history: History::default(),
        })
    }
}

struct State {
    name: String,
    ttl: Option<Ttl>,
    function: Option<Arc<dyn Any + Send + Sync>>,
    stored: Stored,
}

/// What is stored, to be read and written through the handles.
pub struct States {
    states: Vec<State>,
    pub(super) keys: KeyNumbers,
    bytes: usize,
    now_ms: i64,
    pub(super) may_broadcast: bool,
    history: History,
}

impl States {
    /// Sets processing time.
    pub(super) fn set_time(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        for state in &mut self.states {
            if let Stored::Column(column) = &mut state.stored {
                column.set_time(now_ms);
            }
        }
    }

    pub(super) fn moment(&self, state: usize) -> Moment {
        Moment {
            ttl: self.states.get(state).and_then(|state| state.ttl),
            now_ms: self.now_ms,
            epoch: self.history.current(),
        }
    }

    pub(super) fn cell<C: Content>(&self, state: usize, key: usize) -> Result<Option<&C>> {
        let cells = match self.states.get(state).map(|state| &state.stored) {
            Some(Stored::Keyed(column) | Stored::Broadcast(column)) => column.as_any().downcast_ref::<Cells<C>>(),
            _ => None,
        };
        Ok(cells.ok_or_else(Self::foreign)?.get(key))
    }

    pub(super) fn cell_mut<C: Content>(&mut self, state: usize, key: usize) -> Result<&mut C> {
        let cells = match self.states.get_mut(state).map(|state| &mut state.stored) {
            Some(Stored::Keyed(column) | Stored::Broadcast(column)) => column.as_any_mut().downcast_mut::<Cells<C>>(),
            _ => None,
        };
        Ok(cells.ok_or_else(Self::foreign)?.at(key))
    }

    /// The table of a column state, and the keys.
    pub(super) fn column(&mut self, state: usize) -> Result<(&mut ColumnTable, &KeyNumbers)> {
        match self.states.get_mut(state).map(|state| &mut state.stored) {
            Some(Stored::Column(column)) => Ok((column, &self.keys)),
            _ => Err(Self::foreign()),
        }
    }

    pub(super) fn function<F: 'static>(&self, state: usize) -> Result<&F> {
        let function = self.states.get(state).and_then(|state| state.function.as_ref());
        function
            .and_then(|function| function.downcast_ref())
            .ok_or_else(Self::foreign)
    }

    fn foreign() -> EngineError {
        EngineError::Plan("a state was used that another function declared".into())
    }

    pub(super) fn grow(&mut self, by: usize) {
        self.bytes += by;
    }

    pub(super) fn shrink(&mut self, by: usize) {
        self.bytes = self.bytes.saturating_sub(by);
    }

    /// Bytes held by keys and typed states; columns book for themselves.
    pub(super) fn size(&self) -> usize {
        self.bytes + self.keys.size()
    }

    fn cells(&self) -> impl Iterator<Item = &dyn StateColumn> {
        self.states.iter().filter_map(|state| match &state.stored {
            Stored::Keyed(column) => Some(column.as_ref()),
            _ => None,
        })
    }

    /// Sets `used` for the keys that have a typed state: columns know their keys themselves.
    pub(super) fn mark_used(&self, used: &mut [bool]) {
        let oldest = self.history.oldest();
        for column in self.cells() {
            for (key, used) in used.iter_mut().enumerate() {
                *used |= column.is_used(key, oldest);
            }
        }
    }

    /// Forgets all keys but those that are used: their numbers will be others'.
    pub(super) fn forget(&mut self, is_used: &[bool]) {
        let gone = self.keys.forget(is_used);
        for state in &mut self.states {
            match &mut state.stored {
                Stored::Keyed(column) => gone.iter().for_each(|key| column.forget(*key as usize)),
                Stored::Column(column) => column.forget_numbers(),
                Stored::Broadcast(_) => {}
            }
        }
    }

    /// To be called after each batch: lets go of what has expired, and of memory that is not to be had.
    pub(super) fn settle(&mut self, cx: &Context) -> Result<()> {
        let mut freed = 0;
        for at in 0..self.states.len() {
            let moment = self.moment(at);
            match &mut self.states[at].stored {
                Stored::Keyed(column) => freed += column.sweep(SWEPT, &moment),
                Stored::Column(column) => column.settle(SWEPT, cx)?,
                Stored::Broadcast(_) => {}
            }
        }
        self.shrink(freed);
        Ok(())
    }

    /// Adds all states to a snapshot.
    pub(super) fn snapshot(&mut self, snapshot: &mut Snapshot) {
        let request = snapshot.request();
        let since = request.since;
        let epoch = since.and_then(|since| self.history.since(since));
        let frozen = self.keys.freeze();
        let key_schema = self.keys.spec(String::new(), Vec::new(), 0).schema;
        for at in 0..self.states.len() {
            let moment = self.moment(at);
            let State { name, stored, .. } = &mut self.states[at];
            match stored {
                Stored::Column(column) => column.snapshot(snapshot),
                Stored::Broadcast(column) => {
                    let spec = column.spec(name, None);
                    snapshot.full(&spec, column.rows(None, Arc::clone(&spec.schema), 0, moment));
                }
                Stored::Keyed(column) => {
                    let spec = column.spec(name, Some(&self.keys));
                    let rows = |since| column.rows(Some(frozen.clone()), Arc::clone(&spec.schema), since, moment);
                    match (since, epoch.filter(|_| column.has_epochs())) {
                        (Some(since), Some(epoch)) => {
                            let gone = column.gone(frozen.clone(), Arc::clone(&key_schema), epoch);
                            snapshot.delta(&spec, since, rows(epoch), gone);
                        }
                        _ => snapshot.full(&spec, rows(0)),
                    }
                }
            }
        }
        self.history.barrier(request.checkpoint);
    }

    /// Takes back what `snapshot` added.
    pub(super) fn restore(&mut self, state: &mut Restored, cx: &Context) -> Result<()> {
        let mut numbers = Vec::new();
        for at in 0..self.states.len() {
            let moment = self.moment(at);
            let State { name, stored, .. } = &mut self.states[at];
            match stored {
                Stored::Column(column) => column.restore(&self.keys, state, cx)?,
                Stored::Broadcast(column) => {
                    for batch in state.take(&column.spec(name, None))? {
                        let batch = batch?;
                        let numbers = vec![0; batch.num_rows()];
                        self.bytes += column.restore(&numbers, batch.columns(), &moment)?;
                    }
                }
                Stored::Keyed(column) => {
                    for batch in state.take(&column.spec(name, Some(&self.keys)))? {
                        let batch = self.keys.own_rows(batch?)?;
                        let (keys, values) = batch.columns().split_at(self.keys.width());
                        self.keys.number_stored(keys, batch.num_rows(), &mut numbers)?;
                        self.bytes += column.restore(&numbers, values, &moment)?;
                    }
                }
            }
        }
        self.history.barrier(state.checkpoint());
        Ok(())
    }
}
