//! Tiles reduced by the matrix unit: what it costs.
//!
//! A tile has four faces of 16 x 16. `GMPOOL` and `GAPOOL` reduce the columns of a face at once; the rest moves results to
//! where the next step takes them from (tenstorrent/tt-llk:tt_llk_wormhole_b0/llk_lib/llk_math_reduce.h). Each instruction
//! takes a cycle; sums take one for each fidelity phase (tenstorrent/tt-isa-documentation:
//! WormholeB0/TensixTile/TensixCoprocessor/MatrixUnit.md). The factors that the hardware multiplies with are 1 here.

use crate::numerics::Fidelity;
use crate::time::{Time, ticks};
use crate::verbs::{Along, Binary};

/// Ticks of a reduction, with those from an instruction to its result.
pub(super) fn cycles(op: Binary, along: Along, fidelity: Fidelity, latency: Time) -> Time {
    // Instructions that pool, others, and waits for what was written before it is read.
    let (pools, moves, waits) = match along {
        Along::Row => (4, 23, 0),
        Along::Column => (4, 6, 0),
        Along::Both => (5, 11, 3),
    };
    let phases = if op == Binary::Add { fidelity.phases() as u64 } else { 1 };
    ticks(1.0) * (pools * phases + moves) + latency * waits
}
