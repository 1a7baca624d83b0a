"""Stochastic rounding of bfloat16 state: the same bits everywhere, the right neighbours, the right mean."""

from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
from cuda_devices import StandIn
from libraries import LIBRARIES, library_of, refused
from multiopt.backends import get, rounding
from multiopt.backends.engines.eager import Elementwise
from multiopt.backends.engines.host import engine as host
from multiopt.backends.rounding import STEPS, Draws, Elements, Rounding, absorbed, hashed, rounded, tables
from rules import ADAM

from multiopt import ADADELTA, Adadelta, Hyper, Optimizer, Rule
from multiopt.binding import Binding
from multiopt.plan import run as run_plans
from multiopt.update import FusedUpdate

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
OPTIONS = {"state_dtype": "bfloat16", "state_rounding": "stochastic", "seed": 2**63 + 5, "ema": 0.999}
SHAPES = [(33, 65), (), (0,), (1111,)]
UPDATE = FusedUpdate(ADADELTA, stochastic=(None, 0, 1))
VALUES = {"lr": 1.0, "rho": 0.999, "eps": 1e-6}


def draws(seed, shapes=SHAPES, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def train(place=np.copy, back=np.asarray, dtype="float32", steps=3, rule=ADADELTA, **options):
    """Parameters, state and averages after some steps, in NumPy."""
    opt = Optimizer(rule, [place(a) for a in draws(0, dtype=dtype)], **{**OPTIONS, **options})
    for step in range(steps):
        opt.step([place(a) for a in draws(step + 1, dtype=dtype)])
    columns = [*opt.params, *(a for own in opt.state for a in own.values()), *(opt.ema_params if opt.ema else [])]
    return [np.asarray(back(a)) for a in columns]


def assert_same(left, right):
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), i


@pytest.fixture(scope="module")
def reference():
    """The eager engine's, on NumPy arrays in C order."""
    return {dtype: train(engine="eager", dtype=dtype) for dtype in (np.dtype("float32"), BFLOAT16)}


# --- the same bits ---


@pytest.mark.parametrize("name", ["numpy", "torch", "torch-strided", "numpy-strided-eager", "jax", "dask"])
def test_every_library_rounds_alike(name, reference):
    with library_of(LIBRARIES[name]) as library:
        assert_same(train(library.param, library.back, engine=library.engine), reference[np.dtype("float32")])


@pytest.mark.parametrize("dtype", [np.dtype("float32"), BFLOAT16], ids=str)
@pytest.mark.parametrize(
    "order", [np.copy, np.asfortranarray, lambda a: np.repeat(a, 2, -1)[..., ::2] if a.ndim else a]
)
def test_layouts_pieces_and_threads_change_nothing(monkeypatch, dtype, order, reference):
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "2")
    for name, value in {"PIECE": 1000, "SERIAL": 0, "COPIED": 700}.items():
        monkeypatch.setattr(host, name, value)
    assert_same(train(order, dtype=dtype), reference[dtype])


@pytest.mark.parametrize("order", [np.copy, np.asfortranarray])
def test_cuda_rounds_alike(order, reference):
    with StandIn().registered() as device:
        assert_same(train(lambda a: device.put(order(a)), engine="cuda"), reference[np.dtype("float32")])


def test_a_cuda_graph_is_refused():
    with StandIn().registered() as device:
        opt = Adadelta(device.put(np.ones(3, np.float32)), engine="cuda", **OPTIONS)
        g = device.put(np.ones(3, np.float32))
        opt.step(g)
        with refused(opt, RuntimeError, "state_rounding: a CUDA graph would repeat"):
            device.capture(lambda: opt.step(g))


def test_rules_of_three_slots_and_more(reference):
    # Adam's two and the average: the third slot takes another hash.
    assert_same(train(rule=ADAM), train(rule=ADAM, engine="eager"))


def updated(engine, arrays, elements, step=3, elsewhere=np.copy):
    """One step of a binding: x, v, u."""
    x, g, v, u = map(elsewhere, arrays)
    state = [dict(zip(ADADELTA.slots, (v, u), strict=True))]
    binding = Binding(ADADELTA, [x], ["x"], state=state, engine=engine, elements=[elements])
    run_plans([binding.plan(UPDATE, [g], VALUES, rounding=Rounding(7, step))])
    return x, v, u


