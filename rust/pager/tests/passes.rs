//! Repeated passes over more than the budget: how much is read again, with and without reading ahead.

use std::path::Path;
use std::sync::Arc;

use prunus_core::Never;
use prunus_pager::io::{Engines, Kind, Null};
use prunus_pager::pool::simulate::Random;
use prunus_pager::{Mode, Pager, Segment};

mod support;

const PAGE: u64 = 4096;
const BUDGET: usize = 5 << 20;
/// As 768 MiB are to 320 MiB.
const SET: u64 = 3072;

/// How a pass asks for its pages.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    /// The next batch is fetched while this one is used.
    Ahead,
    /// So many pages are kept under way, as a plan does.
    Plan(usize),
    /// Each batch is a run of bytes that is streamed.
    Stream,
}

/// Reads the same pages three times in the same order. Of each pass: bytes read of those used.
fn passes(pager: &Arc<Pager>, segment: &Arc<Segment>, order: &[u64], batch: usize, way: Way) -> Vec<f64> {
    let mut out = vec![0; batch * PAGE as usize];
    (0..3)
        .map(|_| {
            let before = pager.stats().bytes_read;
            let parts: Vec<&[u64]> = order.chunks(batch).collect();
            let mut told = 0;
            for (at, part) in parts.iter().enumerate() {
                let until = match way {
                    Way::Plain | Way::Stream => at,
                    Way::Ahead => at + 2,
                    Way::Plan(pages) => at + 1 + pages.div_ceil(batch),
                };
                told = told.max(at);
                while told < until.min(parts.len()) {
                    segment.prefetch(parts[told], PAGE as usize).unwrap();
                    told += 1;
                }
                if way == Way::Stream {
                    let end = part[part.len() - 1] + PAGE;
                    let mut reader = segment.reader(part[0], end, 128 << 10, 2).unwrap();
                    while reader.next(&Never).unwrap().is_some() {}
                } else {
                    let out = &mut out[..part.len() * PAGE as usize];
                    segment.gather(part, PAGE as usize, out, &Never).unwrap();
                    for (&offset, row) in part.iter().zip(out.chunks(PAGE as usize)) {
                        assert!(row[..8] == offset.to_le_bytes(), "{way:?}: another page than {offset}");
                    }
                }
            }
            (pager.stats().bytes_read - before) as f64 / (order.len() as u64 * PAGE) as f64
        })
        .collect()
}

fn content(pages: u64) -> Vec<u8> {
    let mut bytes = vec![0; (pages * PAGE) as usize];
    for page in 0..pages {
        bytes[(page * PAGE) as usize..][..8].copy_from_slice(&(page * PAGE).to_le_bytes());
    }
    bytes
}

fn shuffled(pages: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..pages).map(|page| page * PAGE).collect();
    let mut random = Random(3);
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last + 1));
    }
    order
}

/// Later passes find again what has room, however the pages are asked for.
fn check(engines: &dyn Fn() -> Engines, path: &Path) {
    let orders = [("random", shuffled(SET)), ("in order", (0..SET).map(|page| page * PAGE).collect())];
    for (name, order) in &orders {
        for batch in [1, 16, 64] {
            for way in [Way::Plain, Way::Ahead, Way::Plan(BUDGET / 10 / PAGE as usize), Way::Stream] {
                if way == Way::Stream && *name == "random" {
                    continue;
                }
                let pager = Pager::new(BUDGET, engines()).unwrap();
                let file = pager.open(path, Mode::Read).unwrap();
                let segment = Arc::new(Segment::new(&pager, &file, 0, SET * PAGE, PAGE as usize).unwrap());
                let read = passes(&pager, &segment, order, batch, way);
                println!("{name:9} batches of {batch:2} {way:?}: {read:.3?}");
                // The first pass reads everything once. Later ones read all but what stays, of which the frames of what
                // is read ahead and of the batch in use go off; streams of a pool of ten slabs need two of them.
                let [least, most] = [1.0 - 5.0 / 12.0, if way == Way::Stream { 0.67 } else { 0.65 }];
                assert_eq!(read[0], 1.0, "{name}, {batch}, {way:?}");
                let kept = read[1..].iter().all(|&read| least <= read && read <= most);
                assert!(kept, "{name}, {batch}, {way:?}: {read:?}");
            }
        }
    }
}

#[test]
fn passes_keep_their_part_in_memory() {
    let path = Path::new("x");
    let engines = || {
        let null = Arc::new(Null::new());
        null.put(path, content(SET));
        Engines::null(null)
    };
    check(&engines, path);
}

#[test]
fn passes_keep_their_part_of_a_real_file() {
    let scratch = support::Scratch::new();
    let path = scratch.with("x", &content(SET));
    check(&|| Engines::new(Some(Kind::Direct), 8).unwrap(), &path);
}

#[test]
fn what_nobody_asked_for_makes_room() {
    let path = Path::new("x");
    let null = Arc::new(Null::new());
    null.put(path, content(SET));
    // eighty frames, of which eight are for pages that are read ahead
    let pager = Pager::new(320 << 10, Engines::null(null)).unwrap();
    let file = pager.open(path, Mode::Read).unwrap();
    let segment = Segment::new(&pager, &file, 0, SET * PAGE, PAGE as usize).unwrap();
    let mut row = vec![0; PAGE as usize];
    let mut use_pages = |pages: std::ops::Range<u64>| {
        for page in pages {
            segment.gather(&[page * PAGE], PAGE as usize, &mut row, &Never).unwrap();
        }
    };
    let ahead = |page: u64| {
        let before = pager.stats().misses;
        segment.prefetch(&[page * PAGE], PAGE as usize).unwrap();
        pager.stats().misses > before
    };
    use_pages(0..100);
    assert!((1000..1008).all(ahead), "the share is there");
    assert!(!ahead(1008), "and no more");
    use_pages(100..200);
    assert!(!ahead(1009), "they may still be used");
    use_pages(200..300);
    assert!((1010..1018).all(ahead), "they were not");
    let before = pager.stats();
    use_pages(1010..1018);
    assert_eq!(pager.stats().misses, before.misses);
}
