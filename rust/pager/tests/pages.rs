//! Segments against a plain vector: any mix of calls, small budgets, faults, several threads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use prunus_core::{Interrupt, Never};
use prunus_pager::io::{Engines, Fault, Null, Op, What};
use prunus_pager::{DiskFile, Error, Mode, Pager, Segment};

const PATH: &str = "x";

struct Bench {
    null: Arc<Null>,
    pager: Arc<Pager>,
    file: Arc<DiskFile>,
    model: Vec<u8>,
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = prunus_pager::pool::simulate::Random(seed);
    (0..len).map(|_| random.bits() as u8).collect()
}

fn bench(budget: usize, len: usize, mode: Mode) -> Bench {
    let null = Arc::new(Null::new());
    let model = bytes(len, 7);
    null.put(Path::new(PATH), model.clone());
    let pager = Pager::new(budget, Engines::null(Arc::clone(&null))).unwrap();
    let file = pager.open(Path::new(PATH), mode).unwrap();
    Bench { null, pager, file, model }
}

fn gather(segment: &Segment, offsets: &[u64], size: usize) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; offsets.len() * size];
    segment.gather(offsets, size, &mut out, &Never)?;
    Ok(out)
}

fn expected(model: &[u8], start: u64, offsets: &[u64], size: usize) -> Vec<u8> {
    offsets.iter().flat_map(|&offset| model[(start + offset) as usize..][..size].to_vec()).collect()
}

#[test]
fn rows_come_in_their_order() {
    let Bench { pager, file, model, .. } = bench(128 << 10, 1 << 20, Mode::Read);
    for (start, page) in [(0, 4096), (4096, 8192), (8, 4096), (123, 1000), (4096, 5000)] {
        let len = model.len() as u64 - start;
        let segment = Segment::new(&pager, &file, start, len, page).unwrap();
        for size in [1, 100, 4096, 20_000] {
            let mut random = prunus_pager::pool::simulate::Random(size as u64);
            let offsets: Vec<u64> = (0..300).map(|_| random.below(len as usize - size + 1) as u64).collect();
            let rows = gather(&segment, &offsets, size).unwrap();
            assert!(rows == expected(&model, start, &offsets, size), "{start} {page} {size}");
        }
    }
    assert!(pager.stats().peak <= 128 << 10);
}

#[test]
fn neighbours_are_read_with_one_request() {
    let Bench { pager, file, null, model } = bench(4 << 20, 1 << 20, Mode::Read);
    let segment = Segment::new(&pager, &file, 0, 1 << 20, 4096).unwrap();
    let offsets: Vec<u64> = (0..256).map(|page| page * 4096).collect();
    assert!(gather(&segment, &offsets, 4096).unwrap() == model);
    let seen = null.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|request| request.len == 256 << 10 && request.pieces == 64));
    assert!(gather(&segment, &offsets, 4096).unwrap() == model);
    assert_eq!(null.seen().len(), 0);
    assert_eq!((pager.stats().misses, pager.stats().hits), (256, 256));
}

#[test]
fn whole_pages_are_written_without_reading() {
    let Bench { pager, file, null, mut model } = bench(1 << 20, 256 << 10, Mode::ReadWrite);
    let segment = Segment::new(&pager, &file, 0, 256 << 10, 8192).unwrap();
    let values = bytes(64 << 10, 1);
    segment.scatter(&[16384, 32768, 49152, 65536], 16384, &values, &Never).unwrap();
    assert_eq!(null.seen().len(), 0);
    model[16384..16384 + (64 << 10)].copy_from_slice(&values);
    assert_eq!(pager.stats().dirty, 64 << 10);
    assert!(null.bytes(Path::new(PATH)).unwrap() != model);
    segment.flush(&Never).unwrap();
    assert!(null.bytes(Path::new(PATH)).unwrap() == model);
    assert_eq!(null.seen().iter().filter(|seen| seen.op == Op::Write).count(), 1);
    // part of a page is read first
    segment.scatter(&[100_000], 10, &values[..10], &Never).unwrap();
    assert_eq!(null.seen().len(), 1);
    assert_eq!(pager.stats().dirty, 8192);
}

