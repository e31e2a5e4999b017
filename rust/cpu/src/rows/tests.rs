//! Every level against plain loops in double precision.

use half::{bf16, f16};
use prunus_core::{Activation, DType, Error, MatMut, MatRef, Never, VecRef};

use super::{Combine, Dots, FeedForward, Found, Live, Norm, Panels};
use crate::level;
use crate::threads::Context;

fn context(threads: usize) -> Context<'static> {
    Context { threads, interrupt: &Never }
}

/// Numbers that differ, from -1 to 1, exact in bfloat16.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as f32 - 128.0) / 128.0
        })
        .collect()
}

fn liveness(rows: usize, branches: usize, seed: u32, density: f32) -> Vec<u8> {
    numbers(rows * branches, seed).iter().map(|v| u8::from((v + 1.0) / 2.0 < density)).collect()
}

fn mat(values: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    // SAFETY: the slice holds rows × cols values in C order.
    unsafe { MatRef::new(values.as_ptr().cast(), DType::F32, (rows, cols), ((cols * 4) as isize, 4)) }
}

fn mat_mut(values: &mut [f32], rows: usize, cols: usize) -> MatMut<'_> {
    // SAFETY: as above, and the slice is borrowed to write.
    unsafe { MatMut::new(values.as_mut_ptr().cast(), DType::F32, (rows, cols), ((cols * 4) as isize, 4)) }
}

struct Case {
    rows: usize,
    units: usize,
    k: usize,
    branch: usize,
    density: f32,
}

const CASES: &[Case] = &[
    Case { rows: 1, units: 1, k: 1, branch: 1, density: 1.0 },
    Case { rows: 1, units: 70, k: 37, branch: 1, density: 0.3 },
    Case { rows: 3, units: 65, k: 64, branch: 4, density: 0.5 },
    Case { rows: 5, units: 130, k: 100, branch: 32, density: 0.4 },
    Case { rows: 33, units: 67, k: 2100, branch: 5, density: 0.1 },
    Case { rows: 40, units: 100, k: 1024, branch: 100, density: 0.7 },
    Case { rows: 2, units: 300, k: 0, branch: 7, density: 0.5 },
    Case { rows: 300, units: 33, k: 17, branch: 2, density: 0.9 },
];

#[test]
fn units_are_those_of_a_plain_loop_and_the_same_alone() {
    for case in CASES {
        let Case { rows, units, k, branch, density } = *case;
        let (x, w) = (numbers(rows * k, 1), numbers(units * k, 2));
        let bias = numbers(units, 3);
        let scale = numbers(rows * units, 4);
        let branches = units.div_ceil(branch);
        let bytes = liveness(rows, branches, 5, density);
        level::each(|level| {
            let run = |first: usize, count: usize, threads: usize| {
                let mut out = vec![f32::NAN; count * units];
                let (mut norms, mut live) = (vec![0f32; count * branches], vec![9u8; count * branches]);
                let call = Dots {
                    x: mat(&x[first * k..], count, k),
                    w: mat(&w, units, k),
                    live: Some(
                        Live::new(&bytes[first * branches..][..count * branches], branch, count, units)
                            .unwrap(),
                    ),
                    // SAFETY: the vector outlives the call.
                    bias: Some(unsafe { VecRef::new(bias.as_ptr().cast(), DType::F32, units, 4) }),
                    activation: Activation::Relu,
                    scale: Some(mat(&scale[first * units..], count, units)),
                    out: mat_mut(&mut out, count, units),
                    found: Some(Found {
                        branch,
                        norm: Norm::Max,
                        tau: 0.25,
                        norms: norms.as_mut_ptr().cast(),
                        dtype: DType::F32,
                        live: live.as_mut_ptr(),
                    }),
                };
                call.run(&context(threads)).unwrap();
                (out, norms, live)
            };
            let (out, norms, live) = run(0, rows, 2);
            for t in 0..rows {
                for b in 0..branches {
                    let mut want = Vec::new();
                    for j in b * branch..units.min((b + 1) * branch) {
                        let dot: f64 =
                            (0..k).map(|i| f64::from(x[t * k + i]) * f64::from(w[j * k + i])).sum();
                        let value = (dot + f64::from(bias[j])).max(0.0) * f64::from(scale[t * units + j]);
                        want.push(if bytes[t * branches + b] == 0 { 0.0 } else { value });
                    }
                    let most = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
                    let got = norms[t * branches + b];
                    assert!((f64::from(got) - most).abs() < 1e-3, "{}: {got} {most}", level.name());
                    // Decided by the norm as computed.
                    let alive = got > 0.25;
                    assert_eq!(live[t * branches + b], u8::from(alive));
                    for (i, value) in want.iter().enumerate() {
                        let got = f64::from(out[t * units + b * branch + i]);
                        let value = if alive { *value } else { 0.0 };
                        assert!(
                            (got - value).abs() < 1e-3,
                            "{} ({t}, {b}, {i}): {got} {value}",
                            level.name()
                        );
                    }
                }
            }
            for t in [0, rows / 2, rows - 1] {
                let (alone, alone_norms, _) = run(t, 1, 1);
                assert_eq!(alone, out[t * units..(t + 1) * units], "{}: row {t} of {rows}", level.name());
                assert_eq!(alone_norms, norms[t * branches..(t + 1) * branches]);
            }
        });
    }
}

