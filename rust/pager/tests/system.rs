//! What a system may refuse, how a process may end up with less than it began with, and what files become while
//! they are open.
#![cfg(target_os = "linux")]

mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use prunus_core::Never;
use prunus_pager::io::{Engine, Engines, Kind, Op, Piece, Uring};
use prunus_pager::{Aligned, DiskFile, Error, Mode, Pager, SECTOR, Segment, sync_parent};
use support::{Scratch, all, pattern, transfer};

/// Runs something in a forked process, where it may change limits and rights; it must not panic.
fn in_child(run: impl FnOnce()) {
    // SAFETY: the child uses the allocator and threads of its own, which the C library allows after a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = i32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        // SAFETY: nothing of the parent's is to be ended here.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the answer fits.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "the child failed: {status}");
}

fn limit(what: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a call with memory of its own.
    assert_eq!(unsafe { libc::setrlimit(what, &raw const limit) }, 0);
}

/// A rule of a filter of system calls: calls of `number` whose argument has all of some bits fail.
struct Refused {
    number: libc::c_long,
    argument: usize,
    bits: u32,
    error: i32,
}

/// Refuses system calls of this process from now on.
fn refuse(rules: &[Refused]) {
    let code = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |at: u32| code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let give = |value: u32| code(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    let mut program = Vec::new();
    for rule in rules {
        program.extend([
            load(0),
            code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 4, rule.number as u32),
            load(16 + 8 * rule.argument as u32),
            code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, rule.bits),
            code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, rule.bits),
            give(libc::SECCOMP_RET_ERRNO | rule.error as u32),
        ]);
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program ends in a return on every way, and is copied.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

fn no_uring(error: i32) -> Refused {
    Refused { number: libc::SYS_io_uring_setup, argument: 0, bits: 0, error }
}

fn no_direct(error: i32) -> Refused {
    Refused { number: libc::SYS_fcntl, argument: 2, bits: libc::O_DIRECT as u32, error }
}

/// Opens a file by the first engine there is, reads it, and tells which and why.
fn ladder(path: &std::path::Path, bytes: &[u8]) -> (Kind, String) {
    let engines = Engines::new(None, 8).unwrap();
    let file = DiskFile::open(path, Mode::Read, &engines).unwrap();
    let mut out = vec![0; bytes.len()];
    file.read_exact(0, &mut out).unwrap();
    assert!(out == bytes);
    (file.kind(), file.why().to_owned())
}

#[test]
fn the_ladder_goes_down_as_the_system_refuses() {
    let bytes = pattern(100_000, 1);
    let scratch = Scratch::new();
    let path = scratch.with("data", &bytes);
    for error in [libc::EPERM, libc::ENOSYS, libc::ENOMEM] {
        in_child(|| {
            refuse(&[no_uring(error)]);
            let why = format!("io_uring is refused: {}", std::io::Error::from_raw_os_error(error));
            assert_eq!(ladder(&path, &bytes), (Kind::Direct, why));
            let pinned = Engines::new(Some(Kind::Uring), 8).unwrap();
            let refused = DiskFile::open(&path, Mode::Read, &pinned).unwrap_err();
            assert!(refused.to_string().contains("io_uring was asked for, but it is refused"), "{refused}");
        });
    }
    for error in [libc::EINVAL, libc::EOPNOTSUPP] {
        in_child(|| {
            refuse(&[no_direct(error)]);
            let why = format!("direct I/O is refused: {}", std::io::Error::from_raw_os_error(error));
            assert_eq!(ladder(&path, &bytes), (Kind::Buffered, why));
            for kind in [Kind::Uring, Kind::Direct] {
                let pinned = Engines::new(Some(kind), 8).unwrap();
                let refused = DiskFile::open(&path, Mode::Create { size: 5 }, &pinned).unwrap_err();
                assert!(
                    refused.to_string().contains(&format!("{kind} was asked for, but direct")),
                    "{refused}"
                );
                let new = scratch.file("new");
                assert!(DiskFile::open(&new, Mode::CreateNew { size: 5 }, &pinned).is_err());
                assert!(!new.exists());
            }
            assert!(std::fs::read(&path).unwrap() == bytes, "a file that could not be opened is as it was");
        });
    }
}