#[test]
fn an_error_fails_its_own_call_only() {
    let Bench { pager, file, null, model } = bench(256 << 10, 1 << 20, Mode::Read);
    let segment = Segment::new(&pager, &file, 0, 1 << 20, 4096).unwrap();
    null.inject(Fault { op: Some(Op::Read), range: 40960..45056, times: usize::MAX, what: What::Error(5) });
    let error = gather(&segment, &[0, 40960, 81920], 4096).unwrap_err();
    assert!(error.to_string().contains("read 4096 bytes at 40960"), "{error}");
    assert!(gather(&segment, &[0, 4096, 81920], 4096).is_ok());
    null.heal();
    assert!(gather(&segment, &[40960], 4096).unwrap() == model[40960..45056]);
}

#[test]
fn what_cannot_be_written_stays_and_is_told() {
    let Bench { pager, file, null, mut model } = bench(128 << 10, 1 << 20, Mode::ReadWrite);
    let segment = Segment::new(&pager, &file, 0, 1 << 20, 4096).unwrap();
    null.inject(Fault { op: Some(Op::Write), range: 0..1 << 20, times: usize::MAX, what: What::Error(28) });
    let values = bytes(16384, 3);
    segment.scatter(&[8192], 16384, &values, &Never).unwrap();
    model[8192..8192 + 16384].copy_from_slice(&values);
    assert!(segment.flush(&Never).is_err());
    assert!(segment.flush(&Never).is_err());
    assert!(gather(&segment, &[0], 1 << 16).unwrap() == model[..1 << 16]);
    // more than may be dirty cannot be taken
    let many = bytes(1 << 20, 4);
    assert!(segment.scatter(&[0], 1 << 20, &many, &Never).is_err());
    null.heal();
    segment.scatter(&[0], 1 << 20, &many, &Never).unwrap();
    // the failures of the meantime are told once
    drop(segment.flush(&Never));
    segment.flush(&Never).unwrap();
    assert!(null.bytes(Path::new(PATH)).unwrap() == many);
}

#[test]
fn guards_keep_their_pages() {
    let Bench { pager, file, model, .. } = bench(32 << 10, 1 << 20, Mode::Read);
    let segment = Segment::new(&pager, &file, 0, 1 << 20, 4096).unwrap();
    let held: Vec<_> = (0..7).map(|page| segment.pin(page * 4096 + 10, 4000, &Never).unwrap()).collect();
    let all: Vec<u64> = (0..256).map(|page| page * 4096).collect();
    assert!(gather(&segment, &all, 4096).unwrap() == model);
    for (page, guard) in held.iter().enumerate() {
        assert!(guard[..] == model[page * 4096 + 10..][..4000]);
    }
    let last = segment.pin(40960, 1, &Never).unwrap();
    assert!(matches!(gather(&segment, &[81920], 1), Err(Error::Budget { .. })));
    drop(last);
    assert!(gather(&segment, &[81920], 1).is_ok());
    assert_eq!(pager.stats().pinned, 7);
}

#[test]
fn what_was_read_ahead_is_there() {
    let Bench { pager, file, null, model } = bench(256 << 10, 1 << 20, Mode::Read);
    let segment = Segment::new(&pager, &file, 0, 1 << 20, 4096).unwrap();
    let offsets: Vec<u64> = (0..16).map(|page| page * 20480).collect();
    segment.prefetch(&offsets, 4096).unwrap();
    assert!(gather(&segment, &offsets, 4096).unwrap() == expected(&model, 0, &offsets, 4096));
    assert_eq!(null.seen().len(), 16);
    assert_eq!(pager.stats().misses, 16);
    // far too many: bounded, and nothing is lost
    let all: Vec<u64> = (0..256).map(|page| page * 4096).collect();
    segment.prefetch(&all, 4096).unwrap();
    assert!(gather(&segment, &all, 4096).unwrap() == model);
}

#[derive(Clone, Debug)]
enum Step {
    Gather(Vec<u64>, usize),
    Scatter(Vec<u64>, usize, u64),
    Prefetch(Vec<u64>, usize),
    Read(u64, u64, usize),
    Write(u64, u64, usize, u64),
    /// Adds one to every byte in place, streaming.
    Update(u64, u64, usize),
    Flush,
    Release,
    Fault(bool, u64),
    Heal,
}

const LEN: u64 = 150_001;