@pytest.mark.parametrize("engine", ["host", "eager", "cuda"])
@pytest.mark.parametrize("far", [0, 2**31 - 40, 2**32 - 40, 2**40 + 2**32 - 40])
def test_a_shard_rounds_as_the_whole(engine, far):
    # Rows of 5 of a matrix whose first element has the number `far`: columns 1 to 3, as they are sharded. Both halves
    # of the index change on the way.
    x, g, *_ = draws(0, [(4, 60, 5)])[0].reshape(4, 60, 5).astype(np.float32)
    state = [np.abs(a).astype(BFLOAT16) for a in draws(1, [(60, 5), (60, 5)])]
    arrays = [x, g, *state]
    shard = [np.ascontiguousarray(a[:, 1:4]) for a in arrays]
    starts = far + 5 * np.arange(60) + 1
    whole = Elements(3, np.array([[far, 300]]))
    part = Elements(3, np.stack([starts, np.full(60, 3)], axis=1))
    with StandIn().registered() if engine == "cuda" else nullcontext() as device:
        place = device.put if engine == "cuda" else np.copy
        expected = updated("eager", arrays, whole)
        assert_same(
            [np.asarray(a) for a in updated(engine, arrays, whole, elsewhere=lambda a: place(a.copy()))], expected
        )
        ours = updated(engine, shard, part, elsewhere=lambda a: place(a.copy()))
        assert_same([np.asarray(a) for a in ours], [a[:, 1:4].copy() for a in expected])


def test_large_arrays_are_hashed_by_segments(monkeypatch):
    # As an array of more elements than fit into a word would be: in a namespace of its own no index is given by hand.
    like, backend = np.zeros(1000, np.float32), get("numpy")
    own = Draws(Rounding(1, 2), Elements(0), (1000,))
    before = own.random(backend, like, [0, 1])
    monkeypatch.setattr(rounding, "SEGMENT", 64)
    after = own.random(backend, like, [0, 1])
    by_index = Draws(Rounding(1, 2), Elements(0, np.array([[0, 1000]])), (1000,)).random(backend, like, [0, 1])
    for slot in (0, 1):
        assert (before[slot] == after[slot]).all()
        assert (before[slot] == by_index[slot]).all()


def test_runs_must_be_as_many_as_the_elements():
    with pytest.raises(ValueError, match="x: expected runs of 3 elements, got 4"):
        updated("host", [np.ones(3, np.float32)] * 4, Elements(0, np.array([[0, 4]])))


def test_what_rounds_stochastically_must_be_told_how():
    binding = Binding(ADADELTA, [np.ones(3, np.float32)], ["x"], state_dtype="bfloat16")
    with pytest.raises(ValueError, match="rounding: expected a seed, a step and the elements"):
        binding.plan(UPDATE, [np.ones(3, np.float32)], VALUES)
    with pytest.raises(ValueError, match="g: expected an update that rounds to nearest"):
        binding.plan_rows(UPDATE, 0, np.array([0]), np.ones(1, np.float32), VALUES, "g")


# --- one number ---

#: Exact ones, ties, neighbours of powers of two, subnormals, the largest, infinities, zeros, NaNs of all kinds.
BITS = np.array(
    [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x10000, 0x10001, 0x7FFFFF, 0x800000, 0x3F7FFFFF, 0x3F800000, 0x3F808000,
     0x3F80FFFF, 0x3F810000, 0x7F7F0000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF],
    np.uint32,
)  # fmt: skip
NUMBERS = np.concatenate([BITS, BITS | np.uint32(1 << 31)]).view(np.float32)


def copied(xp, x, g, a, b, *, lr):
    return x, g, -g


def test_a_number_becomes_one_of_its_neighbours_with_the_right_probability():
    random = np.arange(1 << 16, dtype=np.int32)
    for x in NUMBERS:
        got = rounded(np, np.full(1 << 16, x), random)
        if np.isnan(x):
            assert np.isnan(got.astype(BFLOAT16)).all()
            continue
        bits = x.view(np.uint32)
        below = (bits & np.uint32(0xFFFF0000)).view(np.float32)
        above = (np.uint32(int(bits & 0xFFFF0000) + 0x10000) if bits & 0xFFFF else bits & np.uint32(0xFFFF0000)).view(
            np.float32
        )
        up = got.view(np.uint32) == above.view(np.uint32)
        assert (up | (got.view(np.uint32) == below.view(np.uint32))).all()
        # Of all 2**16 random numbers as many round up as there are steps from the lower neighbour: the mean is x.
        assert up.sum() == (bits & 0xFFFF if bits & 0xFFFF else 1 << 16)
        assert (np.signbit(got) == np.signbit(x)).all()