#[test]
fn the_environment_pins_an_engine() {
    let scratch = Scratch::new();
    let path = scratch.with("data", &[1; 10]);
    in_child(|| {
        for (name, kind) in [("direct", Kind::Direct), ("buffered", Kind::Buffered)] {
            // SAFETY: no other thread of this process reads the environment.
            unsafe { std::env::set_var("PRUNUS_IO", name) };
            let engines = Engines::new(None, 8).unwrap();
            assert_eq!(engines.pin(), Some(kind));
            let file = DiskFile::open(&path, Mode::Read, &engines).unwrap();
            assert_eq!((file.kind(), file.why()), (kind, &*format!("{name} was asked for")));
            assert_eq!(Engines::new(Some(Kind::Uring), 8).unwrap().pin(), Some(Kind::Uring));
        }
        for name in ["", "uring", "null", "DIRECT"] {
            // SAFETY: as above.
            unsafe { std::env::set_var("PRUNUS_IO", name) };
            match Engines::new(None, 8) {
                Ok(engines) => assert!(name.is_empty() && engines.pin().is_none()),
                Err(error) => {
                    assert!(error.to_string().contains("expected io_uring, direct or buffered"), "{error}")
                }
            }
        }
    });
    assert!(matches!(Engines::new(None, 0), Err(Error::Argument { what: "depth", .. })));
    assert!(Engines::new(Some(Kind::Null), 8).is_err());
}

#[test]
fn no_descriptors_left() {
    let scratch = Scratch::new();
    let path = scratch.with("data", &[1; 10]);
    in_child(|| {
        let before =
            DiskFile::open(&path, Mode::Read, &Engines::new(Some(Kind::Direct), 8).unwrap()).unwrap();
        limit(libc::RLIMIT_NOFILE, 0);
        let engines = Engines::new(None, 8).unwrap();
        let error = DiskFile::open(&path, Mode::Read, &engines).unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EMFILE)),
            "{error}"
        );
        assert!(Uring::new(8).is_err());
        before.read_exact(0, &mut [0; 10]).unwrap();
    });
}

#[test]
fn no_locked_memory() {
    let bytes = pattern(64 * SECTOR, 2);
    let scratch = Scratch::new();
    let path = scratch.with("data", &bytes);
    in_child(|| {
        let file = DiskFile::open(&path, Mode::Read, &Engines::new(Some(Kind::Direct), 8).unwrap()).unwrap();
        limit(libc::RLIMIT_MEMLOCK, 0);
        // The limit is not asked of those with all rights.
        // SAFETY: a call without memory; refused where there are none to give up.
        unsafe { libc::setuid(65534) };
        let Ok(ring) = Uring::new(8) else { return };
        let memory = Arc::new(Aligned::new(bytes.len()).unwrap());
        let error = ring.register(&memory).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory, "{error}");
        let (tell, told) = std::sync::mpsc::channel();
        let pieces = vec![Piece { ptr: memory.as_ptr(), len: bytes.len() }];
        let done = Box::new(move |got| tell.send(got).unwrap());
        ring.submit(vec![file.request(Op::Read, 0, pieces, Arc::clone(&memory) as _, done)]);
        assert_eq!(told.recv().unwrap().unwrap(), bytes.len());
        // SAFETY: the request is done.
        assert!(unsafe { std::slice::from_raw_parts(memory.as_ptr(), bytes.len()) } == bytes);
    });
}

#[test]
fn registered_memory_is_used_like_any() {
    if Uring::new(1).is_err() {
        return;
    }
    let bytes = pattern(64 * SECTOR, 3);
    let scratch = Scratch::new();
    let path = scratch.with("data", &bytes);
    let file = DiskFile::open(&path, Mode::ReadWrite, &Engines::new(Some(Kind::Uring), 8).unwrap()).unwrap();
    let memory = Arc::new(Aligned::new(64 * SECTOR).unwrap());
    match file.engine().register(&memory) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => return,
        Err(error) => panic!("{error}"),
    }
    // SAFETY: a request is under way only inside the calls below.
    let slice = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), memory.len()) };
    file.read_exact(0, slice).unwrap();
    assert!(slice == bytes);
    slice.reverse();
    file.write_all(0, slice).unwrap();
    assert!(std::fs::read(&path).unwrap() == slice);
}

