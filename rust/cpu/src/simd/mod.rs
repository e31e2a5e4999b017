//! Vector vocabulary: what a kernel may ask of an instruction set.
//!
//! A kernel is written once, generic over [`Lanes`], and compiled for each instruction set by the
//! table of entry points at the end of that set's file. [`scalar`] is the plain-Rust twin.

pub(crate) mod floats;
pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

use crate::dsd::thin::ThinFn;
use crate::dsd::tile::Tile;

/// One vector type with multiply-accumulate, as one instruction set has it.
///
/// Operands are read in words of [`Lanes::STEP`] elements along the summed dimension: 1 where the
/// instruction multiplies lane by lane, 2 where it sums products of pairs (int16, bfloat16).
///
/// # Safety
/// Methods may only be called where the instruction set is present; pointers are to as many
/// elements as the method reads or writes, with no alignment beyond the element's.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// Element of the operands as the kernel reads them.
    type Elem: Copy + Default + Send + Sync + 'static;
    /// Element of the sums.
    type Acc: Copy + Default + Send + Sync + 'static;
    /// A vector of operand words.
    type X: Copy;
    /// A vector of sums.
    type V: Copy;
    /// Sums in a vector.
    const LANES: usize;
    /// Elements in a word.
    const STEP: usize;
    /// Vector registers of the instruction set.
    const REGISTERS: usize;

    unsafe fn zero() -> Self::V;
    /// Reads `LANES * STEP` elements.
    unsafe fn load_x(from: *const Self::Elem) -> Self::X;
    /// Reads one word of `STEP` elements into every lane.
    unsafe fn splat(from: *const Self::Elem) -> Self::X;
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V;
    unsafe fn load(from: *const Self::Acc) -> Self::V;
    unsafe fn store(to: *mut Self::Acc, v: Self::V);
    /// Asks for a cache line that will be read soon.
    unsafe fn prefetch(_at: *const Self::Elem) {}
    /// Entry point of the tile kernel with at most `rows × vectors` accumulators, and the rows and
    /// vectors that it really has.
    /// `grouped` asks for the form for whole groups of packed operands, whose rows' words lie together;
    /// one that takes any strides comes back where there is none.
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize);
    /// Entry point of the kernel for `cols` columns (1 to 4), over blocks stored by rows or by columns.
    fn thin(cols: usize, by_columns: bool) -> ThinFn<Self>;
}

/// A compiled tile kernel.
pub(crate) type TileFn<L> = unsafe fn(&Tile<L>);

/// Defines the function behind [`Lanes::tile`] for one vector type: the tile shapes that fit its
/// register file (`vectors: [rows, …]`, rows descending), each compiled with the given features.
macro_rules! tile_table {
    ($name:ident, $lane:ty, [$($feature:meta)?], { $( $vectors:literal : [$($rows:literal),+] ),+ $(,)? }) => {
        fn $name(rows: usize, vectors: usize, grouped: bool) -> (crate::simd::TileFn<$lane>, usize) {
            $(#[$feature])?
            unsafe fn run<const R: usize, const V: usize, const G: bool>(
                args: &crate::dsd::tile::Tile<$lane>,
            ) {
                // SAFETY: the caller vouches for the pointers, and that the features are present.
                unsafe { crate::dsd::tile::run::<$lane, R, V, G>(args) }
            }
            $( $( if vectors == $vectors && rows >= $rows {
                // Packing makes groups of one size only: other heights need no kernel of their own.
                const GROUPED: bool = $rows == crate::level::group_of(<$lane as Lanes>::REGISTERS);
                return match grouped {
                    true if GROUPED => (run::<$rows, $vectors, GROUPED>, $rows),
                    _ => (run::<$rows, $vectors, false>, $rows),
                };
            } )+ )+
            unreachable!("no tile of {rows} rows by {vectors} vectors")
        }
    };
}
pub(crate) use tile_table;

/// Defines the function behind [`Lanes::thin`] for one vector type.
macro_rules! thin_table {
    ($name:ident, $lane:ty, [$($feature:meta)?]) => {
        fn $name(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<$lane> {
            $(#[$feature])?
            unsafe fn dot<const N: usize>(piece: &crate::dsd::thin::Piece<$lane>) {
                // SAFETY: the caller vouches for the pointers, and that the features are present.
                unsafe { crate::dsd::thin::dot::<$lane, N>(piece) }
            }
            $(#[$feature])?
            unsafe fn axpy<const N: usize>(piece: &crate::dsd::thin::Piece<$lane>) {
                // SAFETY: as above.
                unsafe { crate::dsd::thin::axpy::<$lane, N>(piece) }
            }
            match (cols, by_columns) {
                (1, false) => dot::<1>,
                (2, false) => dot::<2>,
                (3, false) => dot::<3>,
                (_, false) => dot::<4>,
                (1, true) => axpy::<1>,
                (2, true) => axpy::<2>,
                (3, true) => axpy::<3>,
                (_, true) => axpy::<4>,
            }
        }
    };
}
pub(crate) use thin_table;
