//! What every engine promises, on real files.

mod support;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use prunus_pager::io::{Counters, Kind, Op, Piece, Request};
use prunus_pager::{Aligned, DiskFile, Error, Mode, SECTOR};
use support::{Scratch, all, pattern, transfer};

/// Runs a test with a file of these bytes on every engine.
fn on_all(bytes: &[u8], test: impl Fn(Arc<DiskFile>)) {
    for engines in all() {
        let scratch = Scratch::new();
        let path = scratch.file("data");
        let file = DiskFile::open(&path, Mode::CreateNew { size: 0 }, &engines).unwrap();
        file.write_all(0, bytes).unwrap();
        test(file);
    }
}

#[test]
fn more_pieces_than_one_call_takes() {
    let bytes = pattern(3000 * SECTOR, 2);
    on_all(&bytes, |file| {
        let (got, memory) = transfer(&file, Op::Read, &[(0, vec![SECTOR; 3000])], |_, _| ()).remove(0);
        assert_eq!(got.unwrap(), bytes.len());
        assert!(memory == bytes);
        let (got, _) =
            transfer(&file, Op::Write, &[(0, vec![SECTOR; 3000])], |_, memory| memory.fill(7)).remove(0);
        assert_eq!(got.unwrap(), bytes.len());
        let mut out = vec![0; bytes.len()];
        file.read_exact(0, &mut out).unwrap();
        assert!(out.iter().all(|&byte| byte == 7));
    });
}

