//! Halves against the `half` crate, levels against each other, layouts against plain loops.

use half::{bf16, f16};
use proptest::prelude::*;

use super::kernels::{Op, find};
use super::{Kind, Operand, Program, Step, flags, halves};
use crate::level::{self, Level};

fn step(name: &str, kind: Kind, args: &[usize]) -> Step {
    Step { name: name.to_owned(), kind, args: args.to_vec() }
}

/// An array of float32 in C order.
fn operand(values: &[f32], shape: &[usize]) -> Operand {
    let mut strides = vec![0; shape.len()];
    let mut next = 4;
    for (stride, &size) in strides.iter_mut().zip(shape).rev() {
        *stride = if size == 1 { 0 } else { next };
        next *= size as isize;
    }
    Operand { ptr: values.as_ptr().cast_mut().cast(), strides }
}

#[test]
fn halves_are_those_of_the_half_crate() {
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    for bits in 0..=u16::MAX {
        assert!(same(halves::from_f16(bits), f16::from_bits(bits).to_f32()), "{bits:04x}");
        assert!(same(halves::from_bf16(bits), bf16::from_bits(bits).to_f32()), "{bits:04x}");
        // Around each half, and half-way to the next: where rounding can go wrong.
        for centre in [halves::from_f16(bits), halves::from_bf16(bits)] {
            for away in [-0x1001, -0x1000, -0xfff, -1, 0, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001] {
                let value = f32::from_bits(centre.to_bits().wrapping_add_signed(away));
                let found = f16::from_bits(halves::to_f16(value)).to_f32();
                assert!(same(found, f16::from_f32(value).to_f32()), "{value:e}");
                let found = bf16::from_bits(halves::to_bf16(value)).to_f32();
                assert!(same(found, bf16::from_f32(value).to_f32()), "{value:e}");
            }
        }
    }
}

fn bits() -> impl Strategy<Value = u64> {
    let floats =
        prop::sample::select(vec![0.0, -0.0, 1.0, -1.5, 0.5, 2.5, 1e-310, 1e300, f64::INFINITY, f64::NAN]);
    let singles =
        prop::sample::select(vec![0.0f32, -0.0, 1.0, -2.5, 1e-40, 3e38, 2e9, f32::INFINITY, f32::NAN]);
    prop_oneof![
        any::<u64>(),
        floats.prop_map(f64::to_bits),
        (singles.clone(), singles).prop_map(|(a, b)| u64::from(a.to_bits()) << 32 | u64::from(b.to_bits())),
    ]
}

/// NaN without sign and payload, which no level promises.
fn settle(bytes: &mut [u8], kind: Kind) {
    match kind {
        Kind::F32 => bytes.chunks_exact_mut(4).for_each(|value| {
            if f32::from_ne_bytes(value.try_into().unwrap()).is_nan() {
                value.copy_from_slice(&f32::NAN.to_ne_bytes());
            }
        }),
        Kind::F64 => bytes.chunks_exact_mut(8).for_each(|value| {
            if f64::from_ne_bytes(value.try_into().unwrap()).is_nan() {
                value.copy_from_slice(&f64::NAN.to_ne_bytes());
            }
        }),
        _ => {}
    }
}