#[test]
fn sums_are_those_of_a_plain_loop_and_the_same_alone() {
    for case in CASES {
        let Case { rows, units, k: n, branch, density } = *case;
        let branches = units.div_ceil(branch);
        let (h, bias) = (numbers(rows * units, 1), numbers(n, 3));
        let mut w = numbers(units * n, 2);
        let bytes = liveness(rows, branches, 5, density);
        // What no row needs is not read: NaN would show.
        for j in 0..units {
            if (0..rows).all(|t| bytes[t * branches + j / branch] == 0) {
                w[j * n..(j + 1) * n].fill(f32::NAN);
            }
        }
        level::each(|level| {
            let run = |first: usize, count: usize, threads: usize| {
                let mut out = vec![f32::NAN; count * n];
                let live = Live::new(&bytes[first * branches..][..count * branches], branch, count, units);
                let call = Combine {
                    h: mat(&h[first * units..], count, units),
                    w: mat(&w, units, n),
                    panels: None,
                    live: Some(live.unwrap()),
                    // SAFETY: the vector outlives the call.
                    bias: Some(unsafe { VecRef::new(bias.as_ptr().cast(), DType::F32, n, 4) }),
                    out: mat_mut(&mut out, count, n),
                    add: false,
                };
                call.run(&context(threads)).unwrap();
                out
            };
            let out = run(0, rows, 3);
            for t in 0..rows {
                for c in 0..n {
                    let live = |j: &usize| bytes[t * branches + j / branch] != 0;
                    let terms = (0..units).filter(live);
                    let sum: f64 = terms.map(|j| f64::from(h[t * units + j]) * f64::from(w[j * n + c])).sum();
                    let (got, want) = (f64::from(out[t * n + c]), sum + f64::from(bias[c]));
                    assert!((got - want).abs() < 1e-3, "{} ({t}, {c}): {got} {want}", level.name());
                }
            }
            for t in [0, rows / 2, rows - 1] {
                assert_eq!(run(t, 1, 1), out[t * n..(t + 1) * n], "{}: row {t} of {rows}", level.name());
            }
        });
    }
}

/// Cuts a table of units × n into panels of some columns; what pads the last one is never read.
fn panels(w: &[f32], n: usize, width: usize) -> Vec<f32> {
    let units = w.len() / n;
    let value = |panel: usize, unit: usize, col: usize| {
        let col = panel * width + col;
        if col < n { w[unit * n + col] } else { f32::NAN }
    };
    let of_panel = |panel| (0..units).flat_map(move |unit| (0..width).map(move |col| (panel, unit, col)));
    (0..n.div_ceil(width)).flat_map(of_panel).map(|(panel, unit, col)| value(panel, unit, col)).collect()
}