#[test]
fn a_ring_has_its_next_request_before_the_last_one_is_told() {
    if Uring::new(1).is_err() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.with("data", &[1; 2 * SECTOR]);
    let file = DiskFile::open(&path, Mode::Read, &Engines::new(Some(Kind::Uring), 1).unwrap()).unwrap();
    let (first, second) = (Arc::new(Aligned::new(SECTOR).unwrap()), Arc::new(Aligned::new(SECTOR).unwrap()));
    let (tell, told) = std::sync::mpsc::channel();
    let piece = |memory: &Aligned| vec![Piece { ptr: memory.as_ptr(), len: SECTOR }];
    let (seen, other) = (tell.clone(), Arc::clone(&second));
    // The engine's only thread waits in here: what comes meanwhile was asked for before.
    let wait = Box::new(move |_| {
        let begin = std::time::Instant::now();
        // SAFETY: memory of a request that has not ended, whose bytes only the system changes.
        while unsafe { other.as_ptr().add(SECTOR - 1).read_volatile() } == 0 && begin.elapsed().as_secs() < 10
        {
            std::thread::yield_now();
        }
        // SAFETY: as above.
        seen.send(Ok(usize::from(unsafe { other.as_ptr().add(SECTOR - 1).read_volatile() }))).unwrap();
    });
    let done = Box::new(move |got| tell.send(got).unwrap());
    file.submit(vec![
        file.request(Op::Read, 0, piece(&first), Arc::clone(&first) as _, wait),
        file.request(Op::Read, SECTOR as u64, piece(&second), Arc::clone(&second) as _, done),
    ]);
    assert_eq!(told.recv().unwrap().unwrap(), 1);
    assert_eq!(told.recv().unwrap().unwrap(), SECTOR);
}

#[test]
fn a_forked_child_has_engines_of_its_own() {
    let bytes = pattern(64 * SECTOR, 4);
    for engines in all() {
        let scratch = Scratch::new();
        let path = scratch.file("data");
        let file = DiskFile::open(&path, Mode::CreateNew { size: 0 }, &engines).unwrap();
        if file.kind() == Kind::Null {
            continue;
        }
        file.write_all(0, &bytes).unwrap();
        let requests: Vec<_> = (0..64).map(|at| (at * SECTOR as u64, vec![SECTOR])).collect();
        let all = |file: &Arc<DiskFile>| {
            for (number, (got, memory)) in
                transfer(file, Op::Read, &requests, |_, _| ()).into_iter().enumerate()
            {
                assert_eq!(got.unwrap(), SECTOR);
                assert!(memory == bytes[number * SECTOR..][..SECTOR]);
            }
        };
        in_child(|| all(&file));
        all(&file);
        in_child(|| {
            all(&file);
            in_child(|| all(&file));
        });
    }
}

#[test]
fn a_dead_ring_is_an_error_and_never_a_hang() {
    if Uring::new(1).is_err() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.with("data", &[1; SECTOR]);
    in_child(|| {
        let inherited = rings();
        let engines = Engines::new(Some(Kind::Uring), 8).unwrap();
        let file = DiskFile::open(&path, Mode::Read, &engines).unwrap();
        file.read_exact(0, &mut [0; 10]).unwrap();
        // As programs do that become daemons and close all they have.
        let nothing = std::fs::File::open("/dev/null").unwrap();
        for ring in rings().into_iter().filter(|ring| !inherited.contains(ring)) {
            // SAFETY: a call without memory.
            assert_eq!(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&nothing), ring) }, ring);
        }
        let many: Vec<_> = (0..100).map(|_| (0, vec![SECTOR])).collect();
        for (got, _) in transfer(&file, Op::Read, &many, |_, _| ()) {
            // What the sleeping thread was woken for may still pass.
            assert!(got.is_err() || got.is_ok_and(|got| got == SECTOR));
        }
        for (got, _) in transfer(&file, Op::Read, &many, |_, _| ()) {
            assert!(got.is_err());
        }
        assert!(file.read_exact(0, &mut [0; 10]).is_err());
        assert!(file.engine().register(&Arc::new(Aligned::new(1).unwrap())).is_err());
        // What is opened from now on has another ring.
        let again = DiskFile::open(&path, Mode::Read, &engines).unwrap();
        again.read_exact(0, &mut [0; 10]).unwrap();
        assert_eq!(engines.in_use().len(), 2);
    });
}