/// What one loop of one level gives, and what it reports.
fn outcome(level: Level, op: Op, kind: Kind, values: &[Vec<u64>; 3], count: usize) -> Option<(Vec<u8>, u32)> {
    let run = find(level, op, kind)?;
    let gives = match op {
        Op::Cast(to) => to,
        Op::Unpack | Op::Round => Kind::F32,
        _ if op.tells() => Kind::Bool,
        _ => kind,
    };
    let mut out = vec![0u64; count];
    let from = [values[0].as_ptr().cast(), values[1].as_ptr().cast(), values[2].as_ptr().cast()];
    flags::clear();
    // SAFETY: each vector has `count` words, at least as many bytes as values; the level is available.
    let mut found = unsafe { run(&from, out.as_mut_ptr().cast(), count) };
    if op.computes() {
        found |= flags::raised();
    }
    if matches!(op, Op::Cast(to) if !matches!(to, Kind::F32 | Kind::F64)) {
        // How a level finds out that a value fits no integer may show in the status, which only costs time.
        found &= flags::DEFER;
    }
    let mut bytes: Vec<u8> = out.iter().flat_map(|word| word.to_ne_bytes()).collect();
    settle(&mut bytes[..count * gives.size()], gives);
    Some((bytes, found))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn levels_agree_on_every_operation(words in prop::collection::vec(bits(), 3..200)) {
        let count = words.len() / 3;
        let values = [words[..count].to_vec(), words[count..2 * count].to_vec(), words[2 * count..].to_vec()];
        let mut operations: Vec<Op> = Op::NAMED.iter().map(|(_, op, _)| *op).collect();
        operations.extend([Op::Copy, Op::Unpack, Op::Pack, Op::Round]);
        operations.extend(Kind::NAMED.map(|(_, kind)| Op::Cast(kind)));
        let mut compared = 0;
        for op in operations {
            for (name, kind) in Kind::NAMED {
                let twin = outcome(Level::Scalar, op, kind, &values, count);
                for level in level::available() {
                    let found = outcome(level, op, kind, &values, count);
                    prop_assert_eq!(&found, &twin, "{:?} of {} on {}", op, name, level.name());
                    compared += usize::from(found.is_some());
                }
            }
        }
        prop_assert!(compared >= 400);
    }
}

#[test]
fn layouts_and_broadcasts_give_what_plain_loops_give() {
    let program = Program::new(
        &[Kind::F32; 3],
        &[
            step("subtract", Kind::F32, &[0, 1]),
            step("multiply", Kind::F32, &[3, 2]),
            step("maximum", Kind::F32, &[4, 3]),
            step("less", Kind::F32, &[5, 0]),
        ],
        &[5, 6, 0],
    )
    .unwrap();
    for shape in [[1, 1, 1], [2, 3, 5], [3, 700, 2], [2, 5, 9001], [70, 1, 33], [4, 4, 512], [0, 3, 4]] {
        let count: usize = shape.iter().product();
        let a: Vec<f32> = (0..count).map(|i| (i * 7919 % 1009) as f32 - 500.0).collect();
        let row: Vec<f32> = (0..shape[2]).map(|i| i as f32 * 0.5).collect();
        let column: Vec<f32> = (0..shape[1]).map(|i| 1.0 - i as f32).collect();
        for turned in [false, true] {
            let (mut most, mut same) = (vec![0f32; count], vec![0f32; count]);
            let mut less = vec![2u8; count];
            let mut whole = operand(&a, &shape);
            let mut truths = Operand {
                ptr: less.as_mut_ptr(),
                strides: operand(&a, &shape).strides.iter().map(|stride| stride / 4).collect(),
            };
            let mut outs = [operand(&most, &shape), operand(&same, &shape)];
            outs[0].ptr = most.as_mut_ptr().cast();
            outs[1].ptr = same.as_mut_ptr().cast();
            let mut inputs = [operand(&row, &[1, 1, shape[2]]), operand(&column, &[1, shape[1], 1])];
            let mut shape = shape;
            if turned {
                // The same arrays with their axes the other way round.
                shape.reverse();
                inputs.iter_mut().chain(&mut outs).for_each(|of| of.strides.reverse());
                whole.strides.reverse();
                truths.strides.reverse();
            }
            let [out, copy] = outs;
            let [row_operand, column_operand] = inputs;
            // SAFETY: the vectors hold what shape and strides say.
            let found = unsafe {
                program.run(&shape, &[whole, row_operand, column_operand], &[out, truths, copy]).unwrap()
            };
            assert_eq!(found & !flags::UNDER, 0);
            assert_eq!(same, a);
            let (rows, width) = (column.len(), row.len());
            for i in 0..count {
                let distance = a[i] - row[i % width];
                let product = distance * column[i / width % rows];
                let expected = if product > distance { product } else { distance };
                assert_eq!(most[i], expected, "{shape:?} {i}");
                assert_eq!(less[i], u8::from(expected < a[i]), "{shape:?} {i}");
            }
        }
    }
}

