//! The last step of a tile: bias, activation, rounding to the result's type, any strides.

use half::{bf16, f16};
use prunus_core::{Activation, DType, Epilogue, VecRef};

use super::convert::{Cast, Rect};
#[cfg(target_arch = "x86_64")]
use super::stages;
use crate::level::{self, Level};

/// Sums of finished rows, and where they go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished<A> {
    pub sums: *const A,
    /// Elements from one row of sums to the next.
    pub sums_row: usize,
    pub rows: usize,
    pub cols: usize,
    /// First row of the result: selects the bias.
    pub first_row: usize,
    pub out: *mut u8,
    /// Bytes from one row of the result to the next, and from one column to the next.
    pub row_stride: isize,
    pub col_stride: isize,
}

/// Writes finished rows.
pub(crate) type Store<A> = unsafe fn(&Finished<A>, &Epilogue<'_>);

/// Rounding of one value to its storage type: to nearest, ties to even.
pub(crate) trait Round<O>: Copy {
    fn round(self) -> O;
}
macro_rules! rounds {
    ($($from:ty => $to:ty : |$v:ident| $e:expr),+ $(,)?) => {
        $(impl Round<$to> for $from {
            #[inline(always)]
            fn round(self) -> $to { let $v = self; $e }
        })+
    };
}
rounds! {
    f32 => f32: |v| v,
    f64 => f64: |v| v,
    i32 => i32: |v| v,
    f32 => f64: |v| f64::from(v),
    f64 => f32: |v| v as f32,
    f32 => f16: |v| f16::from_f32(v),
    f64 => f16: |v| f16::from_f64(v),
    f64 => bf16: |v| bf16::from_f64(v),
    f32 => bf16: |v| bf16_from(v),
}

/// Branch-free so that loops over it become vectors; NaN stays a quiet NaN.
#[inline(always)]
fn bf16_from(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    bf16::from_bits(if v.is_nan() { nan as u16 } else { rounded as u16 })
}

/// Sums that an epilogue can work on.
pub(crate) trait Sum: Copy + Default + Send + Sync + 'static {
    /// Type of results stored without conversion.
    const NATIVE: DType;
    fn store(to: DType) -> Option<Store<Self>>;
    fn add(self, bias: Self) -> Self;
    fn activate(self, activation: Activation) -> Self;
    fn bias(bias: &VecRef<'_>, row: usize) -> Self;
}

macro_rules! float_sum {
    ($a:ty, $native:ident, $erf:path, { $($dtype:ident => $o:ty),+ }) => {
        impl Sum for $a {
            const NATIVE: DType = DType::$native;
            fn store(to: DType) -> Option<Store<Self>> {
                match to {
                    $(DType::$dtype => Some(store_as::<$a, $o>),)+
                    _ => None,
                }
            }
            #[inline(always)]
            fn add(self, bias: Self) -> Self { self + bias }
            #[inline(always)]
            fn activate(self, activation: Activation) -> Self {
                match activation {
                    Activation::Identity => self,
                    Activation::Relu => if self < 0.0 { 0.0 } else { self },
                    Activation::Gelu => {
                        0.5 * self * (1.0 + $erf(self * std::f64::consts::FRAC_1_SQRT_2 as $a))
                    }
                    Activation::Silu => self / (1.0 + (-self).exp()),
                }
            }
            fn bias(bias: &VecRef<'_>, row: usize) -> Self {
                let at = bias.at(row);
                // SAFETY: the operation checked the bias's length and type.
                unsafe {
                    match bias.dtype {
                        DType::F64 => at.cast::<f64>().read_unaligned() as $a,
                        DType::Bf16 => at.cast::<bf16>().read_unaligned().cast(),
                        DType::F16 => at.cast::<f16>().read_unaligned().cast(),
                        DType::I8 => at.cast::<i8>().read_unaligned().cast(),
                        DType::I32 => at.cast::<i32>().read_unaligned() as $a,
                        DType::F32 => at.cast::<f32>().read_unaligned().cast(),
                    }
                }
            }
        }
    };
}
float_sum!(f32, F32, libm::erff, { F32 => f32, F64 => f64, F16 => f16, Bf16 => bf16 });
float_sum!(f64, F64, libm::erf, { F64 => f64, F32 => f32, F16 => f16, Bf16 => bf16 });

impl Sum for i32 {
    const NATIVE: DType = DType::I32;
    fn store(to: DType) -> Option<Store<Self>> {
        (to == DType::I32).then_some(store_as::<i32, i32> as Store<i32>)
    }
    #[inline(always)]
    fn add(self, bias: Self) -> Self {
        self.wrapping_add(bias)
    }
    #[inline(always)]
    fn activate(self, activation: Activation) -> Self {
        // gelu and silu of integers are refused where the operation checks its operands.
        if activation == Activation::Relu { self.max(0) } else { self }
    }
    fn bias(bias: &VecRef<'_>, row: usize) -> Self {
        let at = bias.at(row);
        // SAFETY: the operation checked the bias's length and type.
        unsafe {
            match bias.dtype {
                DType::I8 => i32::from(at.cast::<i8>().read_unaligned()),
                _ => at.cast::<i32>().read_unaligned(),
            }
        }
    }
}

/// Writes finished rows as `O`.
///
/// # Safety
/// Sums must be readable and the result writeable over `rows × cols`.
unsafe fn store_as<A: Sum + Round<A> + Round<O>, O: Copy + 'static>(
    finished: &Finished<A>,
    epilogue: &Epilogue<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    if level::current() >= Level::Avx2 {
        let f = finished;
        if size_of::<A>() == 4 && size_of::<O>() == 4 && f.row_stride == 4 && epilogue.is_identity() {
            // Seen from the result, whose rows are columns of the sums, this is a transposition.
            let rect = Rect {
                src: f.sums.cast(),
                rows: f.cols,
                cols: f.rows,
                row_stride: 4,
                col_stride: 4 * f.sums_row as isize,
            };
            if f.col_stride % 4 == 0 && f.col_stride > 0 {
                // SAFETY: values are moved unchanged; AVX2 is there.
                unsafe {
                    super::transpose::transpose_32(&rect, f.out.cast(), f.col_stride as usize / 4);
                }
                return;
            }
        }
        if stages::apply::<A, O>(f) {
            // SAFETY: AVX2 is there; the rest is the caller's promise.
            unsafe { stages::store::<A, O>(finished, epilogue) };
            return;
        }
        // SAFETY: as above.
        unsafe { store_vectors::<A, O>(finished, epilogue) };
        return;
    }
    let _ = (level::current(), Level::Avx2);
    // SAFETY: the caller's promise.
    unsafe { store_loop::<A, O>(finished, epilogue) }
}

