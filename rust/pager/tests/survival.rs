//! What goes on after an engine ended, a file was cut, or a panel's edges could not be written.

use std::path::Path;
use std::sync::Arc;

use prunus_core::Never;
use prunus_pager::io::{Engines, Fault, Null, Op, What};
use prunus_pager::{DiskFile, Error, Mode, Pager, Segment};

const PATH: &str = "x";
const PAGE: usize = 4096;

struct Bench {
    null: Arc<Null>,
    pager: Arc<Pager>,
    file: Arc<DiskFile>,
    model: Vec<u8>,
}

fn bench(budget: usize, len: usize) -> Bench {
    let null = Arc::new(Null::new());
    let mut random = prunus_pager::pool::simulate::Random(5);
    let model: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
    null.put(Path::new(PATH), model.clone());
    let pager = Pager::new(budget, Engines::null(Arc::clone(&null))).unwrap();
    let file = pager.open(Path::new(PATH), Mode::ReadWrite).unwrap();
    Bench { null, pager, file, model }
}

impl Bench {
    fn segment(&self, page: usize) -> Arc<Segment> {
        Arc::new(Segment::new(&self.pager, &self.file, 0, self.file.size(), page).unwrap())
    }

    fn fault(&self, op: Op, at: usize, what: What) {
        self.null.inject(Fault { op: Some(op), range: at as u64..at as u64 + 1, times: 1, what });
    }

    fn stored(&self) -> Vec<u8> {
        self.null.bytes(Path::new(PATH)).unwrap()
    }
}

/// All whole pages of a segment, one row each, one call each.
fn read(segment: &Segment, pages: std::ops::Range<usize>) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    for page in pages {
        let mut out = vec![0; PAGE];
        segment.gather(&[(page * PAGE) as u64], PAGE, &mut out, &Never)?;
        all.extend(out);
    }
    Ok(all)
}

#[test]
fn frames_that_the_system_may_still_fill_are_nobody_elses() {
    let bench = bench(64 << 10, 256 << 10);
    let segment = bench.segment(PAGE);
    bench.fault(Op::Read, 2 * PAGE, What::Abandon);
    assert!(matches!(read(&segment, 2..3), Err(Error::Io { .. })));
    // every frame that there is gets a page
    assert!(read(&segment, 20..60).unwrap() == bench.model[20 * PAGE..60 * PAGE]);
    assert_eq!(bench.null.move_late(), 1);
    assert!(read(&segment, 0..64).unwrap() == bench.model);
    assert!(read(&segment, 48..64).unwrap() == bench.model[48 * PAGE..]);
    assert_eq!(bench.pager.stats().resident, 64 << 10, "the frame counts, but serves nobody");
}

#[test]
fn frames_that_the_system_may_still_write_keep_their_page() {
    let mut bench = bench(64 << 10, 256 << 10);
    let segment = bench.segment(PAGE);
    segment.scatter(&[3 * PAGE as u64], PAGE, &[9; PAGE], &Never).unwrap();
    bench.model[3 * PAGE..4 * PAGE].fill(9);
    bench.fault(Op::Write, 3 * PAGE, What::Abandon);
    assert!(matches!(segment.flush(&Never), Err(Error::Io { .. })));
    segment.flush(&Never).unwrap();
    assert!(read(&segment, 0..64).unwrap() == bench.model);
    assert_eq!(bench.null.move_late(), 1);
    assert!(bench.stored() == bench.model);
    assert!(read(&segment, 0..64).unwrap() == bench.model);
}

#[test]
fn panels_that_the_system_may_still_move_are_nobody_elses() {
    let mut bench = bench(256 << 10, 256 << 10);
    let segment = bench.segment(PAGE);
    bench.fault(Op::Read, 70_000, What::Abandon);
    let mut reader = segment.reader(0, 256 << 10, 16 << 10, 2).unwrap();
    let mut failed = 0;
    loop {
        match reader.next(&Never) {
            Ok(Some(panel)) => {
                assert!(panel[..] == bench.model[panel.offset() as usize..][..panel.len()]);
                if failed == 1 {
                    bench.null.move_late();
                }
                assert!(panel[..] == bench.model[panel.offset() as usize..][..panel.len()]);
            }
            Ok(None) => break,
            Err(_) => failed += 1,
        }
    }
    assert_eq!(failed, 1);
    bench.fault(Op::Write, 70_000, What::Abandon);
    let mut writer = segment.writer(64 << 10, 96 << 10, 16 << 10, 1).unwrap();
    writer.panel(&Never).unwrap().fill(7);
    writer.put(&Never).unwrap();
    assert!(writer.close(&Never).is_err());
    let mut writer = segment.writer(128 << 10, 256 << 10, 16 << 10, 4).unwrap();
    while !writer.panel(&Never).unwrap().is_empty() {
        writer.panel(&Never).unwrap().fill(8);
        writer.put(&Never).unwrap();
    }
    writer.close(&Never).unwrap();
    assert_eq!(bench.null.move_late(), 1);
    bench.model[64 << 10..80 << 10].fill(7);
    bench.model[128 << 10..].fill(8);
    assert!(bench.stored() == bench.model);
}

