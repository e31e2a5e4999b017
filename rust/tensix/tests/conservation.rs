//! No link and no controller passes more than its width, and what goes in comes out.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use prunus_core::Never;
use prunus_tensix::programs::patterns::{DramPattern, Pattern, Traffic, dram, traffic};
use prunus_tensix::report::Run;
use prunus_tensix::time::TICKS;
use prunus_tensix::{ChipSpec, Options, Simulator};

fn chip(name: &str) -> Simulator {
    Simulator::new(ChipSpec::named(name).expect("shipped"), false)
}

/// Flits through links of a port.
fn passed(run: &Run, port: u8) -> u64 {
    run.links.iter().filter(|link| link.port == port).map(|link| link.flits).sum()
}

fn check_links(run: &Run) {
    for link in &run.links {
        assert!(link.flits * TICKS <= link.busy, "a flit takes a cycle: {link:?}");
        // The last flits may still be on their way when the thread that waits for their reply is told.
        assert!(
            link.busy <= run.end + 300 * TICKS,
            "a link works while the program runs: {link:?}, {}",
            run.end
        );
    }
    let mut through: HashMap<(u8, u16), [u64; 4]> = HashMap::new();
    for link in &run.links {
        through.entry((link.noc, link.node)).or_default()[usize::from(link.port)] += link.flits;
    }
    assert_eq!(passed(run, 2), passed(run, 3), "what is sent arrives");
}

