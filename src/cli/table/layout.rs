//! How wide each column is, and which are left out.

/// Text columns are not squeezed below this width before columns are left out.
const TEXT_MIN: usize = 12;
/// A number cut short misleads: these stay whole up to this width.
pub(super) const NUMBER_MIN: usize = 20;

/// What a column would like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) header: usize,
    pub(super) cells: usize,
    pub(super) numeric: bool,
}

impl Column {
    fn natural(&self) -> usize {
        self.header.max(self.cells).max(1)
    }

    fn least(&self) -> usize {
        let wanted = if self.numeric {
            self.cells.clamp(TEXT_MIN, NUMBER_MIN)
        } else {
            TEXT_MIN
        };
        self.natural().min(wanted)
    }
}

/// What is shown, from left to right.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Column { index: usize, width: usize },
    Elision,
}

impl Slot {
    /// Terminal cells between the paddings.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Column { width, .. } => *width,
            Self::Elision => 1,
        }
    }
}

/// The columns of a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) slots: Vec<Slot>,
    /// How many columns are left out.
    pub(super) hidden: usize,
}

/// Each column costs a border and two spaces; the table one border more.
const FRAME: usize = 3;

/// The layout within `terminal` cells, or with everything in its natural width.
pub(super) fn fit(columns: &[Column], terminal: Option<usize>) -> Layout {
    let all: Vec<usize> = (0..columns.len()).collect();
    let Some(terminal) = terminal else {
        let slots = all.iter().map(|&index| Slot::Column {
            index,
            width: columns[index].natural(),
        });
        return Layout {
            slots: slots.collect(),
            hidden: 0,
        };
    };
    let budget = terminal.saturating_sub(1);
    let cost = |index: usize| columns[index].least() + FRAME;
    let (left, right) = if all.iter().map(|&i| cost(i)).sum::<usize>() <= budget {
        (columns.len(), columns.len())
    } else {
        choose(columns.len(), budget.saturating_sub(1 + FRAME), cost)
    };
    let shown: Vec<usize> = (0..left).chain(right..columns.len()).collect();
    let hidden = columns.len() - shown.len();
    let elision = if hidden > 0 { 1 + FRAME } else { 0 };
    let widths = squeeze(columns, &shown, budget.saturating_sub(elision + FRAME * shown.len()));
    let mut slots: Vec<_> = shown
        .iter()
        .zip(widths)
        .map(|(&index, width)| Slot::Column { index, width })
        .collect();
    if hidden > 0 {
        slots.insert(left, Slot::Elision);
    }
    Layout { slots, hidden }
}

/// Columns `..left` and `right..` that fit, taken in turn from both ends; at least the first.
fn choose(count: usize, budget: usize, cost: impl Fn(usize) -> usize) -> (usize, usize) {
    let (mut left, mut right) = (1, count);
    let mut used = cost(0);
    while left < right {
        let from_right = left > count - right;
        let next = if from_right { right - 1 } else { left };
        used += cost(next);
        if used > budget {
            break;
        }
        if from_right { right -= 1 } else { left += 1 }
    }
    (left, right)
}

/// Natural widths, the widest made narrower until they fit.
fn squeeze(columns: &[Column], shown: &[usize], budget: usize) -> Vec<usize> {
    let natural: Vec<usize> = shown.iter().map(|&i| columns[i].natural().min(budget.max(1))).collect();
    let least: Vec<usize> = shown.iter().map(|&i| columns[i].least()).collect();
    // All columns wider than a common cap are cut to it: the largest cap that fits.
    let capped = |cap: usize| natural.iter().zip(&least).map(move |(&n, &l)| n.min(cap.max(l)));
    let (mut low, mut high) = (1, budget.max(1));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if capped(middle).sum::<usize>() <= budget {
            low = middle
        } else {
            high = middle - 1
        }
    }
    let mut widths: Vec<usize> = capped(low).collect();
    let mut spare = budget.saturating_sub(widths.iter().sum());
    for (width, natural) in widths.iter_mut().zip(&natural) {
        if spare > 0 && *width < *natural {
            *width += 1;
            spare -= 1;
        }
    }
    widths
}
