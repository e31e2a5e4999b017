//! Products of chosen tiles against double precision.

use proptest::prelude::*;
use prunus_core::Never;
use prunus_tensix::numerics::{Fidelity, Format, Matrix, MatrixMut, tilize, untilize};
use prunus_tensix::programs::gathered::{Group, Shape, program, spread};
use prunus_tensix::verbs::Unary;
use prunus_tensix::{ChipSpec, Options, Simulator};

/// A sparse matrix of tiles times a dense one, all of small integers: every sum is exact.
fn product(rows: u32, inner: u32, columns: u32, live: &[bool], relu: bool) {
    let (h, w) = (1, 2);
    let mut chip = Simulator::new(ChipSpec::named("n300").expect("shipped"), true);
    let format = Format::Bfloat16;
    let tile = format.tile_bytes() as u32;
    let value = |i: usize, seed: usize| ((i * 7 + i / 5 + seed * 3) % 5) as f32 - 2.0;
    let (m, k, n) = (rows as usize * 32, inner as usize * 32, columns as usize * 32);
    let a: Vec<f32> = (0..m * k)
        .map(|at| if live[at / k / 32 * inner as usize + at % k / 32] { value(at, 1) } else { 0.0 })
        .collect();
    let b: Vec<f32> = (0..k * n).map(|at| value(at, 2)).collect();
    let buffers = (
        chip.buffer(tile, rows * inner, None).expect("room"),
        chip.buffer(tile, inner * columns, None).expect("room"),
        chip.buffer(4096, rows * columns, None).expect("room"),
    );
    chip.write_buffer(buffers.0, &tilize(format, &Matrix::new(&a, m, k).expect("a")).expect("a")).expect("a");
    chip.write_buffer(buffers.1, &tilize(format, &Matrix::new(&b, k, n).expect("b")).expect("b")).expect("b");
    let mut groups = Vec::new();
    for i in 0..rows {
        for j in (0..columns).step_by(w) {
            let steps = (0..inner).filter(|l| live[(i * inner + l) as usize]);
            groups.push(Group {
                out: (0..w as u32).map(|c| i * columns + j + c).collect(),
                steps: steps.flat_map(|l| [i * inner + l, l * columns + j, l * columns + j + 1]).collect(),
            });
        }
    }
    let shape = Shape {
        group: (h, w as u32),
        formats: (format, format, Format::Float32),
        buffers,
        activation: relu.then_some(Unary::Relu),
    };
    let options = Options { fidelity: Fidelity::HiFi4, wide: true, ..Options::default() };
    let program = program(&chip, spread(groups, 7), &shape, true).expect("a program");
    chip.run(program, options, &Never).expect("an end");
    let mut got = vec![0.0_f32; m * n];
    let bytes = chip.read_buffer(buffers.2).expect("all written").to_vec();
    untilize(Format::Float32, &bytes, &mut MatrixMut::new(&mut got, m, n).expect("c")).expect("tiles");
    for i in 0..m {
        for j in 0..n {
            let sum: f32 = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            let want = if relu { sum.max(0.0) } else { sum };
            assert_eq!(got[i * n + j], want, "at {i}, {j}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn sparse_times_dense(
        rows in 1_u32..4,
        inner in 1_u32..7,
        pairs in 1_u32..3,
        live in proptest::collection::vec(any::<bool>(), 18),
        relu in any::<bool>(),
    ) {
        product(rows, inner, 2 * pairs, &live, relu);
    }
}

#[test]
fn groups_are_spread_by_their_steps() {
    let group = |steps: usize| Group { out: vec![0], steps: vec![0; steps] };
    let parts = spread([1, 9, 2, 8, 3, 7].map(group).to_vec(), 3);
    let loads: Vec<usize> = parts.iter().map(|part| part.iter().map(|g| g.steps.len()).sum()).collect();
    assert_eq!(loads, [10, 10, 10]);
}