/// The same loop, compiled for the vectors of the level in use.
///
/// # Safety
/// As [`store_as`], with AVX2 there.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn store_vectors<A: Sum + Round<O>, O: Copy>(f: &Finished<A>, epilogue: &Epilogue<'_>) {
    // SAFETY: the level in use has the instruction set; the rest is the caller's promise.
    unsafe {
        if level::current() >= Level::Avx512 {
            store_avx512::<A, O>(f, epilogue);
        } else {
            store_avx2::<A, O>(f, epilogue);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store_avx512<A: Sum + Round<O>, O: Copy>(f: &Finished<A>, epilogue: &Epilogue<'_>) {
    // SAFETY: the caller's promise.
    unsafe { store_loop::<A, O>(f, epilogue) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_avx2<A: Sum + Round<O>, O: Copy>(f: &Finished<A>, epilogue: &Epilogue<'_>) {
    // SAFETY: the caller's promise.
    unsafe { store_loop::<A, O>(f, epilogue) }
}

#[inline(always)]
unsafe fn store_loop<A: Sum + Round<O>, O: Copy>(f: &Finished<A>, epilogue: &Epilogue<'_>) {
    match epilogue.activation {
        // SAFETY: the caller's promise, in each arm.
        Activation::Identity => unsafe { store_rows::<A, O>(f, epilogue, Activation::Identity) },
        // SAFETY: as above.
        Activation::Relu => unsafe { store_rows::<A, O>(f, epilogue, Activation::Relu) },
        // SAFETY: as above.
        Activation::Gelu => unsafe { store_rows::<A, O>(f, epilogue, Activation::Gelu) },
        // SAFETY: as above.
        Activation::Silu => unsafe { store_rows::<A, O>(f, epilogue, Activation::Silu) },
    }
}

#[inline(always)]
unsafe fn store_rows<A: Sum + Round<O>, O: Copy>(
    f: &Finished<A>,
    epilogue: &Epilogue<'_>,
    activation: Activation,
) {
    for r in 0..f.rows {
        let bias = epilogue.bias.as_ref().map(|bias| A::bias(bias, f.first_row + r));
        let finish = |sum: A| -> O {
            let sum = match bias {
                Some(bias) => sum.add(bias),
                None => sum,
            };
            sum.activate(activation).round()
        };
        // SAFETY: row r of both sides, within `cols`.
        unsafe {
            let sums = f.sums.add(r * f.sums_row);
            let out = f.out.offset(r as isize * f.row_stride);
            if f.col_stride == size_of::<O>() as isize {
                let out = out.cast::<O>();
                for c in 0..f.cols {
                    out.add(c).write_unaligned(finish(*sums.add(c)));
                }
            } else {
                for c in 0..f.cols {
                    let at = out.offset(c as isize * f.col_stride);
                    at.cast::<O>().write_unaligned(finish(*sums.add(c)));
                }
            }
        }
    }
}