#[test]
fn a_layer_in_one_call_is_its_products_to_the_bit() {
    for (rows, units, k, n, branch, width) in
        [(1, 200, 96, 130, 1, 64), (3, 70, 37, 33, 4, 32), (40, 65, 64, 7, 3, 5), (2, 50, 40, 200, 1, 128)]
    {
        let (x, up, gate) = (numbers(rows * k, 1), numbers(units * k, 2), numbers(units * k, 3));
        let (down, b_up, b_down) = (numbers(units * n, 4), numbers(units, 5), numbers(n, 6));
        let cut = panels(&down, n, width);
        let bytes = liveness(rows, units.div_ceil(branch), 7, 0.4);
        // SAFETY: the vectors outlive the calls.
        let bias = |b: &[f32]| Some(unsafe { VecRef::new(b.as_ptr().cast(), DType::F32, b.len(), 4) });
        let live = Live::new(&bytes, branch, rows, units).unwrap();
        level::each(|level| {
            for (live, gated) in [(None, true), (Some(live), true), (None, false), (Some(live), false)] {
                let silu = Activation::parse("silu").unwrap();
                let x = mat(&x, rows, k);
                let units_of = |w: &[f32], bias, activation, scale| {
                    let mut h = vec![f32::NAN; rows * units];
                    let (w, out) = (mat(w, units, k), mat_mut(&mut h, rows, units));
                    Dots { x, w, live, bias, activation, scale, out, found: None }.run(&context(2)).unwrap();
                    h
                };
                let h = match gated {
                    true => {
                        let first = units_of(&gate, None, silu, None);
                        let scale = Some(mat(&first, rows, units));
                        units_of(&up, bias(&b_up), Activation::Identity, scale)
                    }
                    false => units_of(&up, bias(&b_up), silu, None),
                };
                let mut expected = vec![f32::NAN; rows * n];
                let out = mat_mut(&mut expected, rows, n);
                let (h, w) = (mat(&h, rows, units), mat(&down, units, n));
                let sum = Combine { h, w, panels: None, live, bias: bias(&b_down), out, add: false };
                sum.run(&context(2)).unwrap();
                // SAFETY: the panels are one vector.
                let panels = unsafe { Panels::new(n, (units * width * 4) as isize) };
                let cut = (mat(&cut, units, width), Some(panels));
                for (down, panels) in [(w, None), cut] {
                    for threads in [1, 3] {
                        let mut found = vec![f32::NAN; rows * n];
                        let call = FeedForward {
                            x,
                            up: mat(&up, units, k),
                            gate: gated.then(|| mat(&gate, units, k)),
                            down,
                            panels,
                            live,
                            b_up: bias(&b_up),
                            b_down: bias(&b_down),
                            activation: silu,
                            out: mat_mut(&mut found, rows, n),
                        };
                        call.run(&context(threads)).unwrap();
                        assert_eq!(found, expected, "{}, {rows} rows, gated: {gated}", level.name());
                    }
                }
            }
        });
    }
}