#[test]
fn reads_stop_at_the_end_of_the_file() {
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, 4608, 8192, 12_288 + 512] {
        let bytes = pattern(size, 3);
        on_all(&bytes, |file| {
            for at in [0, SECTOR, 3 * SECTOR, 400 * SECTOR] {
                let (got, memory) =
                    transfer(&file, Op::Read, &[(at as u64, vec![SECTOR, 3 * SECTOR])], |_, _| ()).remove(0);
                let want = &bytes[at.min(size)..(at + 4 * SECTOR).min(size)];
                assert_eq!(got.unwrap(), want.len(), "{:?}: {size} bytes from {at}", file.kind());
                assert_eq!(&memory[..want.len()], want);
            }
            let short = file.read_exact(1, &mut vec![0; size]).err();
            match short {
                Some(Error::Short { offset: 1, expected, got, .. }) => {
                    assert_eq!((expected as usize, got as usize), (size, size - 1));
                }
                None => assert_eq!(size, 0),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn many_more_requests_than_depth() {
    let bytes = pattern(64 * SECTOR, 4);
    on_all(&bytes, |file| {
        let requests: Vec<_> = (0..2000_u64).map(|i| (i * 7 % 64 * SECTOR as u64, vec![SECTOR])).collect();
        let before = file.engine().counters();
        for ((at, _), (got, memory)) in requests.iter().zip(transfer(&file, Op::Read, &requests, |_, _| ())) {
            assert_eq!(got.unwrap(), SECTOR);
            assert_eq!(memory, bytes[*at as usize..][..SECTOR]);
        }
        let Counters { requests, read, calls, depth, .. } = file.engine().counters();
        assert_eq!(requests - before.requests, 2000);
        assert_eq!(read - before.read, 2000 * SECTOR as u64);
        assert!(calls > before.calls);
        if file.kind() != Kind::Null {
            let most = 2000 * file.engine().depth() as u64;
            assert!((2000..=most).contains(&(depth - before.depth)), "{depth}");
        }
    });
}

#[test]
fn an_empty_request_and_an_impossible_one_are_answered() {
    on_all(&[1; 100], |file| {
        let (tell, told) = channel();
        let request = |offset, pieces| {
            let tell = tell.clone();
            file.request(Op::Read, offset, pieces, Arc::new(()), Box::new(move |got| tell.send(got).unwrap()))
        };
        file.submit(Vec::new());
        file.submit(vec![request(0, Vec::new())]);
        assert_eq!(told.recv().unwrap().unwrap(), 0);
        let endless = Piece { ptr: std::ptr::null_mut(), len: usize::MAX };
        for request in [request(0, vec![endless, endless]), request(u64::MAX - 8191, vec![endless])] {
            file.submit(vec![request]);
            assert_eq!(told.recv().unwrap().unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        }
        let nowhere = Piece { ptr: std::ptr::without_provenance_mut(SECTOR), len: SECTOR };
        if file.kind() != Kind::Null {
            file.submit(vec![request(0, vec![nowhere])]);
            assert_eq!(told.recv().unwrap().unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
    });
}

#[test]
fn a_closed_descriptor_is_an_error() {
    on_all(&[1; 100], |file| {
        let (tell, told) = channel();
        let memory = Arc::new(Aligned::new(SECTOR).unwrap());
        let request = Request {
            fd: 1_000_000,
            op: Op::Read,
            offset: 0,
            pieces: vec![Piece { ptr: memory.as_ptr(), len: SECTOR }],
            owner: memory,
            done: Box::new(move |got| tell.send(got).unwrap()),
        };
        file.engine().submit(vec![request]);
        let error = told.recv().unwrap().unwrap_err();
        assert!(error.raw_os_error() == Some(libc::EBADF) || file.kind() == Kind::Null, "{error}");
        file.read_exact(0, &mut [0; 100]).unwrap();
    });
}

#[test]
fn completions_may_submit_and_may_panic() {
    on_all(&pattern(SECTOR, 5), |file| {
        let (tell, told) = channel();
        let tell = Arc::new(Mutex::new(tell));
        fn chain(file: &Arc<DiskFile>, left: usize, tell: Arc<Mutex<std::sync::mpsc::Sender<usize>>>) {
            let memory = Arc::new(Aligned::new(SECTOR).unwrap());
            let piece = Piece { ptr: memory.as_ptr(), len: SECTOR };
            let then = Arc::clone(file);
            let done = Box::new(move |got: std::io::Result<usize>| {
                assert_eq!(got.unwrap(), SECTOR);
                tell.lock().unwrap().send(left).unwrap();
                if left > 0 {
                    chain(&then, left - 1, Arc::clone(&tell));
                }
                drop(tell);
                // Without a message, which would be taken for a failure of the test.
                std::panic::resume_unwind(Box::new(()));
            });
            file.submit(vec![file.request(Op::Read, 0, vec![piece], memory, done)]);
        }
        chain(&file, 100, tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), (0..=100).rev().collect::<Vec<_>>());
    });
}

#[test]
fn an_engine_that_is_dropped_ends_what_it_has_begun() {
    let bytes = pattern(256 * SECTOR, 6);
    for engines in all() {
        let scratch = Scratch::new();
        let path = scratch.file("data");
        let file = DiskFile::open(&path, Mode::CreateNew { size: 0 }, &engines).unwrap();
        file.write_all(0, &bytes).unwrap();
        let (tell, told) = channel();
        let batch = (0..256_u64).map(|at| {
            let memory = Arc::new(Aligned::new(SECTOR).unwrap());
            let piece = Piece { ptr: memory.as_ptr(), len: SECTOR };
            let tell = tell.clone();
            let done = Box::new(move |got: std::io::Result<usize>| tell.send(got.unwrap()).unwrap());
            file.request(Op::Read, at * SECTOR as u64, vec![piece], memory, done)
        });
        let batch = batch.collect();
        file.submit(batch);
        drop((file, engines, tell));
        assert_eq!(told.iter().sum::<usize>(), bytes.len());
    }
}

#[test]
fn many_threads_share_an_engine() {
    let bytes = pattern(64 * SECTOR, 7);
    on_all(&bytes, |file| {
        std::thread::scope(|scope| {
            for thread in 0..6_u64 {
                let (file, bytes) = (&file, &bytes);
                // One at a time: an engine that misses a wake-up hangs.
                scope.spawn(move || {
                    for turn in 0..150 {
                        let at = (turn * 13 + thread * 7) % 63 * SECTOR as u64;
                        let (got, memory) =
                            transfer(file, Op::Read, &[(at, vec![SECTOR; 2])], |_, _| ()).remove(0);
                        assert_eq!(got.unwrap(), 2 * SECTOR);
                        assert_eq!(memory, bytes[at as usize..][..2 * SECTOR]);
                    }
                });
            }
        });
        assert!(file.engine().counters().requests >= 900);
    });
}
