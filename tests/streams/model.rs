//! The reference: windows, triggers, evictors, lateness and accumulation one row at a time, as plainly as they can be said.
//! Nothing here is fast, shared with the engine, or clever: a window is a struct with a vector of rows, and what is due
//! is found by looking at all windows.

use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: i64,
    pub(super) value: i64,
    pub(super) time: i64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Assigner {
    Tumbling {
        size: i64,
        offset: i64,
    },
    Sliding {
        size: i64,
        slide: i64,
    },
    Cumulate {
        step: i64,
        steps: i64,
    },
    Session {
        gap: i64,
    },
    Global,
    /// As many rows, then the next window.
    Count {
        size: i64,
    },
    SlidingCount {
        size: i64,
        slide: i64,
    },
    /// A value below this closes the window.
    Punctuation {
        below: i64,
    },
    Landmark {
        start: i64,
        step: i64,
    },
    Delta {
        threshold: i64,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Trigger {
    /// What the assigner brings along.
    Own,
    EventTime,
    Never,
    Count(i64),
    Continuous(i64),
    Delta(i64),
    OnTimeAndLate(i64),
    PurgingCount(i64),
    PurgingEventTime,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Evictor {
    None,
    Count(usize),
    Time(i64),
    Delta(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Discarding,
    Accumulating,
    Retracting,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub(super) assigner: Assigner,
    pub(super) trigger: Trigger,
    pub(super) evictor: Evictor,
    pub(super) lateness: i64,
    pub(super) mode: Mode,
}

/// What a firing says: whether it is added or taken back, key, bounds, and the values in their order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Told {
    pub(super) added: bool,
    pub(super) key: i64,
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) values: Vec<i64>,
}

#[derive(Clone, Debug)]
struct Window {
    key: i64,
    start: i64,
    end: i64,
    /// Rows with the number of their arrival.
    rows: Vec<(usize, Row)>,
    untold: bool,
    previous: Vec<Told>,
    // What the triggers remember.
    count: i64,
    next: Option<i64>,
    known: Option<i64>,
    late: i64,
    timers: BTreeSet<i64>,
}

impl Window {
    fn new(key: i64, start: i64, end: i64) -> Self {
        Self {
            key,
            start,
            end,
            rows: Vec::new(),
            untold: false,
            previous: Vec::new(),
            count: 0,
            next: None,
            known: None,
            late: 0,
            timers: BTreeSet::new(),
        }
    }

    fn last(&self) -> i64 {
        if self.end == i64::MAX { i64::MAX } else { self.end - 1 }
    }
}

pub(super) struct Model {
    program: Program,
    watermark: i64,
    windows: Vec<Window>,
    arrived: usize,
    pub(super) told: Vec<Told>,
    pub(super) late: Vec<Row>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Continue,
    Fire,
    FireAndPurge,
}

fn fire_if(condition: bool) -> Then {
    if condition { Then::Fire } else { Then::Continue }
}

fn floor(time: i64, size: i64) -> i64 {
    time.div_euclid(size) * size
}

impl Model {
    pub(super) fn new(program: Program) -> Self {
        Self {
            program,
            watermark: i64::MIN,
            windows: Vec::new(),
            arrived: 0,
            told: Vec::new(),
            late: Vec::new(),
        }
    }

    /// Runs whole batches, the watermark after each being its highest time so far less `delay` and 1.
    pub(super) fn run(program: Program, batches: &[Vec<Row>], delay: i64) -> Self {
        let mut model = Self::new(program);
        let mut highest = i64::MIN;
        for batch in batches {
            batch.iter().for_each(|row| model.row(*row));
            highest = batch.iter().map(|row| row.time).fold(highest, i64::max);
            if highest > i64::MIN && highest - delay - 1 > model.watermark {
                model.watermark(highest - delay - 1);
            }
        }
        model.watermark(i64::MAX);
        model.end();
        model
    }

    fn assign(&self, row: Row) -> Vec<(i64, i64)> {
        let time = row.time;
        match self.program.assigner {
            Assigner::Tumbling { size, offset } => {
                let start = floor(time - offset, size) + offset;
                vec![(start, start + size)]
            }
            Assigner::Sliding { size, slide } => {
                let starts = (-size..=size).map(|distance| floor(time, slide) + distance * slide);
                let windows = starts.map(|start| (start, start + size));
                windows.filter(|(start, end)| *start <= time && time < *end).collect()
            }
            Assigner::Cumulate { step, steps } => {
                let start = floor(time, step * steps);
                let windows = (1..=steps).map(|n| (start, start + n * step));
                windows.filter(|(_, end)| time < *end).collect()
            }
            Assigner::Session { gap } => vec![(time, time + gap)],
            Assigner::Landmark { start, .. } if time < start => vec![],
            Assigner::Landmark { start, .. } => vec![(start, i64::MAX)],
            _ => vec![(i64::MIN, i64::MAX)],
        }
    }

    fn cleanup(&self, end: i64) -> i64 {
        if end == i64::MAX {
            i64::MAX
        } else {
            end - 1 + self.program.lateness
        }
    }

    fn gone(&self, end: i64) -> bool {
        end < i64::MAX && self.cleanup(end) <= self.watermark
    }

    fn row(&mut self, row: Row) {
        let arrival = self.arrived;
        self.arrived += 1;
        let assigned = self.assign(row);
        let mut placed = false;
        for (start, end) in &assigned {
            let index = if matches!(self.program.assigner, Assigner::Session { .. }) {
                self.session(row.key, *start, *end)
            } else if self.gone(*end) {
                None
            } else {
                Some(self.find(row.key, *start, *end))
            };
            let Some(index) = index else { continue };
            placed = true;
            if let Assigner::Delta { threshold } = self.program.assigner
                && matches!(self.program.trigger, Trigger::Own)
                && self.windows[index]
                    .known
                    .is_some_and(|known| (row.value - known).abs() > threshold)
            {
                self.windows[index].known = None;
                self.fire(index, None);
                self.purge(index);
            }
            self.windows[index].rows.push((arrival, row));
            self.windows[index].untold = true;
            match self.on_row(index, row) {
                Then::Continue => {}
                Then::Fire => self.fire(index, None),
                Then::FireAndPurge => {
                    self.fire(index, None);
                    self.purge(index);
                }
            }
        }
        if !assigned.is_empty() && !placed {
            self.late.push(row);
        }
    }

    fn find(&mut self, key: i64, start: i64, end: i64) -> usize {
        let known = self
            .windows
            .iter()
            .position(|window| (window.key, window.start, window.end) == (key, start, end));
        known.unwrap_or_else(|| {
            self.windows.push(Window::new(key, start, end));
            self.windows.len() - 1
        })
    }

    /// The session that a row joins, made of all that it touches.
    fn session(&mut self, key: i64, start: i64, end: i64) -> Option<usize> {
        let touches = |window: &Window| window.key == key && window.start < end && start < window.end;
        let (touched, others): (Vec<Window>, Vec<Window>) = self.windows.drain(..).partition(touches);
        self.windows = others;
        if touched.is_empty() {
            if self.gone(end) {
                return None;
            }
            self.windows.push(Window::new(key, start, end));
            return Some(self.windows.len() - 1);
        }
        let mut merged = Window::new(key, start, end);
        let unchanged = touched.len() == 1 && touched[0].start <= start && end <= touched[0].end;
        for window in &touched {
            merged.start = merged.start.min(window.start);
            merged.end = merged.end.max(window.end);
            merged.rows.extend(&window.rows);
            merged.untold |= window.untold;
            merged.previous.extend(window.previous.clone());
            merged.count += window.count;
            merged.late += window.late;
            merged.next = merged.next.into_iter().chain(window.next).min();
        }
        merged.rows.sort_by_key(|(arrival, _)| *arrival);
        if unchanged {
            merged.timers = touched[0].timers.clone();
        } else {
            merged.timers.extend(merged.next);
            if merged.late > 0 {
                merged.timers.insert(self.cleanup(merged.end));
            }
            let timed = !matches!(
                self.program.trigger,
                Trigger::Count(_) | Trigger::PurgingCount(_) | Trigger::Never
            );
            if timed && merged.last() > self.watermark {
                merged.timers.insert(merged.last());
            }
        }
        self.windows.push(merged);
        Some(self.windows.len() - 1)
    }

    fn on_row(&mut self, index: usize, row: Row) -> Then {
        let watermark = self.watermark;
        let cleanup = self.cleanup(self.windows[index].end);
        let window = &mut self.windows[index];
        let complete = window.last() <= watermark;
        let event_time = |window: &mut Window| {
            if complete {
                return true;
            }
            window.timers.insert(window.last());
            false
        };
        let count = |window: &mut Window, limit: i64| {
            window.count += 1;
            let full = window.count >= limit;
            if full {
                window.count = 0;
            }
            full
        };
        match (self.program.trigger, self.program.assigner) {
            (Trigger::Own, Assigner::Global) | (Trigger::Never, _) => Then::Continue,
            (Trigger::Own, Assigner::Count { size }) | (Trigger::PurgingCount(size), _) => {
                if count(window, size) {
                    Then::FireAndPurge
                } else {
                    Then::Continue
                }
            }
            (Trigger::Own, Assigner::SlidingCount { slide: limit, .. }) | (Trigger::Count(limit), _) => {
                fire_if(count(window, limit))
            }
            (Trigger::Own, Assigner::Punctuation { below }) => {
                if row.value < below {
                    Then::FireAndPurge
                } else {
                    Then::Continue
                }
            }
            (Trigger::Own, Assigner::Delta { .. }) => {
                window.known.get_or_insert(row.value);
                Then::Continue
            }
            (Trigger::Own, Assigner::Landmark { start, step }) => {
                let mut boundary = start + floor(row.time - start, step) + step;
                if boundary - 1 <= watermark {
                    boundary = start + floor(watermark + 1 - start, step);
                }
                window.timers.insert(boundary - 1);
                Then::Continue
            }
            (Trigger::Own | Trigger::EventTime, _) => fire_if(event_time(window)),
            (Trigger::PurgingEventTime, _) => {
                if event_time(window) {
                    Then::FireAndPurge
                } else {
                    Then::Continue
                }
            }
            (Trigger::Continuous(interval), _) => {
                if event_time(window) {
                    return Then::Fire;
                }
                let next = (floor(row.time, interval) + interval).min(window.last());
                if window.next.is_none_or(|known| next < known) {
                    window.next = Some(next);
                    window.timers.insert(next);
                }
                Then::Continue
            }
            (Trigger::Delta(threshold), _) => {
                let fires = window.known.is_some_and(|known| (row.value - known).abs() > threshold);
                if fires || window.known.is_none() {
                    window.known = Some(row.value);
                }
                fire_if(fires)
            }
            (Trigger::OnTimeAndLate(limit), _) => {
                if !event_time(window) {
                    return Then::Continue;
                }
                window.late += 1;
                if window.late >= limit {
                    window.late = 0;
                    return Then::Fire;
                }
                window.timers.insert(cleanup);
                Then::Continue
            }
        }
    }

    fn on_time(&mut self, index: usize, time: i64) {
        let cleanup = self.cleanup(self.windows[index].end);
        let window = &mut self.windows[index];
        let at_end = time == window.last();
        match (self.program.trigger, self.program.assigner) {
            (Trigger::Own, Assigner::Landmark { .. }) => self.fire(index, Some(time + 1)),
            (Trigger::PurgingEventTime, _) => {
                if at_end {
                    self.fire(index, None);
                    self.purge(index);
                }
            }
            (Trigger::Continuous(_), _) => {
                let asked = window.next == Some(time);
                if asked {
                    window.next = None;
                }
                if asked || at_end {
                    self.fire(index, None);
                }
            }
            (Trigger::OnTimeAndLate(_), _) => {
                let rest = time == cleanup && window.late > 0;
                if rest && !at_end {
                    window.late = 0;
                }
                if rest || at_end {
                    self.fire(index, None);
                }
            }
            _ => {
                if at_end {
                    self.fire(index, None);
                }
            }
        }
    }

    /// Event time reaches `watermark`: what is due comes one by one, in the order of time, the end of a window last.
    fn watermark(&mut self, watermark: i64) {
        self.watermark = watermark;
        loop {
            let timer = |window: &Window| window.timers.first().map(|time| (*time, false));
            let close = |window: &Window| {
                let cleanup = self.cleanup(window.end);
                (cleanup < i64::MAX).then_some((cleanup, true))
            };
            let due = self.windows.iter().enumerate();
            let due = due.flat_map(|(index, window)| {
                timer(window)
                    .into_iter()
                    .chain(close(window))
                    .map(move |at| (at, index))
            });
            let Some(((time, closes), index)) = due.min() else {
                return;
            };
            if time > watermark {
                return;
            }
            if closes {
                self.windows.remove(index);
            } else {
                self.windows[index].timers.remove(&time);
                self.on_time(index, time);
            }
        }
    }

    fn end(&mut self) {
        for index in 0..self.windows.len() {
            if self.windows[index].untold {
                self.fire(index, None);
            }
        }
        self.windows.clear();
    }

    fn purge(&mut self, index: usize) {
        let window = &mut self.windows[index];
        window.rows.clear();
        window.previous.clear();
        window.untold = false;
        // A window without an end of which nothing is remembered begins anew.
        if window.end == i64::MAX && window.count == 0 && window.known.is_none() && window.next.is_none() {
            window.timers.clear();
        }
    }

    fn fire(&mut self, index: usize, until: Option<i64>) {
        let mode = self.program.mode;
        let evictor = match (self.program.evictor, self.program.assigner) {
            (Evictor::None, Assigner::SlidingCount { size, .. }) => Evictor::Count(size as usize),
            (evictor, _) => evictor,
        };
        let window = &mut self.windows[index];
        let (pane, rest): (Vec<_>, Vec<_>) = window
            .rows
            .drain(..)
            .partition(|(_, row)| until.is_none_or(|until| row.time < until));
        if pane.is_empty() {
            window.rows = rest;
            return;
        }
        let youngest = pane.iter().map(|(_, row)| row.time).max().unwrap();
        let last = pane.last().unwrap().1.value;
        let count = pane.len();
        let kept: Vec<(usize, Row)> = pane
            .into_iter()
            .enumerate()
            .filter(|(place, (_, row))| match evictor {
                Evictor::None => true,
                Evictor::Count(most) => place + most >= count,
                Evictor::Time(span) => row.time > youngest - span,
                Evictor::Delta(threshold) => (row.value - last).abs() < threshold,
            })
            .map(|(_, row)| row)
            .collect();
        window.rows = rest;
        if mode != Mode::Discarding {
            window.rows.extend(&kept);
            window.rows.sort_by_key(|(arrival, _)| *arrival);
        }
        window.untold = false;
        if kept.is_empty() {
            return;
        }
        let times = kept.iter().map(|(_, row)| row.time);
        let start = if window.start == i64::MIN {
            times.clone().min().unwrap()
        } else {
            window.start
        };
        let end = match until {
            Some(until) => until,
            None if window.end == i64::MAX => times.max().unwrap() + 1,
            None => window.end,
        };
        let told = Told {
            added: true,
            key: window.key,
            start,
            end,
            values: kept.iter().map(|(_, row)| row.value).collect(),
        };
        if mode == Mode::Retracting {
            for old in window.previous.drain(..) {
                self.told.push(Told { added: false, ..old });
            }
            window.previous.push(told.clone());
        }
        self.told.push(told);
    }
}
