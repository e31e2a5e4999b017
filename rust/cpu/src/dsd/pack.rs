//! Panels of x, where they lie or copied: what the general kernel reads beside the blocks of W.

use std::ops::Range;

use prunus_core::{DType, Error, MatRef};

use super::convert::{Convert, Element, Rect};
use super::plan::{self, Panel};
use crate::memory::Workspace;
use crate::simd::Lanes;
use crate::threads::{Context, for_each};

/// Rows of x that one packing task copies.
const PACK_ROWS: usize = 256;
/// Rows copied to one panel after another where rows are contiguous: read from memory once, in order.
const PACK_STRIP: usize = 8;

/// A panel of x as the kernel reads it.
#[derive(Clone, Copy)]
pub(crate) struct View<E> {
    pub x: *const E,
    /// Elements from one word to the next.
    pub word: usize,
}

/// How W's blocks cut the rows of x.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    /// Block columns of W.
    pub grid: usize,
    /// Columns of a block, which are rows of x.
    pub block_cols: usize,
    /// Rows of W that use each row of x, on average.
    pub reuse: usize,
    /// Which block columns have a block: rows of x that no block needs are not touched.
    pub used: &'a [bool],
}

/// Panels that are ready to read.
pub(crate) struct Panels<E> {
    views: Vec<View<E>>,
    /// Where the copied ones are.
    _copies: Workspace,
}

/// What all tasks that copy share.
struct Packing<'a, L: Lanes> {
    x: &'a MatRef<'a>,
    convert: Convert<L::Elem>,
    block_cols: usize,
    panels: &'a [Panel],
    views: &'a [View<L::Elem>],
}

// SAFETY: the pointers lead to an x shared for reading and to panels of which tasks write disjoint rows.
unsafe impl<L: Lanes> Sync for Packing<'_, L> {}

impl<E> Panels<E> {
    /// Views of the panels, in their order.
    pub(crate) fn views(&self) -> &[View<E>] {
        &self.views
    }
}

/// Makes the panels `panels` of x ready: copies those that the kernel cannot read where they lie.
///
/// # Errors
/// [`Error::Memory`] or [`Error::Interrupted`].
pub(crate) fn panels<L>(
    x: &MatRef<'_>,
    convert: Convert<L::Elem>,
    cut: Cut<'_>,
    panels: &[Panel],
    context: &Context<'_>,
) -> Result<Panels<L::Elem>, Error>
where
    L: Lanes,
    L::Elem: Element,
{
    // Each block column starts at a word of its own, so that blocks of odd width work with pairs.
    let words = cut.grid * cut.block_cols.div_ceil(L::STEP);
    let vectors: usize = panels.iter().map(|panel| panel.vectors).sum();
    let word_bytes = L::LANES * L::STEP * size_of::<L::Elem>();
    let in_place = |panel: &Panel| {
        let size = size_of::<L::Elem>() as isize;
        L::STEP == 1
            && <L::Elem as Element>::NATIVE == Some(x.dtype)
            && x.col_stride == size
            && x.row_stride % size == 0
            && plan::reads_in_place(x.row_stride, cut.reuse)
            && panel.cols == panel.vectors * L::LANES
    };
    let to_pack: Vec<usize> = (0..panels.len()).filter(|&p| !in_place(&panels[p])).collect();
    let copies = match to_pack.is_empty() {
        false => Workspace::of(&[words, vectors, word_bytes])?,
        true => Workspace::take(0)?,
    };
    let mut views = Vec::with_capacity(panels.len());
    let mut offset = 0;
    for panel in panels {
        views.push(if in_place(panel) {
            View { x: x.at(0, panel.col).cast(), word: x.row_stride as usize / size_of::<L::Elem>() }
        } else {
            let x = copies.as_ptr().cast::<L::Elem>().wrapping_add(offset);
            View { x, word: panel.vectors * L::LANES * L::STEP }
        });
        offset += words * panel.vectors * L::LANES * L::STEP;
    }
    if !to_pack.is_empty() {
        let packing = Packing::<L> { x, convert, block_cols: cut.block_cols, panels, views: &views };
        packing.run(&to_pack, cut, context)?;
    }
    Ok(Panels { views, _copies: copies })
}

