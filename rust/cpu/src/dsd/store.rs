//! The last step of a tile: bias, activation, rounding to the result's type, any strides.

use half::{bf16, f16};
use prunus_core::{Activation, DType, Epilogue, VecRef};

use super::convert::{Cast, Rect};
#[cfg(target_arch = "x86_64")]
use super::stages;
use super::transpose;
use crate::level;
#[cfg(target_arch = "x86_64")]
use crate::level::Level;

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
    f64 => f16: |v| f16::from_f32(to_odd(v)),
    f64 => bf16: |v| bf16_from(to_odd(v)),
    f32 => bf16: |v| bf16_from(v),
}

/// Rounds to odd: what is not exact becomes the neighbour with an odd last bit, so that rounding on
/// to a shorter type is as good as from double precision (`half` drops the low bits instead, and
/// takes values just above a tie for the tie).
#[inline(always)]
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    let back = f64::from(near);
    if back == v || v.is_nan() {
        return near;
    }
    let towards_zero = near.to_bits() - u32::from(back.abs() > v.abs());
    f32::from_bits(towards_zero | 1)
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
    let (level, f) = (level::current(), finished);
    let moves = size_of::<A>() == 4 && size_of::<O>() == 4 && epilogue.is_identity();
    let by_columns = f.row_stride == 4 && f.col_stride > 0 && f.col_stride % 4 == 0;
    if moves && by_columns && transpose::is_available(level) {
        // Seen from the result, whose rows are columns of the sums, this is a transposition.
        let rect = Rect {
            src: f.sums.cast(),
            rows: f.cols,
            cols: f.rows,
            row_stride: 4,
            col_stride: 4 * f.sums_row as isize,
        };
        // SAFETY: values are moved unchanged; the level is there.
        unsafe { transpose::transpose_32(&rect, f.out.cast(), f.col_stride as usize / 4) };
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 {
        if stages::apply::<A, O>(f) {
            // SAFETY: AVX2 is there; the rest is the caller's promise.
            unsafe { stages::store::<A, O>(finished, epilogue) };
            return;
        }
        // SAFETY: as above.
        unsafe { store_vectors::<A, O>(finished, epilogue) };
        return;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores `sums` as `O` at every level and returns the last result; levels must agree bit by bit.
    fn stored<A: Sum, O: Copy + Default>(sums: &[A], to: DType, bits: impl Fn(O) -> u64) -> Vec<O> {
        let store = A::store(to).unwrap();
        let mut first: Option<Vec<O>> = None;
        level::each(|level| {
            let mut out = vec![O::default(); sums.len()];
            let finished = Finished {
                sums: sums.as_ptr(),
                sums_row: sums.len(),
                rows: 1,
                cols: sums.len(),
                first_row: 0,
                out: out.as_mut_ptr().cast(),
                row_stride: 0,
                col_stride: size_of::<O>() as isize,
            };
            // SAFETY: one row of sums, and as many results.
            unsafe { store(&finished, &Epilogue::default()) };
            let seen = first.get_or_insert_with(|| out.clone());
            let same = seen.iter().zip(&out).all(|(&a, &b)| bits(a) == bits(b));
            assert!(same, "{} rounds otherwise", level.name());
        });
        first.unwrap()
    }

    /// Values around every bfloat16: it, its ties with the next, and their neighbours.
    fn around_bfloat16() -> Vec<f32> {
        let low = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
        (0..=u16::MAX).flat_map(|high| low.map(|low| f32::from_bits(u32::from(high) << 16 | low))).collect()
    }

    #[test]
    fn bfloat16_rounds_as_half_does() {
        let sums = around_bfloat16();
        for (got, &sum) in stored::<f32, bf16>(&sums, DType::Bf16, |v| v.to_bits().into()).iter().zip(&sums) {
            let want = bf16::from_f32(sum);
            if sum.is_nan() {
                assert!(got.is_nan() && got.is_sign_negative() == sum.is_sign_negative(), "{sum}");
                assert!(got.to_bits() & 0x40 != 0, "a signalling NaN from {:x}", sum.to_bits());
            } else {
                assert_eq!(got.to_bits(), want.to_bits(), "{sum} ({:x})", sum.to_bits());
            }
        }
        let edges = [f32::MAX, -f32::MAX, f32::INFINITY, f32::NEG_INFINITY, -0.0, 3.389_531_4e38];
        let got = stored::<f32, bf16>(&edges, DType::Bf16, |v| v.to_bits().into());
        let bits: Vec<u16> = got.into_iter().map(bf16::to_bits).collect();
        assert_eq!(bits, [0x7F80, 0xFF80, 0x7F80, 0xFF80, 0x8000, 0x7F7F]);
    }

    #[test]
    fn other_types_round_to_nearest_even() {
        let sums: Vec<f32> = around_bfloat16().into_iter().step_by(7).collect();
        for (got, &sum) in stored::<f32, f16>(&sums, DType::F16, |v| v.to_bits().into()).iter().zip(&sums) {
            let want = f16::from_f32_const(sum);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{sum}");
        }
        let ties = [1.0 + 2f64.powi(-24), 1.0 + 3.0 * 2f64.powi(-24), 1e300, -1e300, f64::NAN, 1e-50];
        let got = stored::<f64, f32>(&ties, DType::F32, |v| v.to_bits().into());
        assert_eq!(got[..4], [1.0, 1.0 + 2f32.powi(-22), f32::INFINITY, f32::NEG_INFINITY]);
        assert!(got[4].is_nan() && got[5] == 0.0);
    }

    #[test]
    fn double_precision_rounds_once() {
        // A tie of bfloat16 (or half), and its neighbours in double precision.
        let near = |low: i32, shift: f64| 1.0 + 2f64.powi(low) + shift;
        for (to, bits) in [(DType::Bf16, 8), (DType::F16, 11)] {
            let shifts = [0.0, 2f64.powi(-52), -(2f64.powi(-52)), 2f64.powi(-40), -(2f64.powi(-30))];
            let sums = shifts.map(|shift| near(-bits, shift));
            let above = 1.0 + 2f64.powi(1 - bits);
            let got: Vec<f64> = match to {
                DType::Bf16 => stored::<f64, bf16>(&sums, to, |v| v.to_bits().into())
                    .into_iter()
                    .map(f64::from)
                    .collect(),
                _ => {
                    stored::<f64, f16>(&sums, to, |v| v.to_bits().into()).into_iter().map(f64::from).collect()
                }
            };
            assert_eq!(got, [1.0, above, 1.0, above, 1.0]);
        }
        let edges = [f64::MAX, -f64::INFINITY, f64::NAN, -0.0, 5e-324, 65519.99, 65520.0];
        let got = stored::<f64, f16>(&edges, DType::F16, |v| v.to_bits().into());
        assert!(got[0].is_infinite() && got[1] == f16::NEG_INFINITY && got[2].is_nan());
        assert_eq!(got[3..].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), [0x8000, 0, 0x7BFF, 0x7C00]);
        let got = stored::<f64, bf16>(&edges, DType::Bf16, |v| v.to_bits().into());
        assert!(got[0] == bf16::INFINITY && got[1] == bf16::NEG_INFINITY && got[2].is_nan());
        assert_eq!(got[3..5].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), [0x8000, 0]);
    }
}