#[test]
fn a_ring_that_cannot_be_woken_is_an_error_and_never_a_hang() {
    if Uring::new(1).is_err() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.with("data", &[1; SECTOR]);
    in_child(|| {
        // SAFETY: a call without memory. Where it hangs the child ends, and the test fails.
        unsafe { libc::alarm(20) };
        let inherited = named("anon_inode:[eventfd]");
        let file = DiskFile::open(&path, Mode::Read, &Engines::new(Some(Kind::Uring), 8).unwrap()).unwrap();
        file.read_exact(0, &mut [0; 10]).unwrap();
        // until the thread sleeps
        std::thread::sleep(std::time::Duration::from_millis(100));
        let nothing = std::fs::File::open("/dev/null").unwrap();
        for wake in named("anon_inode:[eventfd]").into_iter().filter(|wake| !inherited.contains(wake)) {
            // SAFETY: a call without memory.
            assert_eq!(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&nothing), wake) }, wake);
        }
        for _ in 0..3 {
            assert!(file.read_exact(0, &mut [0; 10]).is_err());
        }
    });
}

/// Descriptors of this process that are rings.
fn rings() -> Vec<i32> {
    named("anon_inode:[io_uring]")
}

fn named(name: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let named = |path: &std::path::Path| std::fs::read_link(path).is_ok_and(|to| to.as_os_str() == name);
    let number = |path: &std::path::Path| path.file_name()?.to_str()?.parse().ok();
    entries.map(|entry| entry.path()).filter(|path| named(path)).filter_map(|path| number(&path)).collect()
}

#[test]
fn what_others_have_written_is_never_cut_off() {
    for engines in all() {
        let scratch = Scratch::new();
        let path = scratch.file("data");
        let open = || DiskFile::open(&path, Mode::Create { size: 0 }, &engines).unwrap();
        let size = || std::fs::metadata(&path).unwrap().len();
        let file = open();
        if file.kind() == Kind::Null {
            continue;
        }
        // a forked child closes the file after its parent has gone on
        file.write_all(0, &[1; 5000]).unwrap();
        let mut file = Some(file);
        in_child(|| {
            let parent = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            parent.set_len(8192).unwrap();
            drop(file.take());
            assert_eq!(size(), 8192);
        });
        drop(file);
        // another process writes behind what was written here
        for more in [100, 3192, 100_000] {
            let file = open();
            file.write_all(0, &[1; 5000]).unwrap();
            let mut other = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut other, &vec![2; more]).unwrap();
            file.sync().unwrap();
            drop(file);
            // what ends as padding does cannot be told from it
            assert!(size() == 5000 + more as u64 || more == 3192);
        }
    }
}

#[test]
fn a_file_that_is_being_written_is_the_same_to_who_opens_it() {
    let scratch = Scratch::new();
    let path = scratch.with("data", &[0; 5000]);
    let pager = Pager::new(1 << 20, Engines::new(Some(Kind::Direct), 8).unwrap());
    let Ok(pager) = pager else { return };
    let Ok(file) = pager.open(&path, Mode::ReadWrite) else { return };
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Relaxed) {
                file.write_all(4500, &[1; 500]).unwrap();
            }
        });
        let same = (0..300).all(|_| Arc::ptr_eq(&pager.open(&path, Mode::Read).unwrap(), &file));
        end.store(true, Relaxed);
        assert!(same);
    });
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let scratch = Scratch::new();
    for engines in all().iter().filter(|engines| engines.pin() != Some(Kind::Null)) {
        let open =
            |path: &std::path::Path, mode| DiskFile::open(path, mode, engines).map(|_| ()).unwrap_err();
        let code = |error: &Error| match error {
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        };
        assert_eq!(code(&open(&scratch.file("absent"), Mode::Read)), Some(libc::ENOENT));
        assert_eq!(code(&open(&scratch.file("absent/x"), Mode::Create { size: 1 })), Some(libc::ENOENT));
        assert_eq!(code(&open(&scratch.file(""), Mode::Read)), Some(libc::EISDIR));
        assert_eq!(code(&open(&scratch.file(""), Mode::Create { size: 1 })), Some(libc::EISDIR));
        let there = scratch.with("there", b"abc");
        assert_eq!(code(&open(&there, Mode::CreateNew { size: 1 })), Some(libc::EEXIST));
        assert_eq!(std::fs::read(&there).unwrap(), b"abc");
        let fifo = scratch.file(&format!("fifo-{:?}", engines.pin()));
        let name = std::ffi::CString::new(fifo.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name ends in a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for mode in [Mode::Read, Mode::ReadWrite, Mode::Create { size: 1 }] {
            assert!(open(&fifo, mode).to_string().contains("expected a regular file, this is a FIFO"));
        }
        assert!(open("/dev/null".as_ref(), Mode::Read).to_string().contains("this is a device"));
    }
}

