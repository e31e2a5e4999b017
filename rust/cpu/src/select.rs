//! The largest values of each row: which branches a policy keeps.
//!
//! Values become integers that compare as the values do, so that NaN, signed zeros and what is hidden need
//! no case of their own. The smallest key that is kept is found by selection between two bounds that a
//! sample suggests (Floyd and Rivest, *Communications of the ACM* 18, 1975), which leaves one short list to
//! search; where the sample misled, the whole row is searched.

use std::mem::MaybeUninit;

use prunus_core::{DType, Error, MatMut, MatRef};

#[cfg(target_arch = "x86_64")]
use crate::level::{self, Level};
use crate::memory::Workspace;
use crate::threads::{Context, for_each};

/// Values that one task looks at, at least: handing a task to another thread costs as much as some
/// thousands.
const TASK: usize = 1 << 15;
/// Keys that suggest where to search.
const SAMPLE: usize = 256;
/// Rows shorter than this are searched at once: a sample would cost as much.
const SHORT: usize = 4 * SAMPLE;
/// Values that are looked through for ties at once.
const CHUNK: usize = 64;

/// Finds where each row has its largest values; of equal ones the first, NaN before all.
#[derive(Clone, Copy, Debug)]
pub struct Largest<'a> {
    /// Float32 or float64, rows × n, any strides.
    pub values: MatRef<'a>,
    /// How many to find in each row; what a row does not have is not found.
    pub wanted: &'a [i64],
    /// One byte each, rows × n: 0 is never found. None: all may be.
    pub visible: Option<&'a [u8]>,
    /// One byte each, rows × n, rows contiguous: 1 where a value was found, else 0.
    pub out: MatMut<'a>,
}

