//! Plain Rust: runs everywhere, and is the twin that other levels are tested against.

use half::{bf16, f16};

use super::{Lanes, TileFn, thin_table, tile_table};
use crate::rows::kernel::{reads_values, row_kernels, totals_by_halves};

const N: usize = 4;

/// Four lanes of plain arithmetic.
#[derive(Clone, Copy)]
pub(crate) struct Plain<E>(std::marker::PhantomData<E>);

macro_rules! plain_float {
    ($t:ty, $table:ident, $thin:ident) => {
        impl Lanes for Plain<$t> {
            type Elem = $t;
            type Acc = $t;
            type X = [$t; N];
            type V = [$t; N];
            const LANES: usize = N;
            const STEP: usize = 1;
            const REGISTERS: usize = 16;

            #[inline(always)]
            unsafe fn zero() -> Self::V {
                [0.0; N]
            }
            #[inline(always)]
            unsafe fn load_x(from: *const $t) -> Self::X {
                // SAFETY: the caller provides N readable elements.
                unsafe { from.cast::<[$t; N]>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn splat(from: *const $t) -> Self::X {
                // SAFETY: the caller provides one readable element.
                [unsafe { from.read_unaligned() }; N]
            }
            #[inline(always)]
            unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
                std::array::from_fn(|i| acc[i] + w[i] * x[i])
            }
            #[inline(always)]
            unsafe fn load(from: *const $t) -> Self::V {
                // SAFETY: the caller provides N readable elements.
                unsafe { from.cast::<[$t; N]>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(to: *mut $t, v: Self::V) {
                // SAFETY: the caller provides N writeable elements.
                unsafe { to.cast::<[$t; N]>().write_unaligned(v) }
            }
            fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
                $table(rows, vectors, grouped)
            }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        $thin(cols, by_columns)
    }
        }
        thin_table!($thin, Plain<$t>, []);
        tile_table!($table, Plain<$t>, [], {
            3: [4, 2, 1], 2: [4, 2, 1], 1: [8, 4, 2, 1], 6: [2, 1],
        });
    };
}

plain_float!(f32, tile_f32, thin_f32);
plain_float!(f64, tile_f64, thin_f64);

impl Lanes for Plain<i16> {
    type Elem = i16;
    type Acc = i32;
    type X = [[i16; 2]; N];
    type V = [i32; N];
    const LANES: usize = N;
    const STEP: usize = 2;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0; N]
    }
    #[inline(always)]
    unsafe fn load_x(from: *const i16) -> Self::X {
        // SAFETY: the caller provides 2 N readable elements.
        unsafe { from.cast::<[[i16; 2]; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i16) -> Self::X {
        // SAFETY: the caller provides two readable elements.
        [unsafe { from.cast::<[i16; 2]>().read_unaligned() }; N]
    }
    #[inline(always)]
    unsafe fn mul_add(w: Self::X, x: Self::X, acc: Self::V) -> Self::V {
        std::array::from_fn(|i| {
            let pair = |j: usize| i32::from(w[i][j]) * i32::from(x[i][j]);
            acc[i].wrapping_add(pair(0).wrapping_add(pair(1)))
        })
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self::V {
        // SAFETY: the caller provides N readable elements.
        unsafe { from.cast::<[i32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, v: Self::V) {
        // SAFETY: the caller provides N writeable elements.
        unsafe { to.cast::<[i32; N]>().write_unaligned(v) }
    }
    fn tile(rows: usize, vectors: usize, grouped: bool) -> (TileFn<Self>, usize) {
        tile_i16(rows, vectors, grouped)
    }
    fn thin(cols: usize, by_columns: bool) -> crate::dsd::thin::ThinFn<Self> {
        thin_i16(cols, by_columns)
    }
}
thin_table!(thin_i16, Plain<i16>, []);
tile_table!(tile_i16, Plain<i16>, [], {
    3: [4, 2, 1], 2: [4, 2, 1], 1: [8, 4, 2, 1], 6: [2, 1],
});

totals_by_halves!(Plain<f32>);
totals_by_halves!(Plain<f64>);
reads_values!(Plain<f32>, f32, [f32, bf16, f16]);
reads_values!(Plain<f64>, f64, [f64, f32, bf16, f16]);
row_kernels!(Plain<f32>, [], { F32 => f32, Bf16 => bf16, F16 => f16 });
row_kernels!(Plain<f64>, [], { F64 => f64, F32 => f32, Bf16 => bf16, F16 => f16 });