fn offsets() -> impl Strategy<Value = (Vec<u64>, usize)> {
    prop_oneof![1usize..300, 1usize..30_000, Just(4096usize), Just(16_384usize)]
        .prop_flat_map(|size| (prop::collection::vec(0..=LEN - size as u64, 0..12), Just(size)))
        .prop_map(|(mut offsets, size)| {
            if size.is_multiple_of(4096) {
                offsets.iter_mut().for_each(|offset| *offset -= *offset % 4096);
            }
            (offsets, size)
        })
}

fn run() -> impl Strategy<Value = (u64, u64, usize)> {
    let panel = prop_oneof![Just(4096usize), Just(16_384), 1usize..9000];
    (0..=LEN, 0..=LEN, panel, any::<bool>()).prop_map(|(a, b, panel, whole)| {
        let (begin, end) = (a.min(b), a.max(b));
        if whole { (begin / 4096 * 4096, end, panel) } else { (begin, end, panel) }
    })
}

/// Whether rows are as in the model, where that is sure.
fn same(bytes: &[u8], model: &[u8], unsure: &[bool]) -> bool {
    bytes.iter().zip(model).zip(unsure).all(|((a, b), unsure)| a == b || *unsure)
}

fn write(segment: &Arc<Segment>, begin: u64, end: u64, panel: usize, values: &[u8]) -> Result<(), Error> {
    let mut writer = segment.writer(begin, end, panel, 0)?;
    loop {
        let at = (writer.offset() - begin) as usize;
        let memory = writer.panel(&Never)?;
        if memory.is_empty() {
            return writer.close(&Never);
        }
        memory.copy_from_slice(&values[at..][..memory.len()]);
        writer.put(&Never)?;
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => offsets().prop_map(|(offsets, size)| Step::Gather(offsets, size)),
        4 => (offsets(), any::<u64>()).prop_map(|((mut offsets, size), seed)| {
            // rows that overlap in part have no order
            offsets.sort_unstable();
            offsets.dedup_by(|b, a| *b < *a + size as u64);
            Step::Scatter(offsets, size, seed)
        }),
        1 => offsets().prop_map(|(offsets, size)| Step::Prefetch(offsets, size)),
        2 => run().prop_map(|(begin, end, panel)| Step::Read(begin, end, panel)),
        2 => (run(), any::<u64>()).prop_map(|((begin, end, panel), seed)| Step::Write(begin, end, panel, seed)),
        1 => run().prop_map(|(begin, end, panel)| Step::Update(begin, end, panel)),
        1 => Just(Step::Flush),
        1 => Just(Step::Release),
        1 => (any::<bool>(), 0..LEN).prop_map(|(write, at)| Step::Fault(write, at)),
        2 => Just(Step::Heal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_calls_is_a_vector(
        steps in prop::collection::vec(step(), 1..40),
        budget in prop_oneof![Just(64usize << 10), Just(128 << 10), Just(1 << 20)],
        geometry in prop::sample::select(vec![(0u64, 4096usize), (4096, 4096), (0, 8192), (100, 4000), (4096, 1000)]),
        seed in any::<u64>(),
    ) {
        let (start, page) = geometry;
        let budget = if start % 4096 == 0 && page == 4096 { budget } else { budget.max(128 << 10) };
        let Bench { null, pager, file, mut model } = bench(budget, (start + LEN) as usize + 777, Mode::ReadWrite);
        null.shuffle(Some(seed));
        let segment = Arc::new(Segment::new(&pager, &file, start, LEN, page).unwrap());
        let most = budget / 16;
        // bytes that a failed write leaves in either state
        let mut unsure = vec![false; model.len()];
        let mut faulty = false;
        for step in steps {
            match step {
                Step::Gather(offsets, size) => match gather(&segment, &offsets, size) {
                    Ok(rows) => {
                        for (row, offset) in rows.chunks(size).zip(&offsets) {
                            let at = (start + offset) as usize;
                            for (k, &byte) in row.iter().enumerate() {
                                if !unsure[at + k] {
                                    prop_assert_eq!(byte, model[at + k], "at {}", at + k);
                                }
                            }
                        }
                    }
                    Err(error) => prop_assert!(faulty, "{error}"),
                },
                Step::Scatter(offsets, size, seed) => {
                    let values = bytes(offsets.len() * size, seed);
                    let result = segment.scatter(&offsets, size, &values, &Never);
                    prop_assert!(result.is_ok() || faulty, "{:?}", result);
                    for (row, offset) in values.chunks(size).zip(&offsets) {
                        let at = (start + offset) as usize;
                        model[at..at + size].copy_from_slice(row);
                        unsure[at..at + size].fill(result.is_err());
                    }
                }
                Step::Prefetch(offsets, size) => segment.prefetch(&offsets, size).unwrap(),
                Step::Read(begin, end, panel) => {
                    let panel = panel.min(most);
                    let mut reader = segment.reader(begin, end, panel, 0).unwrap();
                    let mut at = begin;
                    loop {
                        match reader.next(&Never) {
                            Ok(Some(panel)) => {
                                prop_assert!(panel.offset() == at || faulty);
                                at = panel.offset() + panel.len() as u64;
                                let here = (start + panel.offset()) as usize..(start + at) as usize;
                                prop_assert!(same(&panel, &model[here.clone()], &unsure[here]));
                            }
                            Ok(None) => break,
                            Err(error) => prop_assert!(faulty, "{error}"),
                        }
                    }
                    prop_assert!(at == end || faulty);
                }
                Step::Write(begin, end, panel, seed) => {
                    let values = bytes((end - begin) as usize, seed);
                    let result = write(&segment, begin, end, panel.min(most), &values);
                    prop_assert!(result.is_ok() || faulty, "{:?}", result);
                    let here = (start + begin) as usize..(start + end) as usize;
                    model[here.clone()].copy_from_slice(&values);
                    unsure[here].fill(result.is_err());
                }
                Step::Update(begin, end, panel) => {
                    let panel = panel.min(most);
                    let mut reader = segment.reader(begin, end, panel, 0).unwrap();
                    let mut writer = segment.writer(begin, end, panel, 0).unwrap();
                    let mut update = || {
                        while let Some(from) = reader.next(&Never)? {
                            let to = writer.panel(&Never)?;
                            to.copy_from_slice(&from);
                            to.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
                            writer.put(&Never)?;
                        }
                        writer.close(&Never)
                    };
                    let result: Result<(), Error> = update();
                    prop_assert!(result.is_ok() || faulty, "{:?}", result);
                    let here = (start + begin) as usize..(start + end) as usize;
                    model[here.clone()].iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
                    if result.is_err() {
                        unsure[here].fill(true);
                    }
                }
                Step::Flush => prop_assert!(segment.flush(&Never).is_ok() || faulty),
                Step::Release => prop_assert!(pager.release(&file, &Never).is_ok() || faulty),
                Step::Fault(write, at) => {
                    let op = Some(if write { Op::Write } else { Op::Read });
                    let range = start + at..start + at + 20_000;
                    null.inject(Fault { op, range, times: usize::MAX, what: What::Error(5) });
                    faulty = true;
                }
                Step::Heal => {
                    null.heal();
                    // what failed meanwhile is told once
                    drop(segment.flush(&Never));
                    faulty = false;
                }
            }
        }
        null.heal();
        drop(segment.flush(&Never));
        segment.flush(&Never).unwrap();
        prop_assert!(pager.stats().peak <= budget);
        prop_assert_eq!(pager.stats().dirty, 0);
        let file = null.bytes(Path::new(PATH)).unwrap();
        for (at, &byte) in file[..model.len()].iter().enumerate() {
            prop_assert!(unsure[at] || byte == model[at], "in the file at {}", at);
        }
    }
}

#[test]
fn threads_share_a_small_pool() {
    let Bench { pager, file, null, model } = bench(128 << 10, 1 << 20, Mode::ReadWrite);
    null.shuffle(Some(1));
    let segment = Segment::new(&pager, &file, 0, 1 << 20, 4096).unwrap();
    let parts: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let (segment, model) = (&segment, &model);
                scope.spawn(move || {
                    // each thread has every fourth run of 3000 bytes: pages are shared
                    let mut random = prunus_pager::pool::simulate::Random(thread);
                    let mut own: Vec<u8> = model.clone();
                    for round in 0..60 {
                        let mut runs: Vec<u64> =
                            (0..20).map(|_| random.below(80) as u64 * 4 + thread).collect();
                        runs.sort_unstable();
                        runs.dedup();
                        let offsets: Vec<u64> = runs.iter().map(|run| run * 3000).collect();
                        if round % 2 == 0 {
                            let values = bytes(offsets.len() * 3000, random.bits());
                            segment.scatter(&offsets, 3000, &values, &Never).unwrap();
                            for (row, &offset) in values.chunks(3000).zip(&offsets) {
                                own[offset as usize..][..3000].copy_from_slice(row);
                            }
                        } else {
                            assert!(
                                gather(segment, &offsets, 3000).unwrap() == expected(&own, 0, &offsets, 3000)
                            );
                        }
                        if round % 16 == 7 {
                            segment.flush(&Never).unwrap();
                        }
                    }
                    own
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    segment.flush(&Never).unwrap();
    let file = null.bytes(Path::new(PATH)).unwrap();
    for (run, bytes) in file.chunks(3000).enumerate() {
        assert!(bytes == &parts[run % 4][run * 3000..][..bytes.len()] || run >= 320, "run {run}");
    }
}

#[test]
fn the_least_budget_is_named() {
    let null = Arc::new(Null::new());
    assert!(matches!(
        Pager::new(1000, Engines::null(Arc::clone(&null))),
        Err(Error::Budget { budget: 1000, least: 32768, .. })
    ));
    let Bench { pager, file, .. } = bench(64 << 10, 1 << 20, Mode::Read);
    let error = Segment::new(&pager, &file, 0, 1 << 20, 65536).unwrap_err();
    assert!(matches!(error, Error::Budget { least: 524_288, .. }), "{error}");
    let Bench { pager, file, .. } = bench(524_288, 1 << 20, Mode::Read);
    assert!(Segment::new(&pager, &file, 0, 1 << 20, 65536).is_ok());
    assert!(Segment::new(&pager, &file, 0, (1 << 20) + 1, 4096).is_err());
    assert!(Segment::new(&pager, &file, 0, 1, 0).is_err());
}

#[test]
fn a_loop_larger_than_the_pool_keeps_its_part() {
    let Bench { pager, file, .. } = bench(320 << 10, 768 << 10, Mode::Read);
    let segment = Segment::new(&pager, &file, 0, 768 << 10, 4096).unwrap();
    let mut random = prunus_pager::pool::simulate::Random(2);
    for pass in 0..3 {
        let before = pager.stats();
        let mut order: Vec<u64> = (0..192).map(|page| page * 4096).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last + 1));
        }
        for part in order.chunks(8) {
            gather(&segment, part, 4096).unwrap();
        }
        let misses = pager.stats().misses - before.misses;
        assert!(pass == 0 || misses as f64 <= 0.65 * 192.0, "{misses} of 192 in pass {pass}");
    }
}

#[test]
fn panels_come_in_order_with_a_full_queue() {
    let Bench { pager, file, null, model } = bench(4 << 20, 4 << 20, Mode::Read);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 4 << 20, 4096).unwrap());
    null.pause();
    let mut reader = segment.reader(8192, 4 << 20, 128 << 10, 6).unwrap();
    assert_eq!(null.waiting(), 6);
    null.resume();
    let mut at = 8192;
    while let Some(panel) = reader.next(&Never).unwrap() {
        assert_eq!(panel.offset(), at);
        assert!(panel[..] == model[at as usize..][..panel.len()]);
        at += panel.len() as u64;
    }
    assert_eq!(at, 4 << 20);
    drop(reader);
    assert_eq!(pager.stats().pinned, 0);
}

