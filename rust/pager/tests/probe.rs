//! The probe of drives.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prunus_core::{Interrupt, Never};
use prunus_pager::io::Kind;
use prunus_pager::probe::{Access, Options, measure};
use prunus_pager::{Error, SECTOR};
use support::{Scratch, pattern};

const ALL: [Access; 4] = [Access::RandomRead, Access::SequentialRead, Access::SequentialWrite, Access::Mixed];

fn options(kind: Kind) -> Options {
    Options {
        kind: Some(kind),
        accesses: ALL.to_vec(),
        blocks: vec![SECTOR, 16 * SECTOR],
        depths: vec![1, 8],
        time: Duration::from_millis(10),
        scratch_size: 5 << 20,
        ..Options::default()
    }
}

#[test]
fn every_row_is_measured_and_nothing_is_left() {
    let scratch = Scratch::new();
    let bytes = pattern(100 * SECTOR + 5, 1);
    let path = scratch.with("data", &bytes);
    for kind in [Kind::Direct, Kind::Buffered] {
        let rows = measure(&path, &options(kind), &Never).unwrap();
        assert_eq!(rows.len(), ALL.len() * 4);
        for (number, row) in rows.iter().enumerate() {
            assert_eq!((row.kind, row.access), (kind, ALL[number / 4]));
            assert_eq!((row.block, row.depth), ([SECTOR, 16 * SECTOR][number / 2 % 2], [1, 8][number % 2]));
            assert!(row.requests > 0 && row.rate > 0.0 && row.calls >= 1.0 && row.cpu >= 0.0, "{row:?}");
            assert!((1.0..=8.0).contains(&row.mean_depth), "{row:?}");
        }
    }
    assert_eq!(std::fs::read_dir(scratch.file("")).unwrap().count(), 1);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

#[test]
fn what_cannot_be_measured_is_said() {
    let scratch = Scratch::new();
    let path = scratch.with("data", &[0; SECTOR]);
    let said = |change: &dyn Fn(&mut Options)| {
        let mut options = options(Kind::Buffered);
        change(&mut options);
        measure(&path, &options, &Never).unwrap_err().to_string()
    };
    assert!(
        said(&|options| options.blocks = vec![5000]).contains("expected a multiple of 4096 bytes, got 5000")
    );
    assert!(said(&|options| options.blocks = vec![0]).contains("expected a multiple of 4096 bytes, got 0"));
    assert!(said(&|options| options.blocks = vec![2 * SECTOR]).contains("got 8192 of 4096"));
    assert!(said(&|options| options.depths = vec![0]).contains("at least one request, got 0"));
    let there = path.clone();
    let taken = said(&|options| {
        options.accesses = vec![Access::Mixed];
        options.scratch = Some(there.clone());
    });
    assert!(taken.contains("exists"), "{taken}");
    assert!(path.exists(), "a scratch file that was there before is not removed");
}

#[test]
fn it_stops_when_told() {
    struct Soon(AtomicUsize);
    impl Interrupt for Soon {
        fn interrupted(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed) > 0
        }
    }
    let scratch = Scratch::new();
    let path = scratch.with("data", &[0; 64 * SECTOR]);
    let options = Options { time: Duration::from_secs(3600), ..options(Kind::Buffered) };
    assert!(matches!(measure(&path, &options, &Soon(AtomicUsize::new(0))), Err(Error::Interrupted)));
}
