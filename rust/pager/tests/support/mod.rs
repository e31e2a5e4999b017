//! What tests of files share.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc::channel};

use prunus_pager::io::{Engines, Kind, Null, Op, Piece, Request};
use prunus_pager::{Aligned, DiskFile};

/// A directory on the file system of the build (the system's directory for temporary files may be in memory),
/// removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("pager-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn with(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Engines of every kind that this system has, and one in memory.
pub(crate) fn all() -> Vec<Engines> {
    let mut all =
        vec![Engines::new(Some(Kind::Direct), 8).unwrap(), Engines::new(Some(Kind::Buffered), 8).unwrap()];
    #[cfg(target_os = "linux")]
    if prunus_pager::io::Uring::new(1).is_ok() {
        all.push(Engines::new(Some(Kind::Uring), 8).unwrap());
    }
    all.push(Engines::null(Arc::new(Null::new())));
    all
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Submits requests, each with memory of its own cut into pieces, and waits for all. For each: what came, and
/// its memory.
pub(crate) fn transfer(
    file: &Arc<DiskFile>,
    op: Op,
    requests: &[(u64, Vec<usize>)],
    fill: impl Fn(usize, &mut [u8]),
) -> Vec<(std::io::Result<usize>, Vec<u8>)> {
    let (tell, told) = channel();
    let mut memory = Vec::new();
    let batch: Vec<Request> = requests
        .iter()
        .enumerate()
        .map(|(number, (offset, lens))| {
            let arena = Arc::new(Aligned::new(lens.iter().sum()).unwrap());
            // SAFETY: nobody else has the memory yet.
            fill(number, unsafe { std::slice::from_raw_parts_mut(arena.as_ptr(), lens.iter().sum()) });
            let mut at = 0;
            let pieces = lens
                .iter()
                .map(|&len| {
                    let piece = Piece { ptr: arena.as_ptr().wrapping_add(at), len };
                    at += len;
                    piece
                })
                .collect();
            memory.push(Arc::clone(&arena));
            let tell = tell.clone();
            let done = Box::new(move |result| drop(tell.send((number, result))));
            file.request(op, *offset, pieces, arena, done)
        })
        .collect();
    drop(tell);
    file.submit(batch);
    let mut answers: Vec<_> = told.iter().collect();
    answers.sort_by_key(|(number, _)| *number);
    assert_eq!(answers.len(), requests.len());
    answers
        .into_iter()
        .zip(memory)
        .map(|((_, result), arena)| {
            // SAFETY: the request is done.
            (result, unsafe { std::slice::from_raw_parts(arena.as_ptr(), arena.len()) }.to_vec())
        })
        .collect()
}