#[test]
fn a_second_pass_reads_only_what_found_no_room() {
    let Bench { pager, file, null, model } = bench(2 << 20, 4 << 20, Mode::Read);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 4 << 20, 4096).unwrap());
    let mut read = vec![];
    for _ in 0..4 {
        let mut reader = segment.reader(0, 4 << 20, 128 << 10, 2).unwrap();
        while let Some(panel) = reader.next(&Never).unwrap() {
            let at = panel.offset() as usize;
            assert!(panel[..] == model[at..][..panel.len()]);
        }
        drop(reader);
        read.push(null.seen().iter().map(|seen| seen.len).sum::<usize>());
    }
    assert_eq!(read[0], 4 << 20);
    // all but the panels' own memory holds pages
    assert!(read[1..].iter().all(|&bytes| bytes <= (4 << 20) - (1 << 20)), "{read:?}");
    assert!(pager.stats().peak <= 2 << 20);
}

#[test]
fn a_stream_leaves_pages_in_use_alone() {
    let Bench { pager, file, null, .. } = bench(1 << 20, 8 << 20, Mode::Read);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 8 << 20, 4096).unwrap());
    let hot: Vec<u64> = (0..128).map(|page| page * 16384).collect();
    for _ in 0..3 {
        gather(&segment, &hot, 4096).unwrap();
    }
    let mut reader = segment.reader(4 << 20, 8 << 20, 64 << 10, 2).unwrap();
    while reader.next(&Never).unwrap().is_some() {}
    drop(reader);
    null.seen();
    gather(&segment, &hot, 4096).unwrap();
    assert!(null.seen().is_empty());
}

