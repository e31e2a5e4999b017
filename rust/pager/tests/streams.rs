//! Many streams at once on a budget that is too small for all of them.

use std::path::Path;
use std::sync::{Arc, Barrier};

use prunus_core::Never;
use prunus_pager::io::{Engines, Null};
use prunus_pager::{Error, Mode, Pager, Reader, Segment};

const PATH: &str = "x";

fn bench(budget: usize, len: usize) -> (Arc<Pager>, Arc<Segment>, Vec<u8>) {
    let null = Arc::new(Null::new());
    let mut random = prunus_pager::pool::simulate::Random(3);
    let model: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
    null.put(Path::new(PATH), model.clone());
    let pager = Pager::new(budget, Engines::null(null)).unwrap();
    let file = pager.open(Path::new(PATH), Mode::ReadWrite).unwrap();
    let segment = Arc::new(Segment::new(&pager, &file, 0, len as u64, 4096).unwrap());
    (pager, segment, model)
}

/// Reads what a reader has left, and sees whether it ends where it should. As in a loop of Python's, a panel is
/// there until the next one is.
fn exhaust(reader: &mut Reader, model: &[u8], mut at: usize, end: usize) {
    let mut last = reader.next(&Never).unwrap();
    while let Some(panel) = &last {
        assert_eq!(panel.offset(), at as u64);
        assert!(panel[..] == model[at..at + panel.len()]);
        at += panel.len();
        last = reader.next(&Never).unwrap();
    }
    assert_eq!(at, end);
}

#[test]
fn readers_that_nobody_reads_starve_no_other() {
    // panels that fill slabs, and those of which one and a bit would
    for panel in [64 << 10, 36 << 10] {
        let len = 2 << 20;
        let (pager, segment, mut model) = bench(512 << 10, len);
        let mut idle: Vec<Reader> =
            (0..16).map(|_| segment.reader(0, len as u64 / 2, panel, 0).unwrap()).collect();
        let mut busy = segment.reader(0, len as u64, panel, 0).unwrap();
        exhaust(&mut busy, &model, 0, len);
        let mut writer = segment.writer(len as u64 / 2, len as u64, panel, 0).unwrap();
        loop {
            let part = writer.panel(&Never).unwrap();
            if part.is_empty() {
                break;
            }
            part.fill(9);
            writer.put(&Never).unwrap();
        }
        writer.close(&Never).unwrap();
        model[len / 2..].fill(9);
        let mut out = vec![0; len / 2];
        segment.gather(&[len as u64 / 2], len / 2, &mut out, &Never).unwrap();
        assert!(out == model[len / 2..]);
        for reader in idle.iter_mut().rev() {
            exhaust(reader, &model, 0, len / 2);
        }
        drop((idle, busy, writer));
        assert_eq!(pager.stats().pinned, 0);
        assert!(pager.stats().peak <= 512 << 10);
    }
}

#[test]
fn threads_with_several_begun_readers_all_finish() {
    let (threads, readers, len) = (12, 3, 1 << 20);
    let (pager, segment, model) = bench(256 << 10, len);
    let begun = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (segment, model, begun) = (&segment, &model, &begun);
            scope.spawn(move || {
                let first = |reader: usize| thread * 8192 + reader * 4096;
                let mut mine: Vec<Reader> = (0..readers)
                    .map(|reader| segment.reader(first(reader) as u64, len as u64, 32 << 10, 0).unwrap())
                    .collect();
                begun.wait();
                // those that were begun last have nothing under way
                for (reader, stream) in mine.iter_mut().enumerate().rev() {
                    exhaust(stream, model, first(reader), len);
                }
            });
        }
    });
    assert_eq!(pager.stats().pinned, 0);
    assert!(pager.stats().peak <= 256 << 10);
}

#[test]
fn who_finds_no_room_for_a_panel_is_told_of_the_panel() {
    let (_pager, segment, model) = bench(64 << 10, 256 << 10);
    let guards: Vec<_> = (0..16).map(|page| segment.pin(page * 4096, 4096, &Never).unwrap()).collect();
    let mut reader = segment.reader(128 << 10, 256 << 10, 8192, 0).unwrap();
    let Err(error) = reader.next(&Never) else { panic!("a panel without a frame") };
    assert!(matches!(error, Error::Budget { .. }));
    assert!(error.to_string().contains("a frame of 8192 bytes beside 16 pinned pages"), "{error}");
    drop(guards);
    exhaust(&mut reader, &model, 128 << 10, 256 << 10);
}
