//! Every kind of engine against a plain copy of the file in memory.

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use prunus_pager::io::{Engines, Kind, Op};
use prunus_pager::{DiskFile, Error, Mode, SECTOR};
use support::{Scratch, all, pattern, transfer};

fn open(path: &std::path::Path, mode: Mode, engines: &Engines) -> Arc<DiskFile> {
    DiskFile::open(path, mode, engines).unwrap()
}

/// A step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize),
    Read(u64, usize),
    Submit(Op, Vec<(u64, Vec<usize>)>),
    Resize(u64),
    Sync,
}

const MOST: u64 = 1 << 18;

fn step() -> impl Strategy<Value = Step> {
    let pieces = prop::collection::vec(1_usize..4, 1..4);
    prop_oneof![
        (0..MOST, 0_usize..40_000).prop_map(|(at, len)| Step::Write(at, len)),
        (0..MOST, 0_usize..40_000).prop_map(|(at, len)| Step::Read(at, len)),
        prop::collection::vec((0..MOST / SECTOR as u64, pieces), 1..20).prop_map(|requests| {
            let scale = |(at, lens): (u64, Vec<usize>)| {
                (at * SECTOR as u64, lens.into_iter().map(|len| len * SECTOR).collect())
            };
            Step::Submit(Op::Read, requests.into_iter().map(scale).collect())
        }),
        // Writes of one batch may overlap, in any order: one each.
        (0..MOST / SECTOR as u64, 1_usize..8).prop_map(|(at, len)| {
            Step::Submit(Op::Write, vec![(at * SECTOR as u64, vec![len * SECTOR; 2])])
        }),
        (0..MOST).prop_map(Step::Resize),
        Just(Step::Sync),
    ]
}

fn run(engines: &Engines, start: usize, steps: &[Step]) {
    let scratch = Scratch::new();
    let path = scratch.file("data");
    let file = open(&path, Mode::Create { size: start as u64 }, engines);
    let mut model = vec![0_u8; start];
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Write(at, len) => {
                let data = pattern(*len, number as u64);
                file.write_all(*at, &data).unwrap();
                let end = *at as usize + len;
                if *len > 0 {
                    model.resize(model.len().max(end), 0);
                    model[*at as usize..end].copy_from_slice(&data);
                }
            }
            Step::Read(at, len) => {
                let mut out = vec![0; *len];
                match file.read_exact(*at, &mut out) {
                    Ok(()) => assert_eq!(out, model[*at as usize..*at as usize + len]),
                    Err(Error::Short { expected, got, .. }) => {
                        assert_eq!((expected, got), (*len as u64, (model.len() as u64).saturating_sub(*at)));
                        assert!(*at as usize + len > model.len());
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Submit(Op::Read, requests) => {
                for ((at, lens), (got, bytes)) in
                    requests.iter().zip(transfer(&file, Op::Read, requests, |_, _| ()))
                {
                    let (at, len) = (*at as usize, lens.iter().sum::<usize>());
                    let want = &model[at.min(model.len())..(at + len).min(model.len())];
                    // A last sector may still be padded with what was written to it.
                    let got = got.unwrap();
                    assert!(got >= want.len() && got < want.len() + SECTOR, "{got} for {}", want.len());
                    assert_eq!(&bytes[..want.len()], want);
                }
            }
            Step::Submit(op, requests) => {
                // Whole sectors that begin inside the file, as a pool writes them.
                let end = model.len().next_multiple_of(SECTOR);
                let (at, lens) = &requests[0];
                let at = *at as usize;
                let len = lens.iter().sum::<usize>().min(end.saturating_sub(at));
                if len == 0 {
                    continue;
                }
                let data = pattern(len, number as u64);
                let written =
                    transfer(&file, *op, &[(at as u64, vec![len])], |_, bytes| bytes.copy_from_slice(&data));
                assert_eq!(written[0].0.as_ref().unwrap(), &len);
                let stop = (at + len).min(model.len());
                model[at..stop].copy_from_slice(&data[..stop - at]);
            }
            Step::Resize(size) => {
                file.resize(*size).unwrap();
                model.resize(*size as usize, 0);
            }
            Step::Sync => file.sync().unwrap(),
        }
        assert_eq!(file.size(), model.len() as u64);
    }
    let again = open(&path, Mode::ReadWrite, engines);
    drop(file);
    let mut out = vec![0; model.len()];
    again.read_exact(0, &mut out).unwrap();
    assert!(out == model);
    if again.kind() != Kind::Null {
        assert!(std::fs::read(&path).unwrap() == model, "what another program reads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn files_hold_what_was_written(start in 0_usize..100_000, steps in prop::collection::vec(step(), 1..24)) {
        for engines in all() {
            run(&engines, start, &steps);
        }
    }
}
