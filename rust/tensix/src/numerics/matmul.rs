//! Products of tiles in the matrix unit.

use std::borrow::Borrow;

use super::kernel::{self, Bfloat16Sum, Float32Sum, Pair, Sum};
use super::tile::Tile;
use super::{Accumulate, Error, Fidelity, SrcA, SrcB};

/// Adds `in0 @ in1` to `dst`, as the matrix unit does.
///
/// The product is made in steps: for each phase of `fidelity`, for each half of the summed dimension. A step sums 16
/// products, in float32 and in ascending order, each exact and added with one rounding (to nearest, ties to even), and
/// adds that sum to `dst` with one more. Under [`Accumulate::Bfloat16`] the result is then rounded to bfloat16, so `dst`
/// should hold such values from the start. A denormal result becomes zero, and a NaN that of positive sign, quiet and
/// without payload.
pub fn matmul_tile(in0: &Tile, in1: &Tile, dst: &mut Tile, fidelity: Fidelity, accumulate: Accumulate) {
    let (in0, in1) = (SrcB::new(in0), SrcA::new(in1));
    let (pairs, len) = pairs(&in1, &in0, fidelity);
    match accumulate {
        Accumulate::Float32 => kernel::add_product::<Float32Sum>(&pairs[..len], dst),
        Accumulate::Bfloat16 => kernel::add_product::<Bfloat16Sum>(&pairs[..len], dst),
    }
}

/// Adds the product of a block of `height × k` tiles and one of `k × width` tiles to one of `height × width`, all row of
/// tiles by row of tiles: to each tile of `dst` what [`matmul_tile`] adds, `k` times in ascending order.
pub fn matmul_block<A: Borrow<SrcA>, B: Borrow<SrcB>>(
    in0: &[B],
    in1: &[A],
    dst: &mut [Tile],
    height: usize,
    width: usize,
    fidelity: Fidelity,
    accumulate: Accumulate,
) -> Result<(), Error> {
    match accumulate {
        Accumulate::Float32 => add_block::<Float32Sum, _, _, _>(in0, in1, dst, height, width, |a, b| {
            pairs(a.borrow(), b.borrow(), fidelity)
        }),
        Accumulate::Bfloat16 => add_block::<Bfloat16Sum, _, _, _>(in0, in1, dst, height, width, |a, b| {
            pairs(a.borrow(), b.borrow(), fidelity)
        }),
    }
}

/// The operands of each phase, and how many phases change something: where low parts are all zero, so are the sums, and
/// adding zero to what the phase before has written leaves it as it is.
fn pairs<'a>(SrcA(a): &'a SrcA, SrcB(b): &'a SrcB, fidelity: Fidelity) -> ([Pair<'a>; 4], usize) {
    let first: Pair<'_> = (&a.high, &b.high);
    let phases = [
        Some(first),
        a.low.as_deref().map(|low| (low, b.finite())),
        b.low.as_deref().map(|low| (a.finite(), low)),
        a.low.as_deref().zip(b.low.as_deref()),
    ];
    let mut pairs = [first; 4];
    let mut len = 0;
    for pair in phases.into_iter().take(fidelity.phases()).flatten() {
        pairs[len] = pair;
        len += 1;
    }
    (pairs, len)
}

/// The loops over the tiles of blocks; `pairs` gives the operands of each phase.
pub(super) fn add_block<'a, S: Sum, A, B, P>(
    in0: &'a [B],
    in1: &'a [A],
    dst: &mut [Tile<S::Value>],
    height: usize,
    width: usize,
    pairs: P,
) -> Result<(), Error>
where
    P: Fn(&'a A, &'a B) -> ([Pair<'a>; 4], usize),
{
    let depth = in0.len().checked_div(height).unwrap_or(0);
    let is = |len: usize, rows: usize, cols| rows.checked_mul(cols) == Some(len);
    // Without rows there is no depth that in1 could be held against.
    let operands = is(in0.len(), height, depth) && (height == 0 || is(in1.len(), depth, width));
    if !operands || !is(dst.len(), height, width) {
        return Err(Error::Blocks { height, width, in0: in0.len(), in1: in1.len(), dst: dst.len() });
    }
    // Blocks of in0 that stay in the second-level cache, and tiles of in1 that stay in the first. The order of the
    // additions to one tile of `dst` is the same for every split.
    for (first, last) in parts(depth) {
        for (top, bottom) in parts(height) {
            for j in 0..width {
                for k in first..last {
                    for i in top..bottom {
                        let (pairs, len) = pairs(&in1[k * width + j], &in0[i * depth + k]);
                        kernel::add_product::<S>(&pairs[..len], &mut dst[i * width + j]);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Cuts `0..len` into parts of at most 8 tiles.
fn parts(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(8).map(move |first| (first, len.min(first + 8)))
}