@pytest.mark.parametrize("engine", ["host", "cuda"])
def test_engines_store_every_number_as_the_eager_one(engine):
    rule = Rule("copied", copied, {"a": 0.0, "b": 0.0}, {"lr": Hyper(1.0)})
    update = FusedUpdate(rule, stochastic=(None, 0, 1))
    results = []
    with StandIn().registered() if engine == "cuda" else nullcontext() as device:
        for name, place in ((engine, device.put if engine == "cuda" else np.copy), ("eager", np.copy)):
            g = np.tile(NUMBERS, 40)
            x, g = place(np.zeros_like(g)), place(g)
            binding = Binding(rule, [x], ["x"], state_dtype="bfloat16", engine=name, elements=[Elements(0)])
            run_plans([binding.plan(update, [g], {"lr": 1.0}, rounding=Rounding(1, 1))])
            results.append([np.asarray(binding.state[slot][0]).astype(np.float32) for slot in ("a", "b")])
    for ours, theirs in zip(*results, strict=True):
        assert (np.isnan(ours) == np.isnan(np.tile(NUMBERS, 40))).all()
        assert (ours.view(np.uint32) == theirs.view(np.uint32))[~np.isnan(ours)].all()


# --- statistics: seeds are fixed, so that these either hold or do not ---

#: Within how many standard errors: of 1,000 such questions, one in 1,700 would fail by chance.
SIGMAS = 5


def words(seed=0, step=0, parameter=0, slots=(0, 1), n=1 << 16):
    made = Draws(Rounding(seed, step), Elements(parameter), (n,)).random(get("numpy"), np.zeros(n, np.float32), slots)
    return [made[slot] for slot in slots]


def test_random_numbers_are_uniform():
    for slot, drawn in enumerate(words(seed=3, step=8, parameter=2, slots=(0, 1, 2, 3))):
        assert (drawn.min(), drawn.max() < 1 << 16) == (drawn.min(), True)
        assert drawn.min() >= 0
        n = len(drawn)
        assert abs(drawn.mean() - (2**16 - 1) / 2) < SIGMAS * 2**16 / np.sqrt(12 * n), slot
        for bit in range(16):
            assert abs((drawn >> bit & 1).mean() - 0.5) < SIGMAS * 0.5 / np.sqrt(n), (slot, bit)
        # Pearson's chi-squared over 256 bins: its mean is 255 and its variance 510.
        counts = np.bincount(drawn >> 8, minlength=256)
        assert abs(((counts - n / 256) ** 2 / (n / 256)).sum() - 255) < SIGMAS * np.sqrt(510), slot


def test_slots_steps_parameters_seeds_and_elements_are_independent():
    first, second, third, fourth = words(slots=(0, 1, 2, 3))
    others = {
        "slots of a pair": second, "pairs": third, "odd slots": fourth, "steps": words(step=1)[0],
        "far steps": words(step=2**32)[0], "parameters": words(parameter=1)[0], "seeds": words(seed=1)[0],
        "far seeds": words(seed=2**32)[0], "neighbours": np.roll(first, 1), "rows": np.roll(first, 256),
        "a step and a parameter": words(step=1, parameter=1)[0],
    }  # fmt: skip
    n = len(first)
    for what, other in others.items():
        # Of products of independent, centred uniform numbers.
        assert abs(np.corrcoef(first, other)[0, 1]) < SIGMAS / np.sqrt(n), what
        # That equal ones are as frequent as chance has them: two sequences that are copies of one another, shifted too.
        assert abs((first == other).sum() - n / 2**16) < SIGMAS, what
    # No element of one is to meet its own hash in another at a fixed distance.
    for what in ("steps", "parameters", "seeds"):
        same = np.convolve(first[:2048] - first.mean(), (others[what][:2048] - others[what].mean())[::-1])
        assert np.abs(same).max() < 6 * first.std() ** 2 * np.sqrt(2048), what  # the largest of 12,285 sums


