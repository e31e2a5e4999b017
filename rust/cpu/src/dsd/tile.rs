//! The tile kernel: a few rows by a few vectors of the result, summed over a burst of blocks; tiles of one
//! height, one below the other, are one call.

use crate::simd::Lanes;

/// One block as the tile kernel sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<E> {
    /// First element of the block, in the kernel's element type.
    pub w: *const E,
    /// Word of x (a row of the panel) that the block's first column multiplies.
    pub k: usize,
    /// Words in the summed dimension.
    pub words: usize,
}

/// Arguments of tiles one below the other: `out = init + Σ_blocks W[rows, :] · x_panel`.
#[derive(Debug)]
pub(crate) struct Tile<L: Lanes> {
    /// Blocks to sum over, in order.
    pub blocks: *const Block<L::Elem>,
    /// How many.
    pub count: usize,
    /// Tiles; each begins where the rows of the one before end, in `init` and in `out`.
    pub tiles: usize,
    /// Elements from a block's start to the first tile's first row, and from one tile's to the next's.
    pub w_offset: usize,
    pub w_tile: usize,
    /// Elements from one row of a block to the next.
    pub w_row: usize,
    /// Elements from one word of a block to the next.
    pub w_word: usize,
    /// Word 0 of the panel of x.
    pub x: *const L::Elem,
    /// Elements from one word of the panel to the next.
    pub x_word: usize,
    /// Sums so far, or null for zeros.
    pub init: *const L::Acc,
    /// Elements from one row of `init` to the next.
    pub init_row: usize,
    /// Where the sums go.
    pub out: *mut L::Acc,
    /// Elements from one row of `out` to the next.
    pub out_row: usize,
    /// Blocks that come after this burst, to be asked for now; may be none.
    pub next: *const Block<L::Elem>,
    /// How many.
    pub next_count: usize,
    /// The first tile's share of asking for the next burst's x: first cache line, of so many per block.
    pub next_line: usize,
    /// Lines from one tile's share to the next's, and the line from which on nothing is asked for.
    pub next_step: usize,
    pub next_end: usize,
    /// Ask for the next burst's W too.
    pub fetch_w: bool,
}

/// Words of a block for which one cache line of the next burst is asked for.
const WORDS_A_LINE: usize = 4;

/// Elements of `E` in a cache line.
const fn line<E>() -> usize {
    64 / size_of::<E>()
}

/// Sums tiles of `R` rows by `V` vectors.
///
/// # Safety
/// Every pointer in `args` covers what the tiles read or write: `R` rows and `V` vectors of each.
#[inline(always)]
pub(crate) unsafe fn run<L: Lanes, const R: usize, const V: usize, const GROUPED: bool>(args: &Tile<L>) {
    for index in 0..args.tiles {
        // SAFETY: the caller's promise.
        unsafe { one::<L, R, V, GROUPED>(args, index) };
    }
}

/// Sums one of the tiles.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn one<L: Lanes, const R: usize, const V: usize, const GROUPED: bool>(args: &Tile<L>, index: usize) {
    // SAFETY: the caller vouches for the pointers and for the instruction set.
    unsafe {
        let w_offset = args.w_offset + index * args.w_tile;
        let line_now = args.next_line + index * args.next_step;
        let asks = args.next_count > 0 && line_now < args.next_end;
        let mut acc = [[L::zero(); V]; R];
        if !args.init.is_null() {
            let init = args.init.add(index * R * args.init_row);
            for (r, row) in acc.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = L::load(init.add(r * args.init_row + v * L::LANES));
                }
            }
        }
        // Packed operands have their rows grouped by the tile: constant strides, one stream.
        let (w_row, w_word) = if GROUPED { (L::STEP, R * L::STEP) } else { (args.w_row, args.w_word) };
        let x_word = args.x_word;
        for b in 0..args.count {
            let block = &*args.blocks.add(b);
            let mut w = block.w.add(w_offset);
            let mut x = args.x.add(block.k * x_word);
            // A cache line of the next burst's x (and W) every few steps: enough to start the
            // hardware's own prefetch, and cheap beside the multiply-adds. Where there is no next
            // burst the hint falls on this block again.
            let next = if asks { &*args.next.add(b.min(args.next_count - 1)) } else { block };
            let mut next_x = args.x.add(next.k * x_word).wrapping_add(line_now * line::<L::Elem>());
            let mut next_w = next.w.wrapping_add(w_offset);
            // Word by word: steps laid out one after another are mixed by the compiler, and sums of a tile that
            // takes all registers then go through memory.
            let mut left = block.words;
            while left > 0 {
                if left.is_multiple_of(WORDS_A_LINE) {
                    L::prefetch(next_x);
                    next_x = next_x.wrapping_add(line::<L::Elem>());
                    if args.fetch_w {
                        L::prefetch(next_w);
                        next_w = next_w.wrapping_add(WORDS_A_LINE * R * L::STEP);
                    }
                }
                left -= 1;
                step::<L, R, V>(&mut acc, w, w_row, x);
                w = w.add(w_word);
                x = x.add(x_word);
            }
        }
        let out = args.out.add(index * R * args.out_row);
        for (r, row) in acc.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                L::store(out.add(r * args.out_row + v * L::LANES), *sum);
            }
        }
    }
}

/// One word of the summed dimension: `R` broadcasts against `V` vectors.
#[inline(always)]
unsafe fn step<L: Lanes, const R: usize, const V: usize>(
    acc: &mut [[L::V; V]; R],
    w: *const L::Elem,
    w_row: usize,
    x: *const L::Elem,
) {
    // SAFETY: as in `run`.
    unsafe {
        // The shorter side stays in registers, the other passes by. Arrays begin with all of their first value,
        // although it is read again: a loop that skips it is not unrolled and takes them through memory.
        if const { R < V } {
            let mut wv = [L::splat(w); R];
            for (r, value) in wv.iter_mut().enumerate() {
                *value = L::splat(w.add(r * w_row));
            }
            for v in 0..V {
                let vector = L::load_x(x.add(v * L::LANES * L::STEP));
                for (r, row) in acc.iter_mut().enumerate() {
                    row[v] = L::mul_add(wv[r], vector, row[v]);
                }
            }
            return;
        }
        let mut xv = [L::load_x(x); V];
        for (v, vector) in xv.iter_mut().enumerate() {
            *vector = L::load_x(x.add(v * L::LANES * L::STEP));
        }
        for (r, row) in acc.iter_mut().enumerate() {
            let wv = L::splat(w.add(r * w_row));
            for (v, sum) in row.iter_mut().enumerate() {
                *sum = L::mul_add(wv, xv[v], *sum);
            }
        }
    }
}