#[test]
fn flags_are_those_of_steps_that_compute() {
    let run = |name: &str, a: f32, b: f32| {
        let arity = if name == "sqrt" { vec![0] } else { vec![0, 1] };
        let program = Program::new(&[Kind::F32; 2], &[step(name, Kind::F32, &arity)], &[2]).unwrap();
        let mut out = [0u64; 1000];
        let (a, b) = ([a], [b]);
        let target = Operand { ptr: out.as_mut_ptr().cast(), strides: vec![4] };
        // SAFETY: one value each, broadcast; the result has room.
        unsafe { program.run(&[1000], &[operand(&a, &[1]), operand(&b, &[1])], &[target]).unwrap() }
    };
    assert_eq!(run("add", 1.0, 2.0), 0);
    assert_eq!(run("divide", 1.0, 0.0), flags::DIVIDE);
    assert_eq!(run("divide", 0.0, 0.0), flags::INVALID);
    assert_eq!(run("subtract", f32::INFINITY, f32::INFINITY), flags::INVALID);
    assert_eq!(run("sqrt", -1.0, 0.0), flags::INVALID);
    assert_eq!(run("multiply", 3e38, 10.0), flags::OVER);
    assert_eq!(run("multiply", 1e-38, 1.23e-5), flags::UNDER);
    assert_eq!(run("less", f32::NAN, 0.0), 0);
    assert_eq!(run("maximum", f32::NAN, 0.0), 0);
    assert_eq!(run("fmax", 0.0, -0.0), flags::DEFER);
    assert_eq!(run("fmax", 0.0, 0.0), 0);
}

#[test]
fn casts_that_do_not_fit_are_left_to_numpy() {
    for (value, kind, left) in [
        (-128.0, Kind::I8, false),
        (127.9, Kind::I8, false),
        (128.0, Kind::I8, true),
        (-1.0, Kind::U8, true),
        (2_147_483_520.0, Kind::I32, false),
        (2_147_483_648.0, Kind::I32, true),
        (9.3e18, Kind::I64, true),
        (9.3e18, Kind::U64, false),
        (f32::NAN, Kind::I16, true),
    ] {
        let program = Program::new(&[Kind::F32], &[step("cast", kind, &[0])], &[1]).unwrap();
        let mut out = 0u64;
        let value = [value];
        let target = Operand { ptr: (&raw mut out).cast(), strides: vec![0] };
        // SAFETY: one value, and room for one of any type.
        let found = unsafe { program.run(&[1], &[operand(&value, &[1])], &[target]).unwrap() };
        assert_eq!(found & flags::DEFER != 0, left, "{value:?} {kind:?}");
    }
}

#[test]
fn programs_that_make_no_sense_are_refused() {
    let refused = |inputs: &[Kind], steps: &[Step], outputs: &[usize], text: &str| {
        let fault = Program::new(inputs, steps, outputs).unwrap_err().to_string();
        assert!(fault.contains(text), "{fault}");
    };
    let one = [Kind::F32];
    refused(&one, &[step("exp", Kind::F32, &[0])], &[1], "exp");
    refused(&one, &[step("add", Kind::F32, &[0, 1])], &[1], "value 1");
    refused(&one, &[step("add", Kind::F32, &[0])], &[1], "operands");
    refused(&one, &[step("negative", Kind::F64, &[0])], &[1], "float32");
    refused(&[Kind::I32], &[step("sqrt", Kind::I32, &[0])], &[1], "Sqrt of int32");
    refused(&[Kind::F64], &[step("cast", Kind::F16, &[0])], &[1], "float64 to float16");
    refused(&one, &[], &[1], "value 1");
    let program = Program::new(&one, &[step("negative", Kind::F32, &[0])], &[1]).unwrap();
    // SAFETY: refused before anything is read.
    let fault = unsafe { program.run(&[1], &[], &[]).unwrap_err().to_string() };
    assert!(fault.contains("expected 1, got 0"), "{fault}");
}