#[test]
fn sums_in_parts_go_on_to_the_bit() {
    for (rows, units, n, cuts) in
        [(1, 300, 200, [7, 31, 290]), (5, 97, 33, [1, 2, 64]), (140, 70, 130, [32, 33, 70])]
    {
        let (h, w) = (numbers(rows * units, 1), numbers(units * n, 2));
        let bytes = liveness(rows, units, 5, 0.6);
        level::each(|level| {
            let part = |out: &mut [f32], first: usize, last: usize, add: bool| {
                let columns =
                    |row: usize| (first..last).map(move |unit| row * units + unit).collect::<Vec<_>>();
                let places: Vec<usize> = (0..rows).flat_map(columns).collect();
                let live: Vec<u8> = places.iter().map(|&at| bytes[at]).collect();
                let own: Vec<f32> = places.iter().map(|&at| h[at]).collect();
                let call = Combine {
                    h: mat(&own, rows, last - first),
                    w: mat(&w[first * n..], last - first, n),
                    panels: None,
                    live: Some(Live::new(&live, 1, rows, last - first).unwrap()),
                    bias: None,
                    out: mat_mut(out, rows, n),
                    add,
                };
                call.run(&context(2)).unwrap();
            };
            let mut whole = vec![f32::NAN; rows * n];
            part(&mut whole, 0, units, false);
            let mut sums = vec![f32::NAN; rows * n];
            let mut first = 0;
            for last in cuts.into_iter().chain([units]) {
                part(&mut sums, first, last, first > 0);
                first = last;
            }
            assert_eq!(sums, whole, "{}", level.name());
        });
    }
    let (h, w, mut out) = (numbers(4, 1), numbers(4, 2), vec![0u16; 1]);
    // SAFETY: one value of two bytes.
    let out = unsafe { MatMut::new(out.as_mut_ptr().cast(), DType::F16, (1, 1), (2, 2)) };
    let (h, w) = (mat(&h, 1, 4), mat(&w, 4, 1));
    let call = Combine { h, w, panels: None, live: None, bias: None, out, add: true };
    assert!(matches!(call.run(&context(1)), Err(Error::DTypes { .. })));
}

#[test]
fn narrow_tables_are_widened_exactly() {
    let (rows, units, k) = (3, 40, 75);
    let (x, w) = (numbers(rows * k, 1), numbers(units * k, 2));
    let halves: Vec<f16> = w.iter().map(|&v| f16::from_f32(v)).collect();
    let brains: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
    level::each(|level| {
        let run = |ptr: *const u8, dtype: DType| {
            let size = dtype.size() as isize;
            // SAFETY: a table of units × k values in C order.
            let table = unsafe { MatRef::new(ptr, dtype, (units, k), (k as isize * size, size)) };
            let mut out = vec![f32::NAN; rows * units];
            let call = Dots {
                x: mat(&x, rows, k),
                w: table,
                live: None,
                bias: None,
                activation: Activation::Identity,
                scale: None,
                out: mat_mut(&mut out, rows, units),
                found: None,
            };
            call.run(&context(1)).unwrap();
            let mut sums = vec![f32::NAN; rows * k];
            let out_copy = out.clone();
            let call = Combine {
                h: mat(&out_copy, rows, units),
                w: table,
                panels: None,
                live: None,
                bias: None,
                out: mat_mut(&mut sums, rows, k),
                add: false,
            };
            call.run(&context(1)).unwrap();
            (out, sums)
        };
        let wide = run(w.as_ptr().cast(), DType::F32);
        assert_eq!(run(halves.as_ptr().cast(), DType::F16), wide, "{}", level.name());
        assert_eq!(run(brains.as_ptr().cast(), DType::Bf16), wide, "{}", level.name());
    });
}

#[test]
fn nan_is_live_and_norms_are_measured() {
    let x = [1.0f32, 1.0];
    let w = [f32::NAN, 0.0, 3.0, 0.0, 4.0, 0.0, 0.1, 0.0];
    for (norm, expected) in [(Norm::Max, 4.0f32), (Norm::L2, 5.0)] {
        let (mut out, mut norms, mut live) = (vec![7.0f32; 4], vec![0f32; 2], vec![0u8; 2]);
        // Units: NaN and 3 in the first branch, 4 and 0.1 in the second; then 3 and 4 together.
        let order = [w[4], w[5], w[2], w[3], w[0], w[1], w[6], w[7]];
        let call = Dots {
            x: mat(&x, 1, 2),
            w: mat(&order, 4, 2),
            live: None,
            bias: None,
            activation: Activation::Identity,
            scale: None,
            out: mat_mut(&mut out, 1, 4),
            found: Some(Found {
                branch: 2,
                norm,
                tau: 4.5,
                norms: norms.as_mut_ptr().cast(),
                dtype: DType::F32,
                live: live.as_mut_ptr(),
            }),
        };
        call.run(&context(1)).unwrap();
        assert_eq!(norms[0], expected);
        assert!(norms[1].is_nan() && live[1] == 1 && out[2].is_nan());
        assert_eq!(live[0], u8::from(expected > 4.5));
        assert_eq!(out[0], if expected > 4.5 { 4.0 } else { 0.0 });
    }
}