impl Largest<'_> {
    /// Runs the selection.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, [`Error::Memory`], or
    /// [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<(), Error> {
        self.check()?;
        match self.values.dtype {
            DType::F64 => self.rows::<i64>(context),
            _ => self.rows::<i32>(context),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let (values, out) = (&self.values, &self.out.view);
        let size = |rows, n| format!("{rows} x {n}");
        let fault = |what, expected, got| Err(Error::Shape { what, expected, got });
        if !matches!(values.dtype, DType::F32 | DType::F64) || out.dtype != DType::I8 {
            let (a, out) = (values.dtype, out.dtype);
            return Err(Error::DTypes { what: "largest values", a, b: a, out });
        }
        if (out.rows, out.cols) != (values.rows, values.cols) {
            return fault("result", size(values.rows, values.cols), size(out.rows, out.cols));
        }
        if out.rows > 0 && out.cols > 1 && out.col_stride != 1 {
            return fault("result", "rows in C order".to_owned(), format!("{} bytes apart", out.col_stride));
        }
        if self.wanted.len() != values.rows {
            return fault("wanted", size(values.rows, 1), size(self.wanted.len(), 1));
        }
        match self.visible {
            Some(visible) if visible.len() != values.rows * values.cols => {
                let got = format!("{} values", visible.len());
                fault("visible", size(values.rows, values.cols), got)
            }
            _ => Ok(()),
        }
    }

    fn rows<K: Key>(&self, context: &Context<'_>) -> Result<(), Error> {
        let (rows, n) = (self.values.rows, self.values.cols);
        if n == 0 {
            return Ok(());
        }
        let each = (TASK / n).max(1);
        for_each(context, rows.div_ceil(each), |task| {
            let space = Workspace::of(&[2, n, size_of::<K>()])?;
            // SAFETY: the workspace is as large, at the alignment of a cache line, and nobody else has it.
            let space = unsafe { std::slice::from_raw_parts_mut(space.as_ptr().cast(), 2 * n) };
            let (keys, space) = space.split_at_mut(n);
            for row in task * each..rows.min((task + 1) * each) {
                // SAFETY: a row of the result is `n` contiguous bytes that are this task's own.
                let out = unsafe { std::slice::from_raw_parts_mut(self.out.at(row, 0), n) };
                self.row::<K>(row, keys, space, out);
            }
            Ok(())
        })
    }

    fn row<K: Key>(&self, row: usize, keys: Space<'_, K>, space: Space<'_, K>, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        match level::current() {
            Level::Avx512 | Level::Avx512Dot | Level::Amx => {
                // SAFETY: the level in use has the instruction set.
                return unsafe { self.row_avx512(row, keys, space, out) };
            }
            Level::Avx2 => {
                // SAFETY: as above.
                return unsafe { self.row_avx2(row, keys, space, out) };
            }
            _ => {}
        }
        self.row_loop(row, keys, space, out, gather);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn row_avx512<K: Key>(&self, row: usize, keys: Space<'_, K>, space: Space<'_, K>, out: &mut [u8]) {
        // SAFETY: compiled for this instruction set, so it is there.
        let gather =
            |keys: &[K], low, high, to: Space<'_, K>| unsafe { K::gather_avx512(keys, low, high, to) };
        self.row_loop(row, keys, space, out, gather);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn row_avx2<K: Key>(&self, row: usize, keys: Space<'_, K>, space: Space<'_, K>, out: &mut [u8]) {
        self.row_loop(row, keys, space, out, gather);
    }

    /// Finds the largest of one row. Inlined, so that each caller compiles it for its own vectors.
    #[inline(always)]
    fn row_loop<K: Key>(
        &self,
        row: usize,
        keys: Space<'_, K>,
        space: Space<'_, K>,
        out: &mut [u8],
        gather: impl Fn(&[K], K, K, Space<'_, K>) -> usize,
    ) {
        let n = keys.len();
        let start = self.values.at(row, 0);
        if self.values.col_stride == size_of::<K>() as isize {
            for (j, key) in keys.iter_mut().enumerate() {
                // SAFETY: value j of the row, at any alignment.
                key.write(unsafe { start.cast::<K>().add(j).read_unaligned() }.of_bits());
            }
        } else {
            for (j, key) in keys.iter_mut().enumerate() {
                // SAFETY: as above.
                key.write(unsafe { self.values.at(row, j).cast::<K>().read_unaligned() }.of_bits());
            }
        }
        // SAFETY: every key was written.
        let keys = unsafe { written(keys, n) };
        let mut seen = n;
        if let Some(visible) = self.visible {
            let visible = &visible[row * n..(row + 1) * n];
            for (key, &visible) in keys.iter_mut().zip(visible) {
                *key = if visible != 0 { *key } else { K::HIDDEN };
            }
            seen = count(visible, |visible| visible != 0);
        }
        let wanted = usize::try_from(self.wanted[row]).unwrap_or(0).min(seen);
        if wanted == 0 {
            out.fill(0);
            return;
        }
        let cut = cut(keys, wanted, space, gather);
        // So many of those that equal the cut are wanted: the first.
        let mut ties = wanted - count(keys, |key| key > cut);
        for (out, keys) in out.chunks_mut(CHUNK).zip(keys.chunks(CHUNK)) {
            let here = if ties == 0 { 0 } else { count(keys, |key| key == cut) };
            if here == 0 {
                out.iter_mut().zip(keys).for_each(|(out, &key)| *out = u8::from(key > cut));
            } else if here <= ties {
                out.iter_mut().zip(keys).for_each(|(out, &key)| *out = u8::from(key >= cut));
                ties -= here;
            } else {
                for (out, &key) in out.iter_mut().zip(keys) {
                    let tie = key == cut && ties > 0;
                    *out = u8::from(tie || key > cut);
                    ties -= usize::from(tie);
                }
            }
        }
    }
}

/// Memory for keys that has not been written.
type Space<'a, K> = &'a mut [MaybeUninit<K>];

/// The first `count` keys of a space.
///
/// # Safety
/// They must have been written.
unsafe fn written<K>(space: &mut [MaybeUninit<K>], count: usize) -> &mut [K] {
    let space = &mut space[..count];
    // SAFETY: the caller's promise; a key and the space for one are laid out alike.
    unsafe { std::slice::from_raw_parts_mut(space.as_mut_ptr().cast(), count) }
}

/// How many values are such; counted in words of 32 bits, of which a vector holds the most.
#[inline(always)]
fn count<T: Copy>(values: &[T], is: impl Fn(T) -> bool) -> usize {
    let few = |values: &[T]| values.iter().map(|&value| u32::from(is(value))).sum::<u32>() as usize;
    values.chunks(1 << 16).map(few).sum()
}

/// Bits of a float as an integer that compares as the float does.
trait Key: Copy + Ord {
    /// Below the key of every value.
    const HIDDEN: Self;
    /// Above the key of every number.
    const NAN: Self;
    /// The key of the float with these bits: of both zeros the same, of NaN [`Key::NAN`].
    fn of_bits(self) -> Self;
    /// As [`gather`].
    ///
    /// # Safety
    /// The instruction set must be there.
    #[cfg(target_arch = "x86_64")]
    unsafe fn gather_avx512(keys: &[Self], low: Self, high: Self, to: Space<'_, Self>) -> usize;
}

macro_rules! key {
    ($int:ty, $float:ty, $gather:ident) => {
        impl Key for $int {
            const HIDDEN: Self = <$int>::MIN;
            const NAN: Self = <$int>::MAX;

            #[inline(always)]
            fn of_bits(self) -> Self {
                const INFINITY: $int = <$float>::INFINITY.to_bits() as $int;
                let magnitude = self & <$int>::MAX;
                // Sign and magnitude to two's complement, in which -0 is 0.
                let sign = self >> (<$int>::BITS - 1);
                let key = (magnitude ^ sign) - sign;
                if magnitude > INFINITY { Self::NAN } else { key }
            }

            #[cfg(target_arch = "x86_64")]
            unsafe fn gather_avx512(keys: &[Self], low: Self, high: Self, to: Space<'_, Self>) -> usize {
                // SAFETY: the caller's promise.
                unsafe { $gather(keys, low, high, to) }
            }
        }
    };
}
key!(i32, f32, gather_i32);
key!(i64, f64, gather_i64);

/// Writes the keys that are above `low` and below `high`, in any order, and returns how many there are; the
/// space is as long as the keys.
#[inline(always)]
fn gather<K: Key>(keys: &[K], low: K, high: K, to: Space<'_, K>) -> usize {
    let mut count = 0;
    for &key in keys {
        // Written first and kept by counting it: no branch to mispredict.
        to[count].write(key);
        count += usize::from((low < key) & (key < high));
    }
    count
}

#[cfg(target_arch = "x86_64")]
macro_rules! gather_avx512 {
    ($name:ident, $int:ty, $lanes:literal, $set:ident, $below:ident, $compress:ident) => {
        /// As [`gather`].
        #[target_feature(enable = "avx512f")]
        fn $name(keys: &[$int], low: $int, high: $int, to: Space<'_, $int>) -> usize {
            use std::arch::x86_64::*;
            let (lows, highs) = ($set(low), $set(high));
            let (vectors, rest) = keys.as_chunks::<$lanes>();
            assert!(to.len() >= keys.len(), "a space as long as the keys");
            let mut count = 0;
            for vector in vectors {
                // SAFETY: fewer keys were kept than were seen, so that a whole vector fits.
                unsafe {
                    let keys = _mm512_loadu_si512(vector.as_ptr().cast());
                    let kept = $below(lows, keys) & $below(keys, highs);
                    _mm512_storeu_si512(to.as_mut_ptr().add(count).cast(), $compress(kept, keys));
                    count += kept.count_ones() as usize;
                }
            }
            count + gather(rest, low, high, &mut to[count..])
        }
    };
}
#[cfg(target_arch = "x86_64")]
gather_avx512!(gather_i32, i32, 16, _mm512_set1_epi32, _mm512_cmplt_epi32_mask, _mm512_maskz_compress_epi32);
#[cfg(target_arch = "x86_64")]
gather_avx512!(gather_i64, i64, 8, _mm512_set1_epi64, _mm512_cmplt_epi64_mask, _mm512_maskz_compress_epi64);

/// Returns the key that is `wanted`th from the top, 1 ≤ wanted ≤ the number of keys; `space` is as long.
#[inline(always)]
fn cut<K: Key>(
    keys: &[K],
    wanted: usize,
    space: Space<'_, K>,
    gather: impl Fn(&[K], K, K, Space<'_, K>) -> usize,
) -> K {
    let n = keys.len();
    if n >= SHORT
        && let Some(cut) = between(keys, wanted, space, gather)
    {
        return cut;
    }
    space.iter_mut().zip(keys).for_each(|(space, &key)| {
        space.write(key);
    });
    // SAFETY: they were written.
    *unsafe { written(space, n) }.select_nth_unstable(n - wanted).1
}

/// As [`cut`], from the keys between two of a sample; None where what is searched for is not there.
#[inline(always)]
fn between<K: Key>(
    keys: &[K],
    wanted: usize,
    space: Space<'_, K>,
    gather: impl Fn(&[K], K, K, Space<'_, K>) -> usize,
) -> Option<K> {
    let n = keys.len();
    let mut sample = [K::HIDDEN; SAMPLE];
    for (i, key) in sample.iter_mut().enumerate() {
        *key = keys[i * (n / SAMPLE) + i * (n % SAMPLE) / SAMPLE];
    }
    let at = ((n - wanted) as u128 * SAMPLE as u128 / n as u128) as usize;
    // Three standard deviations of the rank in a random sample.
    let margin = 1 + 3 * (at * (SAMPLE - at) / SAMPLE).isqrt();
    let (first, last) = (at.checked_sub(margin), (at + margin).min(SAMPLE - 1));
    let (below, &mut high, _) = sample.select_nth_unstable(last);
    let low = first.map_or(K::HIDDEN, |first| *below.select_nth_unstable(first).1);
    let high = if at + margin < SAMPLE { high } else { K::NAN };
    let above = count(keys, |key| key > high);
    if wanted <= above {
        return None;
    }
    let from_high = above + count(keys, |key| key == high);
    if wanted <= from_high {
        return Some(high);
    }
    let found = gather(keys, low, high, space);
    if wanted <= from_high + found {
        // SAFETY: so many keys were written.
        let found = unsafe { written(space, found) };
        let at = found.len() - (wanted - from_high);
        return Some(*found.select_nth_unstable(at).1);
    }
    // A key that many values have, such as that of 0 after ReLU, is often a bound itself.
    let bound = K::HIDDEN < low && low < high;
    (bound && wanted <= from_high + found + count(keys, |key| key == low)).then_some(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prunus_core::Never;

    use super::*;

    /// Bytes of 1 where `values` has its largest, as [`Largest`] says.
    fn largest(values: &[f32], n: usize, wanted: &[i64], visible: Option<&[u8]>, threads: usize) -> Vec<u8> {
        let rows = wanted.len();
        let mut out = vec![7u8; rows * n];
        let size = size_of::<f32>() as isize;
        // SAFETY: both arrays hold rows × n values in C order.
        let call = unsafe {
            Largest {
                values: MatRef::new(values.as_ptr().cast(), DType::F32, (rows, n), (n as isize * size, size)),
                wanted,
                visible,
                out: MatMut::new(out.as_mut_ptr(), DType::I8, (rows, n), (n as isize, 1)),
            }
        };
        let mut found: Option<Vec<u8>> = None;
        crate::level::each(|level| {
            call.run(&Context { threads, interrupt: &Never }).unwrap();
            // SAFETY: as above; the call is over.
            let out = unsafe { std::slice::from_raw_parts(call.out.at(0, 0), rows * n) }.to_vec();
            assert_eq!(found.get_or_insert_with(|| out.clone()), &out, "{level:?}");
        });
        found.unwrap_or_default()
    }

    /// The same by sorting: NaN first, then by value, then by place.
    fn by_sorting(values: &[f32], wanted: i64, visible: Option<&[u8]>) -> Vec<u8> {
        let mut order: Vec<usize> =
            (0..values.len()).filter(|&j| visible.is_none_or(|visible| visible[j] != 0)).collect();
        let rank = |j: usize| if values[j].is_nan() { (0, 0.0) } else { (1, -values[j]) };
        order.sort_by(|&i, &j| rank(i).partial_cmp(&rank(j)).unwrap().then(i.cmp(&j)));
        let mut out = vec![0; values.len()];
        order.iter().take(wanted.max(0) as usize).for_each(|&j| out[j] = 1);
        out
    }

    fn some() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -2.0f32..2.0,
            1 => prop::sample::select(vec![
                0.0,
                -0.0,
                1.0,
                -1.0,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::NAN,
                -f32::NAN,
                f32::from_bits(1),
                f32::MAX,
            ]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn short_and_long_rows_agree_with_sorting(
            values in prop::collection::vec(some(), 1..3 * SHORT),
            bits in prop::collection::vec(any::<bool>(), 3 * SHORT),
            share in 0.0f64..1.2,
            hide in any::<bool>(),
        ) {
            let n = values.len();
            let visible: Vec<u8> = bits[..n].iter().map(|&bit| u8::from(bit)).collect();
            let visible = hide.then_some(&visible[..]);
            for wanted in [-1, 0, 1, (share * n as f64) as i64, n as i64, i64::MAX] {
                let got = largest(&values, n, &[wanted], visible, 1);
                prop_assert_eq!(&got, &by_sorting(&values, wanted, visible));
            }
        }
    }

    #[test]
    fn a_sample_that_misleads_is_not_believed() {
        let n = 8 * SHORT;
        // Large exactly where the sample looks, or nowhere there.
        for inside in [true, false] {
            let at = |j: usize| j.is_multiple_of(n / SAMPLE) == inside;
            let values: Vec<f32> = (0..n).map(|j| if at(j) { 100.0 } else { 0.0 } + (j % 7) as f32).collect();
            for wanted in [1, 100, 256, 257, n / 2, n - 1, n] {
                let got = largest(&values, n, &[wanted as i64], None, 1);
                assert_eq!(got, by_sorting(&values, wanted as i64, None), "{wanted}");
            }
        }
    }

    #[test]
    fn rows_are_apart_whatever_the_threads() {
        let (rows, n) = (37, 3000);
        let values: Vec<f32> = (0..rows * n).map(|i| ((i * 7919) % 1009) as f32).collect();
        let wanted: Vec<i64> = (0..rows as i64).map(|i| i * 100).collect();
        let expected: Vec<u8> = wanted
            .iter()
            .zip(values.chunks(n))
            .flat_map(|(&wanted, row)| by_sorting(row, wanted, None))
            .collect();
        for threads in [1, 2, 5] {
            assert_eq!(largest(&values, n, &wanted, None, threads), expected);
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (values, mut out) = ([1.0f32; 6], [0u8; 6]);
        // SAFETY: the arrays hold six values each.
        let (values, mut out) = unsafe {
            let values = MatRef::new(values.as_ptr().cast(), DType::F32, (2, 3), (12, 4));
            (values, MatMut::new(out.as_mut_ptr(), DType::I8, (2, 3), (3, 1)))
        };
        let context = Context { threads: 1, interrupt: &Never };
        let call = Largest { values, wanted: &[1, 1], visible: None, out };
        assert!(matches!(Largest { wanted: &[1], ..call }.run(&context), Err(Error::Shape { .. })));
        let few = Largest { visible: Some(&[1; 5]), ..call };
        assert!(matches!(few.run(&context), Err(Error::Shape { .. })));
        out.view.dtype = DType::F32;
        assert!(matches!(Largest { out, ..call }.run(&context), Err(Error::DTypes { .. })));
        out.view.dtype = DType::I8;
        out.view.cols = 2;
        assert!(matches!(Largest { out, ..call }.run(&context), Err(Error::Shape { .. })));
    }
}
