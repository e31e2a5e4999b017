//! Block-sparse products on a grid of cores: as the dense ones, but dead tiles are neither read nor sent nor multiplied, and
//! the other thread writes results.
//!
//! The pattern is known before the program runs, and so are the lists of the kernels ([`super::live`]).

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::kernel;
use crate::numerics::Format;
use crate::program::{Launch, Program, Role};
use crate::simulator::Simulator;

use super::epilogue::Epilogue;
use super::live::{Layout, Live, Part, Parts, Plan, compute, in0_and_out, in1};
use super::matmul::Blocking;

/// Which tiles of `in0` exist: for each row of tiles the ascending columns of its live ones, whose pages follow each
/// other in DRAM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TilePattern {
    /// Columns of live tiles, row by row.
    pub columns: Vec<u32>,
    /// Where each row begins, and the end.
    pub starts: Vec<u32>,
}

impl TilePattern {
    /// Rows of tiles.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (u32, u32)> + '_ {
        let (from, end) = (self.starts[row] as usize, self.starts[row + 1] as usize);
        self.columns[from..end].iter().enumerate().map(move |(i, column)| (*column, (from + i) as u32))
    }

    /// # Errors
    /// If columns are not ascending, or outside of `inner` columns.
    pub fn check(&self, inner: u32) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Misused(format!("pattern of tiles: {what}")));
        let ends = self.starts.first() == Some(&0)
            && self.starts.last().copied() == u32::try_from(self.columns.len()).ok()
            && self.starts.windows(2).all(|two| two[0] <= two[1]);
        if !ends {
            return wrong(format!("starts must ascend from 0 to {}", self.columns.len()));
        }
        for row in 0..self.rows() {
            let mut before = None;
            for (column, _) in self.row(row) {
                if column >= inner || before.is_some_and(|before| before >= column) {
                    return wrong(format!("columns of row {row} must ascend and be below {inner}"));
                }
                before = Some(column);
            }
        }
        Ok(())
    }

    /// An order of rows in which every `each` of them have about the same number of live tiles.
    #[must_use]
    pub fn balanced(&self, groups: usize, each: usize) -> Vec<Option<u32>> {
        let mut rows: Vec<u32> = (0..self.rows() as u32).collect();
        let live = |row: u32| self.starts[row as usize + 1] - self.starts[row as usize];
        rows.sort_by_key(|row| std::cmp::Reverse(live(*row)));
        let mut parts: Vec<(u64, Vec<u32>)> = vec![(0, Vec::new()); groups];
        for row in rows {
            let open = parts.iter_mut().filter(|(_, part)| part.len() < each);
            if let Some(part) = open.min_by_key(|(load, part)| (*load, part.len())) {
                part.0 += u64::from(live(row));
                part.1.push(row);
            }
        }
        let mut order = Vec::with_capacity(groups * each);
        for (_, mut part) in parts {
            part.sort_unstable();
            order.extend(part.iter().copied().map(Some));
            order.resize(order.len().next_multiple_of(each.max(1)), None);
        }
        order.resize(groups * each, None);
        order
    }
}

/// The program of `in0 @ in1`, where `in0` has the tiles of a pattern in its buffer and `in1` and the output are dense.
/// Formats are those of both operands and of the output. With `balance` rows of tiles are dealt to rows of cores so that each has about as many live ones.
///
/// # Errors
/// If the blocking does not fit the chip or the pattern.
#[allow(clippy::too_many_arguments, reason = "what a product is")]
pub fn program(
    simulator: &Simulator,
    blocking: &Blocking,
    pattern: &TilePattern,
    formats: (Format, Format, Format),
    buffers: (u16, u16, u16),
    wide: bool,
    epilogue: Epilogue,
    balance: bool,
) -> Result<Program, Error> {
    blocking.check(simulator.spec(), wide)?;
    pattern.check(blocking.k)?;
    let (groups, each) = (usize::from(blocking.grid.1), blocking.per_core.0 as usize);
    if pattern.rows() > groups * each {
        let (rows, room) = (pattern.rows(), groups * each);
        return Err(Error::Misused(format!("{rows} rows of tiles, cores have {room}")));
    }
    let order =
        if balance { pattern.balanced(groups, each) } else { as_they_lie(pattern.rows(), groups * each) };
    let lists = lists(blocking, pattern, &order);
    let layout = Layout { blocking, formats, buffers, wide, order, epilogue, rank: 0.0 };
    let (mut program, shared) = layout.program(simulator)?;
    for plan in Plan::all(simulator, &shared) {
        let mut launch = |role, noc, name: &str, body| {
            program.launches.push(Launch { core: plan.core, role, noc, name: name.into(), kernel: body });
        };
        let swap = u8::from(plan.swap);
        let parts = &lists[usize::from(plan.at.1)];
        let with = || (plan.clone(), Rc::clone(parts));
        let (first, second, third) = (with(), with(), with());
        launch(Role::DataMovement1, 1 - swap, "in0", kernel(move |api| in0_and_out(api, first.0, first.1)));
        launch(Role::DataMovement0, swap, "in1", kernel(move |api| in1(api, second.0, second.1)));
        launch(Role::Compute, 0, "compute", kernel(move |api| compute(api, third.0, third.1)));
    }
    Ok(program)
}

/// Rows in their own order, up to as many as there is room for.
pub(super) fn as_they_lie(rows: usize, room: usize) -> Vec<Option<u32>> {
    (0..room).map(|row| (row < rows).then_some(row as u32)).collect()
}

/// For each row of cores what is live in each output block along M and each block along K; blocks of which nothing is
/// live are left out.
fn lists(blocking: &Blocking, pattern: &TilePattern, order: &[Option<u32>]) -> Vec<Parts> {
    let kw = blocking.in0_block_w;
    let (rows, per_core, bh) = (usize::from(blocking.grid.1), blocking.per_core.0, blocking.out_block.0);
    let blocks = (blocking.k / kw) as usize;
    let place = |column: u32| (column / kw) as usize;
    let mut needed = vec![vec![std::collections::BTreeSet::new(); blocks]; (per_core / bh) as usize];
    let mut live = vec![vec![vec![Vec::new(); blocks]; (per_core / bh) as usize]; rows];
    for (at, row) in order.iter().enumerate() {
        let (y, within) = (at / per_core as usize, at as u32 % per_core);
        let Some(row) = row else { continue };
        let i = (within / bh) as usize;
        for (column, page) in pattern.row(*row as usize) {
            live[y][i][place(column)].push(Live { row: within % bh, column: column % kw, page });
            needed[i][place(column)].insert(column % kw);
        }
    }
    let part = |(block, (live, needed)): (usize, (Vec<Live>, &std::collections::BTreeSet<u32>))| {
        let needed: Vec<u32> = needed.iter().copied().collect();
        (!needed.is_empty()).then_some(Part { block: block as u32, needed, live })
    };
    let of_row = |live: Vec<Vec<Vec<Live>>>| {
        let blocks = live.into_iter().zip(&needed);
        blocks.map(|(live, needed)| live.into_iter().zip(needed).enumerate().filter_map(part).collect())
    };
    live.into_iter().map(|live| Rc::new(of_row(live).collect())).collect()
}