#[test]
fn callers_get_their_memory_back_when_an_engine_ends() {
    let bench = bench(64 << 10, 256 << 10);
    for (at, len) in [(5, 100), (0, 8192), (4000, 10_000)] {
        bench.fault(Op::Read, 4096, What::Abandon);
        bench.fault(Op::Read, 0, What::Abandon);
        let mut out = vec![0; len];
        let (first, last) = (bench.file.read_exact(at, &mut out), out.clone());
        assert!(first.is_err());
        assert!(bench.null.move_late() > 0);
        assert!(out == last, "bytes came after the call had ended");
        bench.null.heal();
        bench.file.read_exact(at, &mut out).unwrap();
        assert!(out == bench.model[at as usize..][..len]);
    }
}

#[test]
fn what_was_to_be_written_beyond_a_new_end_is_forgotten() {
    for (page, size) in [(PAGE, 100_000), (8192, 65_536), (16 << 10, 20_000), (PAGE, 0)] {
        let mut bench = bench(512 << 10, 128 << 10);
        let segment = bench.segment(page);
        let offsets: Vec<u64> = (0..128).map(|row| row * 1024).collect();
        segment.scatter(&offsets, 1024, &vec![3; 128 << 10], &Never).unwrap();
        bench.model.fill(3);
        bench.pager.resize(&bench.file, size as u64, &Never).unwrap();
        bench.model.truncate(size);
        segment.flush(&Never).unwrap();
        assert_eq!(bench.pager.stats().dirty, 0);
        assert!(bench.stored() == bench.model, "{page} {size}");
        let beyond = size as u64 / 1024 * 1024;
        let mut out = vec![0; 1024];
        for error in [
            segment.gather(&[beyond], 1024, &mut out, &Never).unwrap_err(),
            segment.scatter(&[beyond], 1024, &[1; 1024], &Never).unwrap_err(),
            segment.reader(0, beyond + 1024, 4096, 0).err().unwrap(),
            segment.writer(0, beyond + 1024, 4096, 0).err().unwrap(),
        ] {
            assert!(matches!(error, Error::Changed { .. }), "{error}");
        }
        // longer again: what is new is zero
        bench.pager.resize(&bench.file, 128 << 10, &Never).unwrap();
        bench.model.resize(128 << 10, 0);
        let again = bench.segment(page);
        let mut out = vec![1; 128 << 10];
        for segment in [&again, &segment] {
            segment.gather(&offsets, 1024, &mut out, &Never).unwrap();
            assert!(out == bench.model);
        }
    }
}

#[test]
fn readers_of_what_was_cut_off_say_so_and_keep_nothing_of_it() {
    const PANEL: usize = 64 << 10;
    let len = 1 << 20;
    for regrown in [false, true] {
        let null = Arc::new(Null::new());
        null.put(Path::new(PATH), vec![7; len]);
        let pager = Pager::new(4 << 20, Engines::null(null)).unwrap();
        let file = pager.open(Path::new(PATH), Mode::ReadWrite).unwrap();
        let segment = Arc::new(Segment::new(&pager, &file, 0, len as u64, PANEL).unwrap());
        let mut reader = segment.reader(0, len as u64, PANEL, 0).unwrap();
        let first = reader.next(&Never).unwrap().unwrap();
        assert!(first.iter().all(|&byte| byte == 7));
        pager.resize(&file, len as u64 / 2, &Never).unwrap();
        let again = regrown.then(|| {
            pager.resize(&file, len as u64, &Never).unwrap();
            Segment::new(&pager, &file, 0, len as u64, PANEL).unwrap()
        });
        for at in (PANEL..len).step_by(PANEL) {
            if at < len / 2 || regrown {
                let panel = reader.next(&Never).unwrap().unwrap();
                let value = if at < len / 2 { 7 } else { 0 };
                assert!(panel.offset() == at as u64 && panel.iter().all(|&byte| byte == value), "{at}");
            } else {
                assert!(matches!(reader.next(&Never), Err(Error::Changed { .. })), "{at}");
            }
        }
        assert!(reader.next(&Never).unwrap().is_none());
        let again = again.unwrap_or_else(|| {
            pager.resize(&file, len as u64, &Never).unwrap();
            Segment::new(&pager, &file, 0, len as u64, PANEL).unwrap()
        });
        let mut out = vec![1; len];
        again.gather(&[0], len, &mut out, &Never).unwrap();
        assert!(out[..len / 2].iter().all(|&byte| byte == 7));
        assert!(out[len / 2..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn to_cut_a_file_waits_for_what_is_under_way_there() {
    let mut bench = bench(512 << 10, 128 << 10);
    let segment = bench.segment(PAGE);
    segment.scatter(&[64 << 10], 8192, &[3; 8192], &Never).unwrap();
    bench.null.pause();
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| segment.flush(&Never));
        while bench.null.waiting() == 0 {
            std::thread::yield_now();
        }
        struct Now;
        impl prunus_core::Interrupt for Now {
            fn interrupted(&self) -> bool {
                true
            }
        }
        let stopped = bench.pager.resize(&bench.file, 4096, &Now);
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(bench.file.size(), 128 << 10);
        let cut = scope.spawn(|| bench.pager.resize(&bench.file, 66 << 10, &Never));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!cut.is_finished());
        bench.null.resume();
        flush.join().unwrap().unwrap();
        cut.join().unwrap().unwrap();
    });
    bench.model[64 << 10..66 << 10].fill(3);
    bench.model.truncate(66 << 10);
    segment.flush(&Never).unwrap();
    assert!(bench.stored() == bench.model);
    let mut out = vec![0; 66 << 10];
    segment.gather(&[0], 66 << 10, &mut out, &Never).unwrap();
    assert!(out == bench.model);
}