#[test]
fn streams_see_what_the_pool_has() {
    let Bench { pager, file, null, mut model } = bench(1 << 20, 256 << 10, Mode::ReadWrite);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 256 << 10, 4096).unwrap());
    let values = bytes(40_000, 9);
    segment.scatter(&[12_345], 40_000, &values, &Never).unwrap();
    model[12_345..52_345].copy_from_slice(&values);
    let mut reader = segment.reader(0, 256 << 10, 32 << 10, 4).unwrap();
    // written after reading began
    segment.scatter(&[200_000], 40_000, &values, &Never).unwrap();
    model[200_000..240_000].copy_from_slice(&values);
    while let Some(panel) = reader.next(&Never).unwrap() {
        let at = panel.offset() as usize;
        assert!(panel[..] == model[at..][..panel.len()], "{at}");
    }
    drop(reader);
    // a writer over cached and dirty pages
    let all = bytes(256 << 10, 10);
    write(&segment, 0, 256 << 10, 32 << 10, &all).unwrap();
    assert!(gather(&segment, &[0], 256 << 10).unwrap() == all);
    segment.flush(&Never).unwrap();
    assert!(null.bytes(Path::new(PATH)).unwrap() == all);
}

/// Answers like a program whose other threads are about to use the pool, and waits for them.
struct Asked(Arc<Pager>, AtomicUsize);

