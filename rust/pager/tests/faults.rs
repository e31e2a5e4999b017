//! Faults, on files in memory: what one request meets, and nobody else.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use prunus_pager::io::{Engine, Engines, Fault, Null, Op, Seen, What};
use prunus_pager::{DiskFile, Error, Mode, SECTOR};
use support::{pattern, transfer};

const PLACE: &str = "data";
const LEN: usize = 64 * SECTOR;

fn engine() -> (Arc<Null>, Arc<DiskFile>, Vec<u8>) {
    let null = Arc::new(Null::new());
    let bytes = pattern(LEN, 1);
    null.put(Path::new(PLACE), bytes.clone());
    let file = DiskFile::open(Path::new(PLACE), Mode::ReadWrite, &Engines::null(Arc::clone(&null))).unwrap();
    (null, file, bytes)
}

fn fault(op: Op, at: usize, times: usize, what: What) -> Fault {
    Fault { op: Some(op), range: at as u64..at as u64 + 1, times, what }
}

fn each(sectors: usize) -> Vec<(u64, Vec<usize>)> {
    (0..LEN).step_by(sectors * SECTOR).map(|at| (at as u64, vec![SECTOR; sectors])).collect()
}

#[test]
fn a_bad_sector_fails_the_requests_that_touch_it() {
    let (null, file, bytes) = engine();
    null.inject(fault(Op::Read, 9 * SECTOR + 5, usize::MAX, What::Error(libc::EIO)));
    for (number, (got, memory)) in transfer(&file, Op::Read, &each(4), |_, _| ()).into_iter().enumerate() {
        if number == 2 {
            assert_eq!(got.unwrap_err().raw_os_error(), Some(libc::EIO));
        } else {
            assert_eq!(got.unwrap(), 4 * SECTOR);
            assert_eq!(memory, bytes[number * 4 * SECTOR..][..4 * SECTOR]);
        }
    }
    let error = file.read_exact(9 * SECTOR as u64, &mut [0; 10]).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EIO)));
    assert!(error.to_string().starts_with("data: read 10 bytes at 36864: "), "{error}");
    null.heal();
    let mut out = [0; 10];
    file.read_exact(9 * SECTOR as u64, &mut out).unwrap();
    assert_eq!(out, bytes[9 * SECTOR..][..10]);
}

#[test]
fn a_full_drive_is_an_error_and_what_was_there_stays() {
    let (null, file, bytes) = engine();
    null.inject(fault(Op::Write, 3 * SECTOR, 1, What::Error(libc::ENOSPC)));
    let error = file.write_all(3 * SECTOR as u64 + 7, &[1; 100]).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC)));
    assert_eq!(null.bytes(Path::new(PLACE)).unwrap(), bytes);
    file.write_all(3 * SECTOR as u64 + 7, &[1; 100]).unwrap();
    assert_eq!(null.bytes(Path::new(PLACE)).unwrap()[3 * SECTOR + 7..][..100], [1; 100]);
}

#[test]
fn a_write_that_moves_nothing_is_no_endless_loop() {
    let (null, file, _) = engine();
    null.inject(fault(Op::Write, 0, usize::MAX, What::Short(0)));
    let got = &transfer(&file, Op::Write, &[(0, vec![SECTOR])], |_, _| ())[0].0;
    assert_eq!(got.as_ref().unwrap_err().kind(), std::io::ErrorKind::WriteZero);
}

#[test]
fn a_system_that_always_says_again_is_believed_in_the_end() {
    let (null, file, _) = engine();
    null.inject(fault(Op::Read, 0, usize::MAX, What::Error(libc::EAGAIN)));
    let got = &transfer(&file, Op::Read, &[(0, vec![SECTOR])], |_, _| ())[0].0;
    assert_eq!(got.as_ref().unwrap_err().raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn a_sync_that_fails_says_so() {
    let (null, file, _) = engine();
    null.inject(Fault { op: Some(Op::Sync), range: 0..0, times: 1, what: What::Error(libc::EIO) });
    assert!(matches!(file.sync(), Err(Error::Io { .. })));
    file.sync().unwrap();
}

#[test]
fn a_paused_engine_lets_through_what_is_asked_for() {
    let (null, file, _) = engine();
    null.pause();
    let reader = std::thread::spawn({
        let file = Arc::clone(&file);
        move || transfer(&file, Op::Read, &each(16), |_, _| ()).len()
    });
    while null.waiting() < 4 {
        std::thread::yield_now();
    }
    null.step(3);
    while null.counters().requests < 3 {
        std::thread::yield_now();
    }
    assert_eq!((null.waiting(), null.counters().requests), (1, 3));
    let fd = file.descriptor();
    let seen =
        |at: u64| Seen { fd, op: Op::Read, offset: at * 16 * SECTOR as u64, len: 16 * SECTOR, pieces: 16 };
    assert_eq!(null.seen(), (0..4).map(seen).collect::<Vec<_>>());
    null.resume();
    assert_eq!(reader.join().unwrap(), 4);
}

#[test]
fn a_delayed_request_holds_up_no_other() {
    let (null, file, _) = engine();
    let delay = Duration::from_millis(30);
    null.inject(fault(Op::Read, 0, 1, What::Delay(delay)));
    let start = Instant::now();
    let ends = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for at in 0..2_u64 {
            let (file, ends) = (&file, &ends);
            scope.spawn(move || {
                file.read_exact(at * SECTOR as u64, &mut [0; 8]).unwrap();
                ends.lock().unwrap().push((at, start.elapsed()));
            });
        }
    });
    let slow = ends.into_inner().unwrap().into_iter().find(|(at, _)| *at == 0).unwrap().1;
    assert!(slow >= delay);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Calls that are cut short or interrupted anywhere, in any order, change nothing of what arrives.
    #[test]
    fn short_and_interrupted_calls_are_continued(
        faults in prop::collection::vec((0..LEN, 0..4_usize, 1..60_000_usize), 0..40),
        seed in 1..u64::MAX,
        cut in 0..SECTOR,
        sectors in 1_usize..20,
        write in any::<bool>(),
    ) {
        let (null, file, mut bytes) = engine();
        null.shuffle(Some(seed));
        let size = LEN - cut;
        file.resize(size as u64).unwrap();
        bytes.truncate(size);
        let op = if write { Op::Write } else { Op::Read };
        for (at, sort, most) in faults {
            let what = match sort {
                0 => What::Error(libc::EINTR),
                1 => What::Error(libc::EAGAIN),
                // Direct I/O stops between the drive's sectors only.
                _ => What::Short(most.next_multiple_of(512)),
            };
            null.inject(fault(op, at, 2, what));
        }
        let requests = each(sectors);
        let new = pattern(LEN + 20 * SECTOR, seed);
        let answers = transfer(&file, op, &requests, |number, memory| {
            memory.copy_from_slice(&new[number * sectors * SECTOR..][..memory.len()]);
        });
        for ((at, lens), (got, memory)) in requests.iter().zip(answers) {
            let (at, len) = (*at as usize, lens.len() * SECTOR);
            if write {
                prop_assert_eq!(got.unwrap(), len);
            } else {
                let want = &bytes[at..(at + len).min(size)];
                prop_assert_eq!(got.unwrap(), want.len());
                prop_assert!(&memory[..want.len()] == want);
            }
        }
        file.sync().unwrap();
        let now = null.bytes(Path::new(PLACE)).unwrap();
        let want = if write { &new[..size] } else { &bytes[..] };
        prop_assert!(now == want);
    }
}
