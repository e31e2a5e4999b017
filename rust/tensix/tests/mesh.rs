//! Chips joined by Ethernet links: what arrives, in which order, how soon, and never more than links carry.

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;
use prunus_core::Never;
use prunus_tensix::kernel::{Api, kernel};
use prunus_tensix::program::{Launch, Program, Role};
use prunus_tensix::report::Run;
use prunus_tensix::time::TICKS;
use prunus_tensix::verbs::{CoreId, Place, Verb};
use prunus_tensix::{ChipSpec, Options, Simulator};

fn mesh(name: &str, shape: (u16, u16), values: bool) -> Simulator {
    Simulator::mesh(ChipSpec::named(name).expect("shipped"), shape, values).expect("a mesh")
}

fn launch<F: Future<Output = ()> + 'static>(
    program: &mut Program,
    core: CoreId,
    body: impl FnOnce(Api) -> F + 'static,
) {
    let kernel = kernel(body);
    program.launches.push(Launch { core, role: Role::DataMovement0, noc: 0, name: "end".into(), kernel });
}

/// Nanoseconds that `bytes` and a flag behind them take between workers `distance` chips apart, which answer each other;
/// without bytes the flag alone.
fn ping(name: &str, distance: u16, bytes: u32) -> f64 {
    const ROUNDS: u32 = 64;
    let mut chip = mesh(name, (1, distance + 1), false);
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    for (at, other, first) in [(0, distance, true), (distance, 0, false)] {
        launch(&mut program, chip.first_core(at), move |api| async move {
            for round in 1..=ROUNDS {
                if !first {
                    api.noc_semaphore_wait_min(0, round).await;
                }
                let place = Place::L1 { core: 0, address: 4096 };
                if bytes > 0 {
                    let (to, flag) = ((other, place), (0, 0, 1));
                    api.fabric_unicast_noc_fused_unicast_with_atomic_inc(0, to, bytes, flag, Some(0)).await;
                } else {
                    api.fabric_unicast_noc_unicast_atomic_inc(other, 0, 0, 1, Some(0)).await;
                }
                if first {
                    api.noc_semaphore_wait_min(0, round).await;
                }
            }
        });
    }
    let run = chip.run(program, Options::default(), &Never).expect("an end");
    run.cycles() / chip.spec().clock_ghz / f64::from(2 * ROUNDS)
}

#[test]
fn hops_take_as_long_as_published() {
    // tenstorrent/tt-metal:tech_reports/EthernetMultichip/BasicEthernetGuide.md: 650 ns a hop, tile to tile, of 16 B.
    let hop = ping("n300", 3, 16) - ping("n300", 2, 16);
    assert!((hop / 650.0 - 1.0).abs() < 0.01, "{hop} ns");
    // tt-metal:tests/tt_metal/tt_metal/perf_microbenchmark/routing/golden/golden_latency_*.csv, linear, unicast, from worker
    // to worker; only the second row was fitted to.
    for (name, bytes, published, off) in [
        ("n300", 16, 790.18, 0.11),
        ("p150", 0, 655.47, 0.01),
        ("p150", 16, 682.76, 0.02),
        ("n300", 4096, 1458.04, 0.02),
        ("p150", 4096, 810.52, 0.07),
    ] {
        let found = ping(name, 1, bytes);
        assert!(
            (found / published - 1.0).abs() < off,
            "{name}, {bytes} B: {found} ns, {published} published"
        );
    }
}

fn check(run: &Run, spec: &ChipSpec) {
    let ethernet = spec.ethernet.as_ref().expect("links");
    for link in &run.ethernet {
        let least = link.wire_bytes as f64 * spec.clock_ghz / ethernet.gb_per_s * TICKS as f64;
        assert!(link.busy as f64 >= least, "no more than its rate: {link:?}");
        assert!(link.busy <= run.end, "it works while the program runs: {link:?}, {}", run.end);
        assert!(link.wire_bytes >= link.bytes);
    }
}

/// Writes of one core of each chip to one of another chip's: (from, to, bytes, link).
type Sends = Vec<(u16, u16, u32, u8)>;

