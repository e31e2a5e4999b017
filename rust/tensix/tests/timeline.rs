//! Timelines: a thread does one thing at a time, what is recorded adds up to what is counted, and nobody's time changes.

use std::collections::HashMap;

use prunus_core::Never;
use prunus_tensix::numerics::{Fidelity, Format};
use prunus_tensix::programs::blocking::Request;
use prunus_tensix::programs::dynamic::{self, Decide, Pruning};
use prunus_tensix::programs::epilogue::Epilogue;
use prunus_tensix::programs::matmul::{Handles, Operands, program};
use prunus_tensix::report::Run;
use prunus_tensix::timeline::Lane;
use prunus_tensix::{ChipSpec, Options, Simulator};

const TILES: (u32, u32, u32) = (8, 12, 16);
const GRID: (u16, u16) = (4, 2);

fn product(timeline: u32) -> Run {
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), false);
    let format = Format::from_name("bfloat16").expect("a format");
    let operands = Operands { in0_sharded: false, out_sharded: false, format, packer_l1_acc: true };
    let request = Request { tiles: TILES, grid: GRID, operands, wide: false, tuned: true };
    let blocking = request.choose(chip.spec()).expect("it fits");
    let tile = format.tile_bytes() as u32;
    let (m, k, n) = TILES;
    let in0 = u32::from(chip.buffer(tile, m * k, None).expect("room"));
    let in1 = chip.buffer(tile, k * n, None).expect("room");
    let out = u32::from(chip.buffer(tile, m * n, None).expect("room"));
    let program = program(&chip, &blocking, &operands, &Handles { in0, in1, out }, false).expect("a program");
    let options = Options { fidelity: Fidelity::HiFi2, timeline, ..Options::default() };
    chip.run(program, options, &Never).expect("an end")
}

/// The same product, whose left operand's tiles are pruned as it runs; every third one is live.
fn pruned(timeline: u32) -> Run {
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), false);
    let formats = (Format::Bfloat16, Format::Bfloat16, Format::Bfloat16);
    let blocking =
        dynamic::cut(chip.spec(), TILES, GRID, formats, false, &Epilogue::default()).expect("it fits");
    let (m, k, n) = TILES;
    assert_eq!((blocking.per_core.0 * 2, blocking.per_core.1 * 4), (m, n));
    let live: Vec<bool> = (0..m * k).map(|tile| tile % 3 == 0).collect();
    let pruning = Pruning { decide: Decide::Scan, tau: 0.0, mask: Some(&live), rows: m };
    let buffers = [m * k, k * n, m * n].map(|pages| chip.buffer(2048, pages, None).expect("room"));
    let (program, _) =
        dynamic::program(&chip, &blocking, &pruning, formats, buffers.into(), false, Epilogue::default())
            .expect("a program");
    let options = Options { fidelity: Fidelity::HiFi2, timeline, ..Options::default() };
    chip.run(program, options, &Never).expect("an end")
}

#[test]
fn products_and_bytes_are_counted() {
    let run = product(0);
    let (m, k, n) = TILES;
    assert_eq!(run.cores.iter().map(|core| core.products).sum::<u64>(), u64::from(m * k * n));
    assert_eq!(run.cores.iter().filter(|core| core.computes).count(), 8);
    assert_eq!(run.fidelity, Fidelity::HiFi2);
    assert!(run.timeline.is_none());
    let packed: u64 = run.cores.iter().map(|core| core.pack_bytes).sum();
    assert!(packed >= u64::from(m * n) * 2048, "every tile of the result is packed");
    let unpacked: u64 = run.cores.iter().map(|core| core.unpack_bytes).sum();
    assert!(unpacked >= u64::from(m * k + k * n) * 2048, "every operand is unpacked");
}

#[test]
fn recording_changes_nothing() {
    for run in [product, pruned] {
        let (without, mut with) = (run(0), run(1 << 20));
        assert!(with.timeline.take().is_some_and(|timeline| timeline.dropped == 0));
        assert_eq!(with, without);
    }
}

#[test]
fn threads_do_one_thing_at_a_time() {
    one_thing_at_a_time(&product(1 << 20));
    let run = pruned(1 << 20);
    one_thing_at_a_time(&run);
    let timeline = run.timeline.as_ref().expect("recorded");
    let has = |lane: Lane, name: &str| {
        let labels = timeline.intervals.iter().filter(|interval| interval.lane == lane);
        labels.map(|interval| &timeline.labels[usize::from(interval.label)]).any(|label| label.name == name)
    };
    for lane in [Lane::Unpack, Lane::Math] {
        assert!(has(lane, "reduce_tile") && has(lane, "l1_load"), "{lane:?}");
    }
}

fn one_thing_at_a_time(run: &Run) {
    let timeline = run.timeline.as_ref().expect("recorded");
    let calculates = ["matmul_block", "copy_tile", "unary_tile", "reduce_tile"];
    let mut ends = HashMap::new();
    let (mut math, mut waited) = (HashMap::new(), HashMap::new());
    for interval in &timeline.intervals {
        let lane = (interval.core, interval.lane as u8);
        let before = ends.insert(lane, interval.end).unwrap_or(0);
        assert!(before <= interval.start, "{interval:?} begins before {before}");
        assert!(interval.start < interval.end && interval.end <= run.end, "{interval:?}");
        assert!(interval.busy <= interval.end - interval.start, "{interval:?}");
        let label = timeline.labels[usize::from(interval.label)];
        if label.waits {
            assert_eq!(interval.busy, 0);
            *waited.entry(lane).or_insert(0) += interval.end - interval.start;
        } else if interval.lane == Lane::Math && calculates.contains(&label.name) {
            *math.entry(interval.core).or_insert(0) += interval.busy;
        }
    }
    for (id, core) in run.cores.iter().enumerate().filter(|(_, core)| core.took_part) {
        let id = id as u16;
        assert_eq!(math[&id], core.math_busy);
        for (lane, (end, waits)) in core.lanes.iter().zip(core.thread_ends.iter().zip(&core.thread_waits)) {
            let lane = (id, *lane as u8);
            assert_eq!(waited.get(&lane).copied().unwrap_or(0), *waits);
            assert!(ends[&lane] <= *end);
        }
    }
    assert_eq!(timeline.kernels.len(), 3 * 8);
}

#[test]
fn intervals_are_bounded() {
    let all = product(1 << 20).timeline.expect("recorded");
    let some = product(100).timeline.expect("recorded");
    assert_eq!(some.intervals.len(), 100);
    // Intervals are joined only while there is room for them.
    assert!(some.dropped >= all.intervals.len() as u64 - 100);
    assert_eq!(some.intervals[..50], all.intervals[..50]);
}
