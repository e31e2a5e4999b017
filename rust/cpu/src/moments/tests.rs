//! Every level against plain sums in double precision.

use prunus_core::{DType, MatRef, Never};

use super::{Measure, Moments};
use crate::level;
use crate::threads::Context;

fn numbers(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0).collect()
}

fn plain(values: impl Iterator<Item = f32> + Clone, skip_nan: bool) -> Moments {
    let kept: Vec<f64> = values.clone().filter(|v| !(skip_nan && v.is_nan())).map(f64::from).collect();
    let sum: f64 = kept.iter().sum();
    let mean = sum / kept.len() as f64;
    Moments {
        count: kept.len() as u64,
        nans: values.filter(|v| v.is_nan()).count() as u64,
        sum,
        squares: kept.iter().map(|v| (v - mean) * (v - mean)).sum(),
        min: kept.iter().copied().fold(f64::INFINITY, f64::min),
        max: kept.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

fn assert_near(got: &Moments, want: &Moments, what: &str) {
    assert_eq!(
        (got.count, got.nans, got.min, got.max),
        (want.count, want.nans, want.min, want.max),
        "{what}"
    );
    for (got, want) in [(got.sum, want.sum), (got.squares, want.squares)] {
        let same = (got.is_nan() && want.is_nan()) || (got - want).abs() <= 1e-9 * want.abs().max(1e4);
        assert!(same, "{what}: {got} {want}");
    }
}

#[test]
fn moments_are_those_of_plain_sums_on_every_level() {
    for (rows, cols) in [(1, 1), (3, 5), (70, 33), (300, 1100), (1, 70_000), (5, 4097)] {
        for with_nan in [false, true] {
            let mut values = numbers(rows * cols);
            if with_nan {
                values.iter_mut().step_by(7).for_each(|v| *v = f32::NAN);
            }
            level::each(|level| {
                for (skip_nan, by_column) in [(false, false), (false, true), (true, false), (true, true)] {
                    // SAFETY: the vector holds rows × cols values in C order.
                    let view = unsafe {
                        MatRef::new(
                            values.as_ptr().cast(),
                            DType::F32,
                            (rows, cols),
                            ((cols * 4) as isize, 4),
                        )
                    };
                    let measure = Measure { values: view, by_column, skip_nan, squares: true };
                    let run = |threads| measure.run(&Context { threads, interrupt: &Never }).unwrap();
                    let found = run(1);
                    let bits = |found: &[Moments]| -> Vec<u64> {
                        found.iter().flat_map(|m| [m.sum.to_bits(), m.squares.to_bits()]).collect()
                    };
                    assert_eq!(bits(&found), bits(&run(3)));
                    let what = format!("{} {rows} x {cols} {skip_nan} {by_column}", level.name());
                    if by_column {
                        for (c, found) in found.iter().enumerate() {
                            let column = values.iter().skip(c).step_by(cols).copied();
                            assert_near(found, &plain(column, skip_nan), &what);
                        }
                    } else {
                        assert_eq!(found.len(), 1);
                        assert_near(&found[0], &plain(values.iter().copied(), skip_nan), &what);
                    }
                }
            });
        }
    }
}