impl Interrupt for Asked {
    fn interrupted(&self) -> bool {
        let (tell, told) = channel();
        let pager = Arc::clone(&self.0);
        std::thread::spawn(move || tell.send(pager.stats().resident));
        told.recv_timeout(Duration::from_secs(5)).expect("the pool is locked while its caller is asked");
        self.1.fetch_add(1, Relaxed) == 2
    }
}

#[test]
fn who_is_asked_whether_to_stop_may_use_the_pool() {
    let Bench { pager, file, null, model } = bench(64 << 10, 256 << 10, Mode::ReadWrite);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 256 << 10, 4096).unwrap());
    let asked = || Asked(Arc::clone(&pager), AtomicUsize::new(0));
    let stopped =
        |result: Result<(), Error>| assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    // the drive does not answer a flush
    segment.scatter(&[0], 4096, &model[..4096], &Never).unwrap();
    null.pause();
    stopped(segment.flush(&asked()));
    // a panel of bytes that are on their way
    let mut writer = segment.writer(0, 8192, 4096, 1).unwrap();
    writer.panel(&Never).unwrap().copy_from_slice(&model[..4096]);
    stopped(writer.put(&asked()));
    null.resume();
    segment.flush(&Never).unwrap();
    null.pause();
    writer.put(&Never).unwrap();
    let mut out = [0; 4096];
    stopped(segment.gather(&[0], 4096, &mut out, &asked()));
    null.resume();
    writer.close(&Never).unwrap();
    // all frames are held
    let held: Vec<_> = (0..16).map(|page| segment.pin(page * 4096, 1, &Never).unwrap()).collect();
    stopped(segment.gather(&[16 * 4096], 4096, &mut out, &asked()));
    drop(held);
    pager.flush(&Never).unwrap();
}

#[test]
fn pages_wait_for_panels_under_way() {
    let Bench { pager, file, null, model } = bench(1 << 20, 64 << 10, Mode::ReadWrite);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 64 << 10, 32 << 10).unwrap());
    gather(&segment, &[0], 1).unwrap();
    null.pause();
    let mut writer = segment.writer(0, 16 << 10, 16 << 10, 1).unwrap();
    writer.panel(&Never).unwrap().fill(1);
    writer.put(&Never).unwrap();
    // the page is there still, as the panel is a part of it: what changes it now is newer than the panel
    segment.scatter(&[0], 100, &[2; 100], &Never).unwrap();
    let flushed = std::thread::scope(|scope| {
        let flush = scope.spawn(|| segment.flush(&Never));
        std::thread::sleep(Duration::from_millis(100));
        let waiting = null.waiting();
        null.resume();
        flush.join().unwrap().unwrap();
        waiting
    });
    assert_eq!(flushed, 1, "only the panel is on its way");
    writer.close(&Never).unwrap();
    let mut model = model;
    model[..16 << 10].fill(1);
    model[..100].fill(2);
    assert!(null.bytes(Path::new(PATH)).unwrap() == model);
}