#[test]
fn double_precision_sums_in_double_precision() {
    let (rows, units, k) = (7, 21, 143);
    let wide = |count, seed| numbers(count, seed).iter().map(|&v| f64::from(v) / 3.0).collect::<Vec<f64>>();
    let (x, w) = (wide(rows * k, 1), wide(units * k, 2));
    let view = |values: &[f64], rows: usize, cols: usize| {
        // SAFETY: the slice holds rows × cols values in C order.
        unsafe { MatRef::new(values.as_ptr().cast(), DType::F64, (rows, cols), ((cols * 8) as isize, 8)) }
    };
    level::each(|level| {
        let mut h = vec![f64::NAN; rows * units];
        // SAFETY: the vector has room for the result.
        let out = unsafe {
            MatMut::new(h.as_mut_ptr().cast(), DType::F64, (rows, units), ((units * 8) as isize, 8))
        };
        let call = Dots {
            x: view(&x, rows, k),
            w: view(&w, units, k),
            live: None,
            bias: None,
            activation: Activation::Identity,
            scale: None,
            out,
            found: None,
        };
        call.run(&context(1)).unwrap();
        let mut sums = vec![f64::NAN; rows * k];
        // SAFETY: as above.
        let out =
            unsafe { MatMut::new(sums.as_mut_ptr().cast(), DType::F64, (rows, k), ((k * 8) as isize, 8)) };
        let call = Combine {
            h: view(&h, rows, units),
            w: view(&w, units, k),
            panels: None,
            live: None,
            bias: None,
            out,
            add: false,
        };
        call.run(&context(1)).unwrap();
        for t in 0..rows {
            for j in 0..units {
                let want: f64 = (0..k).map(|i| x[t * k + i] * w[j * k + i]).sum();
                assert!((h[t * units + j] - want).abs() < 1e-12, "{}", level.name());
            }
            for c in 0..k {
                let want: f64 = (0..units).map(|j| h[t * units + j] * w[j * k + c]).sum();
                assert!((sums[t * k + c] - want).abs() < 1e-12, "{}", level.name());
            }
        }
    });
}

#[test]
fn operands_may_lie_at_any_address() {
    let (rows, units) = (3, 20);
    for k in [37, 48] {
        let (x, w) = (numbers(rows * k, 1), numbers(units * k, 2));
        let shifted = |values: &[f32]| {
            let mut bytes = vec![0u8];
            bytes.extend(values.iter().flat_map(|v| v.to_ne_bytes()));
            bytes
        };
        let (far_x, far_w) = (shifted(&x), shifted(&w));
        let far = |bytes: &[u8], rows: usize| {
            // SAFETY: past the first byte are rows × k values in C order.
            unsafe { MatRef::new(bytes[1..].as_ptr(), DType::F32, (rows, k), ((k * 4) as isize, 4)) }
        };
        level::each(|level| {
            let run = |x: MatRef<'_>, w: MatRef<'_>| {
                let mut out = vec![f32::NAN; rows * units];
                let call = Dots {
                    x,
                    w,
                    live: None,
                    bias: None,
                    activation: Activation::Identity,
                    scale: None,
                    out: mat_mut(&mut out, rows, units),
                    found: None,
                };
                call.run(&context(1)).unwrap();
                let mut sums = vec![f32::NAN; rows * k];
                let h = mat(&out, rows, units);
                let (panels, out) = (None, mat_mut(&mut sums, rows, k));
                let call = Combine { h, w, panels, live: None, bias: None, out, add: false };
                call.run(&context(1)).unwrap();
                sums
            };
            let near = run(mat(&x, rows, k), mat(&w, units, k));
            assert_eq!(run(far(&far_x, rows), far(&far_w, units)), near, "{}", level.name());
        });
    }
}
