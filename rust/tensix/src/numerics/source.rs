//! SrcA and SrcB: operands of the matrix unit, split into what its multipliers take at a time.

use super::kernel::Rows;
use super::round::{EXPONENT, TF32};
use super::tile::{TILE, Tile};
use super::{flush_denormal, to_tf32};

/// The bits that the first phases read of SrcA: sign, exponent, 4 mantissa bits; and of those, with the next 5, all.
const HIGH_A: u32 = 0xfff8_0000;
const ALL_A: u32 = 0xffff_c000;
/// The bits that the first phases read of SrcB: sign, exponent, 6 mantissa bits.
const HIGH_B: u32 = 0xfffe_0000;

/// A tile in SrcA: the right operand, `in1`.
///
/// Values become tf32 by [`to_tf32`], and denormals zero. Infinities and NaNs are multiplied as in IEEE 754, in phase 0;
/// the other phases take them for zero (the hardware takes them for numbers beyond its largest).
#[derive(Clone, Debug)]
pub struct SrcA(pub(super) Split);

/// A tile in SrcB: the left operand, `in0`. Values are taken as for [`SrcA`].
#[derive(Clone, Debug)]
pub struct SrcB(pub(super) Split);

/// High and low parts of a tile, each exact.
#[derive(Clone, Debug)]
pub(super) struct Split {
    /// What phase 0 reads.
    pub(super) high: Box<Rows>,
    /// What other phases read, where that is something else: without infinities and NaNs.
    finite: Option<Box<Rows>>,
    /// None where all are zero.
    pub(super) low: Option<Box<Rows>>,
}

impl SrcA {
    /// Loads a tile.
    pub fn new(tile: &Tile) -> Self {
        Self(Split::new::<HIGH_A, ALL_A>(tile))
    }
}

impl SrcB {
    /// Loads a tile.
    pub fn new(tile: &Tile) -> Self {
        Self(Split::new::<HIGH_B, TF32>(tile))
    }
}

impl Split {
    fn new<const HIGH: u32, const ALL: u32>(tile: &Tile) -> Self {
        let mut high = Box::new(Rows::ZERO);
        let mut low = Box::new(Rows::ZERO);
        // Bits of all low parts, and whether some value is an infinity or a NaN.
        let (mut lows, mut specials) = (0, 0);
        let rows = high.0.iter_mut().zip(&mut low.0).zip(tile.as_chunks::<TILE>().0);
        for ((high, low), row) in rows {
            for ((high, low), &value) in high.iter_mut().zip(low).zip(row) {
                let bits = to_tf32(flush_denormal(value)).to_bits();
                let special = bits & EXPONENT == EXPONENT;
                // NaNs are quiet by now, with a bit that all masks keep.
                *high = f32::from_bits(bits & HIGH);
                *low = if special { 0.0 } else { f32::from_bits(bits & ALL) - *high };
                lows |= low.to_bits();
                specials |= u32::from(special);
            }
        }
        let finite = (specials != 0).then(|| {
            let mut finite = high.clone();
            for value in finite.0.as_flattened_mut() {
                *value = if value.is_finite() { *value } else { 0.0 };
            }
            finite
        });
        Self { high, finite, low: (lows != 0).then_some(low) }
    }

    /// The high parts as phases other than 0 read them.
    pub(super) fn finite(&self) -> &Rows {
        self.finite.as_deref().unwrap_or(&self.high)
    }
}