/// Runs sends, each with bytes of its own and a flag behind them; returns what was used.
fn exchange(name: &str, shape: (u16, u16), sends: &Sends, threads: usize) -> (Run, Vec<Vec<u8>>) {
    let mut chip = mesh(name, shape, true);
    let each = chip.spec().cores() as u16;
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    let seen = Rc::new(Cell::new(0));
    for (number, (from, to, bytes, link)) in sends.iter().copied().enumerate() {
        let (core, address) = (number as u16 % each, 65536 + number as u32 * 16384);
        let first = chip.first_core(from);
        chip.write_l1(first + core, 0, &vec![number as u8 + 1; bytes as usize]).expect("room");
        launch(&mut program, first + core, move |api| async move {
            let place = Place::L1 { core, address };
            if number % 2 == 0 {
                api.fabric_unicast_noc_unicast_write(0, to, place, bytes, Some(link)).await;
                api.fabric_unicast_noc_unicast_atomic_inc(to, core, 0, 1, Some(link)).await;
            } else {
                let (to, flag) = ((to, place), (core, 0, 1));
                api.fabric_unicast_noc_fused_unicast_with_atomic_inc(0, to, bytes, flag, Some(link)).await;
            }
            // What has left may be written over.
            api.noc_async_writes_flushed().await;
            api.l1_store(0, 0).await;
        });
        let seen = Rc::clone(&seen);
        let body = move |api: Api| async move {
            api.noc_semaphore_wait_min(0, 1).await;
            let last = api.l1_load(address + (bytes - 1) / 4 * 4).await;
            assert_eq!(last & 0xff, number as u32 + 1, "a flag stays behind what it tells of");
            seen.set(seen.get() + 1);
        };
        let role = Role::DataMovement1;
        let core = chip.first_core(to) + core;
        program.launches.push(Launch { core, role, noc: 1, name: "waits".into(), kernel: kernel(body) });
    }
    let run = chip.run(program, Options { threads, ..Options::default() }, &Never).expect("an end");
    assert_eq!(seen.get(), sends.len());
    let got = sends.iter().enumerate().map(|(number, (_, to, bytes, _))| {
        let core = chip.first_core(*to) + number as u16 % each;
        chip.read_l1(core, 65536 + number as u32 * 16384, *bytes).expect("written").to_vec()
    });
    let got = got.collect();
    (run, got)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_is_sent_arrives(
        sends in prop::collection::vec((0_u16..6, 1_u16..6, 1_u32..1000, 0_u8..2), 1..40),
        name in prop::sample::select(vec!["n300", "p150"]),
    ) {
        let sends: Sends =
            sends.into_iter().map(|(from, by, units, link)| (from, (from + by) % 6, 16 * units, link)).collect();
        let (run, got) = exchange(name, (2, 3), &sends, 1);
        check(&run, &ChipSpec::named(name).expect("shipped"));
        for (number, (bytes, (_, _, size, _))) in got.iter().zip(&sends).enumerate() {
            prop_assert_eq!(bytes, &vec![number as u8 + 1; *size as usize]);
        }
        // Each byte is on as many links as its chips are apart.
        let steps = |(from, to): (u16, u16)| u64::from((from / 3).abs_diff(to / 3) + (from % 3).abs_diff(to % 3));
        let hops: u64 = sends.iter().map(|(from, to, bytes, _)| steps((*from, *to)) * u64::from(*bytes)).sum();
        prop_assert_eq!(run.ethernet.iter().map(|link| link.bytes).sum::<u64>(), hops);
        for threads in [1, 3] {
            let (again, values) = exchange(name, (2, 3), &sends, threads);
            prop_assert_eq!(&again, &run, "the same program is the same run");
            prop_assert_eq!(&values, &got);
        }
    }
}

/// GB/s that a core sends to a core of a neighbour by so many links, one core a link.
fn rate(name: &str, links: u8, bytes: u32) -> f64 {
    let mut chip = mesh(name, (1, 2), false);
    const TIMES: u32 = 400;
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    for link in 0..links {
        launch(&mut program, u16::from(link), move |api| async move {
            for _ in 0..TIMES {
                let place = Place::L1 { core: u16::from(link), address: 0 };
                api.fabric_unicast_noc_unicast_write(0, 1, place, bytes, Some(link)).await;
            }
            api.fabric_unicast_noc_unicast_atomic_inc(1, u16::from(link), 0, 1, Some(link)).await;
        });
        launch(&mut program, chip.first_core(1) + u16::from(link), |api| async move {
            api.noc_semaphore_wait(0, 1).await;
        });
    }
    let run = chip.run(program, Options::default(), &Never).expect("an end");
    check(&run, chip.spec());
    f64::from(TIMES) * f64::from(links) * f64::from(bytes) / (run.cycles() / chip.spec().clock_ghz)
}

