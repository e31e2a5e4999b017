"""Bad input to the selective scan gets an error that says what was wrong."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from helpers import scan_operands as make
from prunus import _core


def test_what_is_refused(rng):
    good = make(rng, (2,), 6, 8, 3)

    def refuse(error, match, **changes):
        with pytest.raises(error, match=match):
            pr.selective_scan(**{**good, **changes})

    refuse(ValueError, "u must have shape", u=np.ones(3, np.float32))
    refuse(ValueError, "delta must have shape", delta=good["delta"][..., :7])
    refuse(ValueError, "A must have shape", A=good["A"].T)
    refuse(ValueError, "A must have shape", A=good["A"][0])
    refuse(ValueError, "B must have shape", B=good["B"][:, :5])
    refuse(ValueError, "C must have shape", C=good["C"][..., :2])
    refuse(ValueError, "D must have shape", D=good["D"][:7])
    refuse(ValueError, "delta_bias must have shape", delta_bias=good["D"][None])
    refuse(ValueError, "z must have shape", z=good["z"][..., :1])
    refuse(ValueError, "broadcast", B=np.ones((3, 6, 3), np.float32))
    refuse(ValueError, "state must have shape", state=np.zeros((8, 3), np.float32))
    refuse(ValueError, "state must have shape", state=np.zeros((2, 3, 8), np.float32))
    wide = {"state": np.zeros((2, 8, 3), np.float32), "A": good["A"].astype(np.float64)}
    refuse(TypeError, "state must be float64, as an operand is float64; got float32", **wide)
    refuse(TypeError, "state must be float32, or float64; got bfloat16", state=np.zeros((2, 8, 3), BF16))
    for dtype in (np.int8, np.int64, np.complex64, bool, object):
        refuse(TypeError, "u must", u=np.ones((2, 6, 8), dtype))
        refuse(TypeError, "D must", D=np.ones(8, dtype))
    refuse(TypeError, "branch", branch=2.0)
    refuse(TypeError, "branch", branch=True)
    refuse(ValueError, "branch", branch=0)
    refuse(TypeError, "prune must be a policy", prune=0.5)
    refuse(ValueError, "10 rows|mask of shape", prune=pr.Fixed(np.ones(7, bool)))
    step = {k: v if k in ("A", "D", "delta_bias") else v[:, 0] for k, v in good.items()}
    frozen = np.zeros((2, 8, 3), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        pr.selective_step(**step, state=frozen)
    with pytest.raises(TypeError, match="ndarray"):
        pr.selective_step(**step, state=None)
    with pytest.raises(ValueError, match="at least one dimension"):
        pr.selective_step(**{**step, "u": np.float32(1)}, state=np.zeros((2, 8, 3), np.float32))
    for shape in [(8, 3), (1, 8, 3), (2, 8, 4)]:
        with pytest.raises(ValueError, match="state"):
            pr.selective_step(**step, state=np.zeros(shape, np.float32))


def test_the_compiled_function_looks_for_itself(rng, engine):
    """Whatever memory safety depends on is checked again where memory is touched."""
    if engine.name != "cpu":
        return
    good = make(rng, (2,), 6, 8, 3)
    start, out = np.zeros((2, 8, 3), np.float32), np.empty((2, 6, 8), np.float32)

    def call(**changes):
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        given = {**good, "state": start, "out": out, "live": None, "branch": 1, **changes}
        rest = (given["state"], given["out"], given["live"], given["branch"], 2)
        _core.scan(*(given[name] for name in names), False, *rest)

    call()
    call(live=np.ones((12, 8), bool))
    frozen = out.copy()
    frozen.flags.writeable = False
    faults = [
        {name: good[name][..., :-1] for name in [one]} for one in ("u", "delta", "A", "B", "C", "D", "z")
    ]
    faults += [{"u": good["u"][0]}, {"B": good["B"][:1]}, {"A": good["A"][None]}, {"D": good["D"][None]}]
    faults += [{"state": start[:1]}, {"state": start.astype(np.float64)}, {"state": start.astype(BF16)}]
    faults += [{"out": frozen}, {"out": np.broadcast_to(out[:1], out.shape)}, {"out": out[..., :4]}]
    faults += [{"state": np.lib.stride_tricks.as_strided(start, (2, 8, 3), (0, 12, 4))}]
    faults += [{"live": np.ones((12, 7), bool)}, {"live": np.ones((11, 8), bool)}, {"live": np.ones(0, bool)}]
    faults += [{"live": np.ones((12, 8), np.float32)}, {"live": np.ones((24, 8), bool)[::2]}]
    faults += [{"live": np.ones((12, 8), bool), "branch": 0}, {"live": np.ones((12, 8), bool), "branch": 2}]
    faults += [
        {"u": good["u"].astype(np.int8)},
        {"D": np.ones(8, np.int32)},
        {"z": good["z"].astype(complex)},
    ]
    for fault in faults:
        if "state" in fault and fault["state"].dtype == np.float64:
            call(**fault)  # computed in float64 then
            continue
        with pytest.raises((ValueError, TypeError)):
            call(**fault)
    norms = np.empty((12, 4), np.float32)
    _core.gates(good["z"], 2, True, norms, 1)
    for z, branch, to in [
        (good["z"], 2, norms[:, :3]),
        (good["z"], 0, norms),
        (good["z"], 2, norms.astype(np.float64)),
        (good["z"], 2, np.broadcast_to(norms[:1], norms.shape)),
        (good["z"][0, 0], 2, norms),
        (good["z"].astype(np.int8), 2, norms),
    ]:
        with pytest.raises((ValueError, TypeError)):
            _core.gates(z, branch, False, to, 1)


def test_sizes_that_no_machine_has(engine):
    """Operands that repeat one value in memory may say that they have any size."""
    if engine.name != "cpu":
        return
    huge = np.broadcast_to(np.float32(-1), (1, 1 << 60))
    one = np.ones((1, 1), np.float32)
    with pytest.raises(MemoryError):
        pr.selective_scan(one, one, huge, huge, huge)