fn pattern(kind: Traffic, transactions: u32, bytes: u32, noc: u8) -> Pattern {
    Pattern {
        traffic: kind,
        multicast: false,
        transactions,
        partners: 7,
        same_axis: false,
        stateful: false,
        loopback: false,
        linked: false,
        noc,
        bytes,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn links(
        kind in prop::sample::select(vec![
            Traffic::AllToAll, Traffic::AllFromAll, Traffic::OneToAll, Traffic::OneFromAll, Traffic::OneToRow,
        ]),
        transactions in 1_u32..80,
        bytes in 1_u32..9000,
        noc in 0_u8..2,
        name in prop::sample::select(vec!["n150", "p150", "e150"]),
    ) {
        let pattern = pattern(kind, transactions, bytes, noc);
        let runs = [0, 1].map(|_| {
            let mut chip = chip(name);
            let program = traffic(&chip, &pattern).expect("a program");
            chip.run(program, Options::default(), &Never).expect("an end")
        });
        check_links(&runs[0]);
        prop_assert_eq!(&runs[0], &runs[1], "the same program is the same run");
    }

    #[test]
    fn channels(
        one_channel in any::<bool>(),
        write in any::<bool>(),
        cores in 1_u32..40,
        transactions in 1_u32..60,
        bytes in 32_u32..9000,
        name in prop::sample::select(vec!["n150", "p150"]),
    ) {
        let mut chip = chip(name);
        let pattern = DramPattern { one_channel, write, cores, transactions, bytes };
        let program = dram(&mut chip, &pattern).expect("a program");
        let run = chip.run(program, Options::default(), &Never).expect("an end");
        check_links(&run);
        let spec = &chip.spec().dram;
        let rate = if write { spec.write_bytes_per_cycle } else { spec.read_bytes_per_cycle };
        let moved: u64 = run.channels.iter().map(|(_, bytes, _)| bytes).sum();
        prop_assert_eq!(moved, u64::from(cores) * u64::from(transactions) * u64::from(bytes));
        for (_, bytes, busy) in &run.channels {
            let least = *bytes as f64 / rate;
            prop_assert!(*busy as f64 >= least * TICKS as f64);
            prop_assert!(run.cycles() >= least - 1.0, "{} cycles for {bytes} B", run.cycles());
        }
    }
}

#[test]
fn partners_are_as_many_as_are_said() {
    // Who sends or reads alone, and how many others get something; or how many there are in all.
    for (kind, partners, multicast, found) in [
        (Traffic::OneToRow, 3, false, 3),
        (Traffic::OneToRow, 3, true, 3),
        (Traffic::OneToRow, 7, false, 7),
        (Traffic::OneToRow, 8, false, 7),
        (Traffic::RowToRow, 3, false, 2),
        (Traffic::OneToColumn, 2, false, 2),
        (Traffic::OneToAll, 0, false, 55),
        (Traffic::OneToAll, 9, false, 9),
        (Traffic::OneToAll, 8, true, 9),
        (Traffic::OneToAll, 10, false, 10),
        (Traffic::OneToAll, 55, false, 55),
        (Traffic::OneToAll, 60, false, 60),
        (Traffic::OneFromAll, 10, false, 10),
        (Traffic::AllToAll, 10, false, 9),
    ] {
        let mut chip = chip("n150");
        let pattern = Pattern { multicast, partners, ..pattern(kind, 120, 64, 0) };
        let program = traffic(&chip, &pattern).expect("a program");
        let alone = program.launches[0].core;
        let run = chip.run(program, Options::default(), &Never).expect("an end");
        let nodes: HashSet<_> =
            run.links.iter().filter(|link| link.port == 2).map(|link| link.node).collect();
        let own = chip.place(alone);
        let node = own.1 * chip.spec().grid.columns + own.0;
        assert_eq!(nodes.iter().filter(|at| **at != node).count(), found, "{kind:?} {partners} {multicast}");
    }
    for (kind, partners, multicast, said) in [
        (Traffic::OneToAll, 73, false, "room for 72"),
        (Traffic::OneToOne, 2, false, "room for 1"),
        (Traffic::OneToAll, 11, true, "as many as a square has"),
    ] {
        let pattern = Pattern { multicast, partners, ..pattern(kind, 1, 64, 0) };
        let error = traffic(&chip("n150"), &pattern).err().expect("refused").to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn two_that_share_a_link_have_half_of_it_each() {
    // Published of Blackhole: transactions of 16 KB take 268.8 cycles alone and 518.3 beside another one.
    let alone = run_pairs(&[((0, 0), (4, 0))]);
    let beside = run_pairs(&[((0, 0), (4, 0)), ((1, 0), (5, 0))]);
    assert!((alone - 268.8).abs() < 0.02 * 268.8, "{alone} cycles alone");
    assert!((beside - 518.3).abs() < 0.03 * 518.3, "{beside} cycles beside another one");
}

/// Logical coordinates.
type At = (u16, u16);

/// Cycles for each of 64 transactions of 16 KB between cores, all pairs at once.
fn run_pairs(pairs: &[(At, At)]) -> f64 {
    use prunus_tensix::kernel::kernel;
    use prunus_tensix::program::{Launch, Program, Role};
    use prunus_tensix::verbs::Place;

    let mut chip = chip("p150");
    let mut program = Program::default();
    for ((x, y), to) in pairs {
        let target = chip.core(to.0, to.1);
        program.launches.push(Launch {
            core: chip.core(*x, *y),
            role: Role::DataMovement0,
            noc: 0,
            name: "pair".into(),
            kernel: kernel(move |api| async move {
                for _ in 0..64 {
                    api.noc_async_write(0, Place::L1 { core: target, address: 1 << 16 }, 1 << 14).await;
                }
                api.noc_async_write_barrier().await;
            }),
        });
    }
    chip.run(program, Options::default(), &Never).expect("an end").cycles() / 64.0
}

#[test]
fn a_flag_does_not_overtake_what_it_tells_of() {
    use prunus_tensix::kernel::kernel;
    use prunus_tensix::program::{Launch, Program, Role};
    use prunus_tensix::verbs::Place;

    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), true);
    let (sender, receiver) = (chip.core(0, 0), chip.core(3, 2));
    chip.write_l1(sender, 0, &[7; 8192]).expect("room");
    chip.write_l1(receiver, 16384, &[1; 8192]).expect("room");
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    let mut launch = |core, kernel| {
        program.launches.push(Launch { core, role: Role::DataMovement0, noc: 0, name: "end".into(), kernel });
    };
    launch(
        sender,
        kernel(move |api| async move {
            api.noc_async_write(0, Place::L1 { core: receiver, address: 16384 }, 8192).await;
            api.noc_semaphore_inc(receiver, 0, 1).await;
            api.noc_async_write_barrier().await;
        }),
    );
    launch(
        receiver,
        kernel(move |api| async move {
            api.noc_semaphore_wait(0, 1).await;
            let last = api.l1_load(16384 + 8188).await;
            api.l1_store(0, last).await;
        }),
    );
    chip.run(program, Options::default(), &Never).expect("an end");
    assert_eq!(chip.read_l1(receiver, 0, 4).expect("written"), &[7; 4]);
}