#[test]
fn a_panel_that_could_not_be_written_is_not_seen() {
    // first edge, last edge, both in one sector, and whole sectors that a page has only a part of
    for (begin, end, fault) in
        [(100, 20_000, 0), (4096, 18_000, 16_384), (4200, 4300, 4096), (0, 16_384, 8192)]
    {
        for dirty in [false, true] {
            let mut bench = bench(1 << 20, 128 << 10);
            let segment = bench.segment(32 << 10);
            let mut out = vec![0; 128 << 10];
            segment.gather(&[0], 128 << 10, &mut out, &Never).unwrap();
            if dirty {
                segment.scatter(&[24 << 10], 10, &[1; 10], &Never).unwrap();
                bench.model[24 << 10..][..10].fill(1);
            }
            bench.fault(Op::Write, fault, What::Error(libc::ENOSPC));
            let mut writer = segment.writer(begin, end, 32 << 10, 1).unwrap();
            writer.panel(&Never).unwrap().fill(7);
            assert!(writer.put(&Never).and_then(|()| writer.close(&Never)).is_err());
            let mut stored = bench.stored();
            segment.gather(&[0], 128 << 10, &mut out, &Never).unwrap();
            if dirty {
                stored[24 << 10..][..10].fill(1);
                // whole sectors are sent off before it is known that they fail: there the page is newer
                if fault == 8192 {
                    stored[..16_384].fill(7);
                }
            }
            assert!(out == stored, "{begin}..{end} {dirty}");
            drop(writer);
            segment.flush(&Never).unwrap();
            assert!(bench.stored() == stored);
        }
    }
}

#[test]
fn what_a_drive_says_is_told_once_and_forgotten() {
    for code in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EROFS, libc::ENXIO] {
        let mut bench = bench(1 << 20, 128 << 10);
        let segment = bench.segment(PAGE);
        let number = |error: Error| match error {
            Error::Io { source, .. } => source.raw_os_error(),
            other => panic!("{other}"),
        };
        bench.fault(Op::Read, 5 * PAGE, What::Error(code));
        assert_eq!(number(read(&segment, 5..6).unwrap_err()), Some(code));
        assert!(read(&segment, 0..32).unwrap() == bench.model);
        segment.scatter(&[5 * PAGE as u64, 9 * PAGE as u64], PAGE, &[1; 2 * PAGE], &Never).unwrap();
        bench.fault(Op::Write, 5 * PAGE, What::Error(code));
        assert_eq!(number(segment.flush(&Never).unwrap_err()), Some(code));
        // the other page is in the file, and both are what they were made
        assert!(bench.stored()[9 * PAGE..10 * PAGE] == [1; PAGE]);
        assert!(bench.stored()[5 * PAGE..6 * PAGE] == bench.model[5 * PAGE..6 * PAGE]);
        bench.model[5 * PAGE..6 * PAGE].fill(1);
        bench.model[9 * PAGE..10 * PAGE].fill(1);
        assert!(read(&segment, 0..32).unwrap() == bench.model);
        segment.flush(&Never).unwrap();
        assert!(bench.stored() == bench.model);
        bench.fault(Op::Sync, 0, What::Error(code));
        segment.scatter(&[0], PAGE, &bench.model[..PAGE], &Never).unwrap();
        assert_eq!(number(segment.flush(&Never).unwrap_err()), Some(code));
    }
}

#[test]
fn interruptions_and_short_transfers_are_nobodys_business() {
    for what in [What::Error(libc::EINTR), What::Error(libc::EAGAIN), What::Short(512), What::Short(PAGE)] {
        let mut bench = bench(1 << 20, 128 << 10);
        let segment = bench.segment(8192);
        for at in (0..128 << 10).step_by(3 * PAGE) {
            bench.fault(Op::Read, at, what);
            bench.fault(Op::Write, at, what);
        }
        let mut out = vec![0; 128 << 10];
        segment.gather(&[0], 128 << 10, &mut out, &Never).unwrap();
        assert!(out == bench.model);
        bench.model.fill(4);
        segment.scatter(&[0], 128 << 10, &bench.model, &Never).unwrap();
        segment.flush(&Never).unwrap();
        assert!(bench.stored() == bench.model);
    }
}