#[test]
fn a_writer_that_is_interrupted_can_be_closed_again() {
    let Bench { pager, file, null, mut model } = bench(1 << 20, 64 << 10, Mode::ReadWrite);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 64 << 10, 4096).unwrap());
    let mut writer = segment.writer(0, 64 << 10, 5000, 2).unwrap();
    writer.panel(&Never).unwrap().fill(1);
    writer.put(&Never).unwrap();
    let range = 4096..8192;
    null.inject(Fault { op: Some(Op::Write), range, times: 1, what: What::Error(libc::ENOSPC) });
    assert!(matches!(writer.close(&Never), Err(Error::Io { .. })));
    writer.close(&Never).unwrap();
    model[..5000].fill(1);
    assert!(null.bytes(Path::new(PATH)).unwrap() == model);
    drop((pager, file));
}

#[test]
fn a_panel_that_is_kept_is_nobody_elses() {
    let Bench { pager, file, model, .. } = bench(64 << 10, 64 << 10, Mode::ReadWrite);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 64 << 10, 4096).unwrap());
    let mut writer = segment.writer(0, 64 << 10, 4096, 1).unwrap();
    assert!(writer.keep().is_none());
    let place = {
        let memory = writer.panel(&Never).unwrap();
        memory.copy_from_slice(&model[..4096]);
        memory.as_mut_ptr()
    };
    let kept = writer.keep();
    writer.put(&Never).unwrap();
    assert_ne!(writer.panel(&Never).unwrap().as_mut_ptr(), place);
    writer.close(&Never).unwrap();
    let all: Vec<u64> = (0..16).map(|page| page * 4096).collect();
    gather(&segment, &all, 4096).unwrap();
    // SAFETY: the memory is kept, and nobody else's.
    unsafe { place.write_bytes(7, 4096) };
    assert!(gather(&segment, &all, 4096).unwrap() == model);
    assert_eq!(pager.stats().pinned, 4096);
    drop(kept);
    assert_eq!(pager.stats().pinned, 0);
}

#[test]
fn a_failed_panel_is_told() {
    let Bench { pager, file, null, model } = bench(1 << 20, 256 << 10, Mode::ReadWrite);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 256 << 10, 4096).unwrap());
    null.inject(Fault { op: None, range: 70_000..70_001, times: usize::MAX, what: What::Error(5) });
    let mut reader = segment.reader(0, 256 << 10, 32 << 10, 4).unwrap();
    let (mut good, mut bad) = (0, 0);
    loop {
        match reader.next(&Never) {
            Ok(Some(panel)) => {
                assert!(panel[..] == model[panel.offset() as usize..][..panel.len()]);
                good += 1;
            }
            Ok(None) => break,
            Err(error) => {
                assert!(matches!(error, Error::Io { .. }), "{error}");
                bad += 1;
            }
        }
    }
    assert_eq!((good, bad), (7, 1));
    assert!(write(&segment, 0, 256 << 10, 32 << 10, &model).is_err());
    null.heal();
    write(&segment, 0, 256 << 10, 32 << 10, &model).unwrap();
    assert_eq!((pager.stats().pinned, pager.stats().dirty), (0, 0));
}

#[test]
fn a_writer_goes_on_while_its_panels_are_under_way() {
    let Bench { pager, file, null, model } = bench(4 << 20, 1 << 20, Mode::ReadWrite);
    let segment = Arc::new(Segment::new(&pager, &file, 0, 1 << 20, 4096).unwrap());
    null.pause();
    let mut writer = segment.writer(0, 1 << 20, 128 << 10, 6).unwrap();
    for _ in 0..6 {
        let at = writer.offset() as usize;
        let memory = writer.panel(&Never).unwrap();
        memory.copy_from_slice(&model[at..][..memory.len()]);
        writer.put(&Never).unwrap();
    }
    assert_eq!(null.waiting(), 6);
    null.resume();
    writer.close(&Never).unwrap();
    assert_eq!(pager.stats().pinned, 0);
}