/// All of x in panels, made once for many products with operands of one kind, such as the parts of a matrix
/// that arrive one after the other.
#[derive(Debug)]
pub struct PackedX {
    shape: (usize, usize),
    /// Rows and columns of the operands' blocks, and the words they are multiplied in: type, lanes, rows of x.
    kind: Kind,
    panels: Vec<Panel>,
    /// Elements from the start of the copies to each panel.
    offsets: Vec<usize>,
    copies: Workspace,
}

/// What panels depend on beside x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    block: (usize, usize),
    elem: DType,
    lanes: usize,
    step: usize,
}

impl Kind {
    fn of<L>(block: (usize, usize)) -> Option<Self>
    where
        L: Lanes,
        L::Elem: Element,
    {
        Some(Self { block, elem: <L::Elem as Element>::NATIVE?, lanes: L::LANES, step: L::STEP })
    }
}

impl PackedX {
    /// Rows and columns of x.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Packs x for operands in blocks of `block` (rows, columns). `None` where products read it as it lies.
    ///
    /// # Errors
    /// [`Error::Memory`] or [`Error::Interrupted`].
    pub(crate) fn new<L>(
        x: &MatRef<'_>,
        convert: Convert<L::Elem>,
        block: (usize, usize),
        context: &Context<'_>,
    ) -> Result<Option<Self>, Error>
    where
        L: Lanes,
        L::Elem: Element,
    {
        let Some(kind) = Kind::of::<L>(block) else { return Ok(None) };
        let size = size_of::<L::Elem>() as isize;
        let lies_well = L::STEP == 1
            && x.dtype == kind.elem
            && x.col_stride == size
            && x.row_stride % size == 0
            && plan::reads_in_place(x.row_stride, usize::MAX);
        if lies_well {
            return Ok(None);
        }
        // The same panels as products that pack for themselves.
        let turn = plan::columns_per_turn(x.rows, size_of::<L::Elem>(), L::LANES);
        let mut panels = Vec::new();
        for first in (0..x.cols).step_by(turn) {
            let part = plan::panels(turn.min(x.cols - first), L::LANES, L::REGISTERS, block.0);
            panels.extend(part.into_iter().map(|panel| Panel { col: panel.col + first, ..panel }));
        }
        let grid = x.rows.div_ceil(block.1);
        let words = grid * block.1.div_ceil(L::STEP);
        let vectors: usize = panels.iter().map(|panel| panel.vectors).sum();
        let copies = Workspace::of(&[words, vectors, L::LANES * L::STEP, size_of::<L::Elem>()])?;
        let width = L::LANES * L::STEP;
        let offsets: Vec<usize> = panels
            .iter()
            .scan(0, |next, panel| {
                let offset = *next;
                *next += words * panel.vectors * width;
                Some(offset)
            })
            .collect();
        let packed = Self { shape: (x.rows, x.cols), kind, panels, offsets, copies };
        let views = packed.views::<L>();
        let packing = Packing::<L> { x, convert, block_cols: block.1, panels: &packed.panels, views: &views };
        let every: Vec<usize> = (0..packed.panels.len()).collect();
        let used = vec![true; grid];
        let cut = Cut { grid, block_cols: block.1, reuse: usize::MAX, used: &used };
        packing.run(&every, cut, context)?;
        Ok(Some(packed))
    }

    /// Whether the kernel of `L` reads these panels for operands in blocks of `block`.
    pub(crate) fn fits<L>(&self, block: (usize, usize)) -> bool
    where
        L: Lanes,
        L::Elem: Element,
    {
        Kind::of::<L>(block) == Some(self.kind)
    }

    /// The panels, in the order of their columns.
    pub(crate) fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// Views of the panels.
    pub(crate) fn views<L: Lanes>(&self) -> Vec<View<L::Elem>> {
        let first = self.copies.as_ptr().cast::<L::Elem>();
        let view = |(panel, &offset): (&Panel, &usize)| View {
            x: first.wrapping_add(offset).cast_const(),
            word: panel.vectors * L::LANES * L::STEP,
        };
        self.panels.iter().zip(&self.offsets).map(view).collect()
    }
}