def test_every_bit_of_every_word_reaches_every_bit():
    # Avalanche: flipping any bit of the index, or of a word of the keys, flips each bit of the hash half of the time.
    index = np.arange(1 << 12, dtype=np.int32)
    keys = Rounding(5, 6).keys
    n = len(index)
    for bit in range(12):
        flipped = hashed(index, keys) ^ hashed(index ^ np.int32(1 << bit), keys)
        for k in range(32):
            assert abs((flipped >> k & 1).mean() - 0.5) < SIGMAS * 0.5 / np.sqrt(n / 2), (bit, k)  # pairs count twice
    flips = [
        bin((a ^ b) & 0xFFFFFFFF).count("1")
        for word in range(200)
        for bit in range(32)
        for a, b in zip(absorbed(keys, word), absorbed(keys, word ^ 1 << bit), strict=True)
    ]
    assert abs(np.mean(flips) - 16) < SIGMAS * np.sqrt(8 / len(flips))


def test_the_mean_is_unbiased():
    # A state of 1 + 2**-12, which lies between 1 and 1 + 2**-7: over seeds and elements the mean is itself.
    n, x = 1 << 12, np.float32(1 + 2**-12)
    stored = np.array([
        rounded(np, np.full(n, x), drawn) for seed in range(64) for drawn in words(seed=seed, n=n)
    ])  # fmt: skip
    p = 2**-5
    assert abs(stored.mean(dtype=np.float64) - x) < SIGMAS * 2**-7 * np.sqrt(p * (1 - p) / stored.size)
    # Each element for itself, too: none is always rounded in one direction.
    means = stored.mean(axis=0, dtype=np.float64)
    assert abs(means - x).max() < 1.5 * SIGMAS * 2**-7 * np.sqrt(p * (1 - p) / len(stored))


def test_small_additions_are_not_lost():
    """A moving average at rho = 0.999 where rounding to nearest stalls.

    Towards g² = 1 from 0.9: what a step adds, 0.001 × 0.1, is far less than half a unit of bfloat16 there, 2**-9, so
    that to nearest nothing changes. Rounded stochastically each step adds an error of mean 0 and a variance of at most
    (2**-8)² / 4, of which 0.999 is kept: after many steps no more than (2**-9)² / (1 − 0.999²), a standard deviation of
    0.044 for each element, and of their mean over 4,096 elements 0.0007.
    """
    n, steps = 4096, 600
    runs = {}
    for name, options in {
        "float32": {"state_dtype": "float32"},
        "nearest": {"state_dtype": "bfloat16"},
        "stochastic": {"state_dtype": "bfloat16", "state_rounding": "stochastic"},
    }.items():
        opt = Adadelta(np.zeros(n, np.float32), rho=0.999, **options)
        opt.state["square_avg"][...] = 0.8984375  # a number of bfloat16
        for _ in range(steps):
            opt.step(np.ones(n, np.float32))
        runs[name] = opt.state["square_avg"].astype(np.float64)
    assert (runs["nearest"] == 0.8984375).all()
    error = runs["stochastic"] - runs["float32"]
    spread = 2**-9 / np.sqrt(1 - 0.999**2)
    assert abs(error.mean()) < SIGMAS * spread / np.sqrt(n)
    assert error.std() < spread
    assert abs(runs["float32"] - 0.944).max() < 0.001


def test_tables_for_engines():
    tensors, runs = tables([Elements(4), Elements(9, np.array([[10, 2], [20, 3]]))], np.array([7, 5]))
    assert tensors.tolist() == [[4, 0], [9, 1], [0, 3]]
    assert runs.tolist() == [[7, 0], [2, 10], [5, 18]]


def test_every_step_of_the_hash_is_invertible():
    assert all(operand % 2 == 1 for what, operand in STEPS if what == "mul")
    assert {what for what, _ in STEPS} == {"add", "xor", "shift", "mul"}


def test_blocks_know_where_they_stand():
    function = Elementwise(UPDATE.program, VALUES, "float32", Draws(Rounding(1, 1), Elements(0), (8, 6)))
    rng = np.random.default_rng(0)
    arrays = [rng.random((8, 6)).astype(np.float32) for _ in range(4)]
    whole = function(np, *arrays)
    box = slice(2, 5), slice(1, 4)
    for all_of_it, part in zip(whole, function.within(box)(np, *(a[box] for a in arrays)), strict=True):
        assert (all_of_it[box] == part).all()