#[test]
fn links_have_their_rate() {
    // golden_bandwidth_summary_wormhole_b0_t3k.csv and golden_bandwidth_summary_blackhole_p150_x8.csv, a single sender's
    // unicasts along a line; rates of small packets gave `packet_ns`.
    for (name, bytes, published) in
        [("n300", 2048, 8.03), ("n300", 4096, 11.78), ("p150", 2048, 10.17), ("p150", 4096, 19.78)]
    {
        for links in [1, 2] {
            let found = rate(name, links, bytes) / f64::from(links);
            assert!((found / published - 1.0).abs() < 0.03, "{name}, {bytes} B, {links} links: {found} GB/s");
        }
    }
}

/// What a chip of two says to a verb.
fn refused(verb: Verb) -> String {
    let mut chip = mesh("n300", (1, 2), true);
    assert_eq!(chip.buffer_on(1, 2048, 4, None).expect("room"), 0);
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    launch(&mut program, 0, move |api| async move {
        api.call(verb).await;
    });
    chip.run(program, Options::default(), &Never).expect_err("refused").to_string()
}

#[test]
fn far_places_are_checked_as_near_ones_are() {
    let dram = |page| Place::Dram { buffer: 0, page, offset: 0 };
    let write = |chip, to, bytes| Verb::FabricUnicastNocUnicastWrite { from: 0, chip, to, bytes, link: None };
    let l1 = |chip, core, address| write(chip, Place::L1 { core, address }, 32);
    let inc = |chip, semaphore, link| Verb::FabricUnicastNocUnicastAtomicInc {
        chip,
        core: 0,
        semaphore,
        by: 1,
        link,
    };
    let near = Verb::NocAsyncWrite { from: 0, to: dram(0), bytes: 2048, stateful: false };
    let cases = [
        (near, "buffer 0 is in the DRAM of chip (0, 1), not of chip (0, 0)"),
        (l1(1, 64, 0), "core 64, n300 has 64"),
        (l1(1, 0, 1_500_000), "which has 1499136 B"),
        (l1(1, 0, 8), "must agree modulo 16"),
        (l1(1, 0, 0), "nothing was written at 0"),
        (write(1, dram(4), 32), "buffer 0 has 4 pages"),
        (write(1, dram(0), 0), "writes 0 bytes"),
        (l1(2, 0, 0), "chip 2 of 2, another one than its own"),
        (l1(0, 0, 0), "another one than its own"),
        (inc(0, 0, None), "another one than its own"),
        (inc(1, 3, None), "semaphore 3, the program has 1"),
        (inc(1, 0, Some(2)), "link 2, n300 has 2 to each neighbour"),
    ];
    for (verb, what) in cases {
        let said = refused(verb);
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn a_deadlock_names_chips() {
    let mut chip = mesh("n300", (2, 2), false);
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    launch(&mut program, chip.first_core(3) + 9, |api| async move {
        api.noc_semaphore_wait(0, 1).await;
    });
    let error = chip.run(program, Options::default(), &Never).expect_err("a deadlock").to_string();
    assert!(error.contains("core (1, 1) of chip (1, 1)"), "{error}");
}

#[test]
fn what_is_full_holds_up_who_sends() {
    // Sixteen cores send by one link: they have its rate together, and wait for room most of the time.
    let mut chip = mesh("n300", (1, 3), false);
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    for core in 0..16 {
        launch(&mut program, core, move |api| async move {
            for _ in 0..50 {
                let place = Place::L1 { core, address: 0 };
                api.fabric_unicast_noc_unicast_write(0, 2, place, 4096, Some(0)).await;
            }
            api.fabric_unicast_noc_unicast_atomic_inc(2, core, 0, 1, Some(0)).await;
            // It ends when all has arrived: the answer comes by the way back.
            api.noc_semaphore_wait(0, 1).await;
        });
        launch(&mut program, chip.first_core(2) + core, move |api| async move {
            api.noc_semaphore_wait(0, 1).await;
            api.fabric_unicast_noc_unicast_atomic_inc(0, core, 0, 1, Some(0)).await;
        });
    }
    let run = chip.run(program, Options::default(), &Never).expect("an end");
    check(&run, chip.spec());
    let sent: Vec<_> = run.ethernet.iter().map(|link| (link.chips, link.packets)).collect();
    assert_eq!(sent, [((0, 1), 816), ((1, 0), 16), ((1, 2), 816), ((2, 1), 16)]);
    assert!(run.ethernet[0].busy as f64 > 0.95 * run.end as f64);
    let waited: u64 = run.cores[..16].iter().map(|core| core.thread_waits[0]).sum();
    assert!(waited as f64 > 0.8 * 16.0 * run.end as f64);
    // In turn: all end at about the same time.
    let ends: Vec<_> = run.cores[..16].iter().map(|core| core.thread_ends[0]).collect();
    assert!(ends.iter().min() > Some(&(run.end / 10 * 9)), "{ends:?}");
}