impl<L> Packing<'_, L>
where
    L: Lanes,
    L::Elem: Element,
{
    /// Copies all rows of x that a block needs into some panels.
    fn run(&self, panels: &[usize], cut: Cut<'_>, context: &Context<'_>) -> Result<(), Error> {
        let step = (PACK_ROWS / cut.block_cols).max(1);
        for_each(context, cut.grid.div_ceil(step), |task| {
            let columns = task * step..cut.grid.min((task + 1) * step);
            let mut first = columns.start;
            while first < columns.end {
                let run = (first..columns.end).take_while(|&column| cut.used[column]).count();
                self.pack(panels, first..first + run)?;
                first += run + 1;
            }
            Ok(())
        })
    }

    /// Copies the rows of x that block columns `columns` multiply into panels: converted, in the
    /// kernel's word order, padded with zeros.
    fn pack(&self, panels: &[usize], columns: Range<usize>) -> Result<(), Error> {
        let (x, block_cols) = (self.x, self.block_cols);
        let k = x.rows;
        let block_words = block_cols.div_ceil(L::STEP);
        let by_rows = x.col_stride.abs() < x.row_stride.abs();
        let strip = if by_rows { PACK_STRIP } else { usize::MAX };
        if !block_cols.is_multiple_of(L::STEP) {
            for column in columns {
                let rows = column * block_cols..k.min((column + 1) * block_cols);
                for &p in panels {
                    self.pack_rows(p, rows.clone(), column * block_words)?;
                }
            }
            return Ok(());
        }
        let (mut first, end) = (columns.start * block_cols, k.min(columns.end * block_cols));
        while first < end {
            let rows = first..end.min(first.saturating_add(strip));
            first = rows.end;
            for &p in panels {
                self.pack_rows(p, rows.clone(), rows.start / L::STEP)?;
            }
        }
        Ok(())
    }

    /// Copies rows `rows` of x into words `word…` of a panel.
    fn pack_rows(&self, panel: usize, rows: Range<usize>, word: usize) -> Result<(), Error> {
        let (view, panel) = (self.views[panel], self.panels[panel]);
        let x = self.x;
        let width = panel.vectors * L::LANES;
        let rect = |first: usize, count: usize| Rect {
            src: x.at(first, panel.col),
            rows: count,
            cols: panel.cols,
            row_stride: x.row_stride,
            col_stride: x.col_stride,
        };
        let zero = L::Elem::default();
        let dst = view.x.cast_mut().wrapping_add(word * width * L::STEP);
        if L::STEP == 1 {
            // SAFETY: the panel holds `width` elements for each row of x; tasks have disjoint rows.
            unsafe {
                (self.convert)(&rect(rows.start, rows.len()), dst, width);
                for r in 0..rows.len() {
                    for c in panel.cols..width {
                        dst.add(r * width + c).write(zero);
                    }
                }
            }
            return Ok(());
        }
        // Pairs: convert a few rows, then interleave them.
        const STRIP: usize = 16;
        let strip = Workspace::of(&[STRIP, width, size_of::<L::Elem>()])?;
        let strip = strip.as_ptr().cast::<L::Elem>();
        for first in (rows.start..rows.end).step_by(STRIP) {
            let count = STRIP.min(rows.end - first);
            // SAFETY: the strip holds STRIP rows, and the panel the words of every row of x.
            unsafe {
                (self.convert)(&rect(first, count), strip, width);
                let dst = dst.add((first - rows.start) * width);
                for row in 0..count.next_multiple_of(L::STEP) {
                    let to = dst.add(row / L::STEP * width * L::STEP + row % L::STEP);
                    let from = strip.add(row * width);
                    for c in 0..width {
                        let inside = row < count && c < panel.cols;
                        to.add(c * L::STEP).write(if inside { *from.add(c) } else { zero });
                    }
                }
            }
        }
        Ok(())
    }
}
