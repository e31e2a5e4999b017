//! What the pager's own tables take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use prunus_core::Never;
use prunus_pager::io::{Engines, Null};
use prunus_pager::{Mode, Pager, Segment};

/// The system's memory, counted.
struct Counted;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static MEMORY: Counted = Counted;

#[test]
fn pages_read_ahead_and_used_are_forgotten() {
    let (len, page, pages) = (16 << 20, 4096, 16);
    let null = Arc::new(Null::new());
    null.put(Path::new("x"), vec![7; len]);
    let pager = Pager::new(2 << 20, Engines::null(Arc::clone(&null))).unwrap();
    let file = pager.open(Path::new("x"), Mode::Read).unwrap();
    let segment = Segment::new(&pager, &file, 0, len as u64, page).unwrap();
    let mut out = vec![0; pages * page];
    let mut run = |rounds: usize| {
        for round in 0..rounds {
            let first = round * pages % (len / page);
            let offsets: Vec<u64> = (first..first + pages).map(|index| (index * page) as u64).collect();
            segment.prefetch(&offsets, page).unwrap();
            segment.gather(&offsets, page, &mut out, &Never).unwrap();
            assert!(out.iter().all(|&byte| byte == 7));
            null.seen();
        }
        LIVE.load(Relaxed)
    };
    let before = run(256);
    let after = run(4096);
    // a page that is remembered for ever takes 16 bytes: a mebibyte of them
    assert!(after < before + (64 << 10), "{before} bytes, then {after}");
}