#[test]
fn rights_are_the_systems() {
    let scratch = Scratch::new();
    let path = scratch.with("data", b"abc");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    in_child(|| {
        // SAFETY: a call without memory; refused where there are no rights to give up.
        unsafe { libc::setuid(65534) };
        let engines = Engines::new(None, 8).unwrap();
        // Where the directory may not be searched either, that is refused first, with the same error.
        let error = DiskFile::open(&path, Mode::ReadWrite, &engines).unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EACCES)),
            "{error}"
        );
    });
    let file = DiskFile::open(&path, Mode::Read, &Engines::new(None, 8).unwrap()).unwrap();
    for error in [file.write_all(0, b"x").unwrap_err(), file.resize(1).unwrap_err()] {
        assert!(error.to_string().contains("expected one that is open for writing"), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"abc");
}

#[test]
fn any_name_and_links() {
    let scratch = Scratch::new();
    let odd = scratch.file("").join(OsStr::from_bytes(b"\xff \n\xc3\x28'"));
    let engines = Engines::new(None, 8).unwrap();
    let file = DiskFile::open(&odd, Mode::CreateNew { size: 5 }, &engines).unwrap();
    file.write_all(1, b"abc").unwrap();
    file.sync().unwrap();
    file.check_unchanged().unwrap();
    assert_eq!(std::fs::read(&odd).unwrap(), b"\0abc\0");
    let link = scratch.file("link");
    symlink(&odd, &link).unwrap();
    let linked = DiskFile::open(&link, Mode::ReadWrite, &engines).unwrap();
    linked.write_all(0, b"x").unwrap();
    linked.sync().unwrap();
    linked.check_unchanged().unwrap();
    sync_parent(&link).unwrap();
    sync_parent("no-such-file".as_ref()).unwrap();
    assert_eq!(std::fs::read(&odd).unwrap(), b"xabc\0");
}

#[test]
fn files_that_change_are_noticed() {
    let scratch = Scratch::new();
    let engines = Engines::new(None, 8).unwrap();
    let open = |mode| {
        (DiskFile::open(&scratch.with("data", &[1; 100]), mode, &engines).unwrap(), scratch.file("data"))
    };
    let fault = |file: &DiskFile| match file.check_unchanged() {
        Err(Error::Changed { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    let (file, path) = open(Mode::Read);
    file.check_unchanged().unwrap();
    std::fs::write(&path, [1; 99]).unwrap();
    assert_eq!(fault(&file), "it had 100 bytes and has 99");
    let (file, path) = open(Mode::Read);
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(fault(&file), "it was written to");
    let (file, path) = open(Mode::ReadWrite);
    std::fs::rename(scratch.with("other", &[1; 100]), &path).unwrap();
    assert_eq!(fault(&file), "another file has taken its place");
    file.read_exact(0, &mut [0; 100]).unwrap();
    let (file, path) = open(Mode::ReadWrite);
    std::fs::remove_file(&path).unwrap();
    file.check_unchanged().unwrap();
    let (file, path) = open(Mode::ReadWrite);
    file.write_all(90, &[2; 100]).unwrap();
    file.check_unchanged().unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
    assert_eq!(fault(&file), "it was cut to 50 bytes of 190");
    let error = file.read_exact(40, &mut [0; 20]).unwrap_err();
    assert!(matches!(error, Error::Short { offset: 40, expected: 20, got: 10, .. }), "{error}");
}

#[test]
fn a_file_that_cannot_be_cut_stays_as_it_was() {
    let len = 64 << 10;
    let scratch = Scratch::new();
    let path = scratch.with("data", &vec![1; len]);
    in_child(|| {
        let pager = Pager::new(1 << 20, Engines::new(Some(Kind::Buffered), 8).unwrap()).unwrap();
        let file = pager.open(&path, Mode::ReadWrite).unwrap();
        let segment = Segment::new(&pager, &file, 0, len as u64, 4096).unwrap();
        segment.scatter(&[0], len, &vec![3; len], &Never).unwrap();
        refuse(&[Refused { number: libc::SYS_ftruncate, argument: 1, bits: 0, error: libc::EIO }]);
        let error = pager.resize(&file, len as u64 / 2, &Never).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!((file.size(), pager.stats().dirty), (len as u64, len));
        let mut out = vec![0; len];
        segment.gather(&[0], len, &mut out, &Never).unwrap();
        assert!(out.iter().all(|&byte| byte == 3));
        segment.flush(&Never).unwrap();
    });
    assert!(std::fs::read(&path).unwrap() == vec![3; len]);
}
