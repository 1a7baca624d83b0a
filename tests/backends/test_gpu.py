"""The CUDA engine on CuPy, PyTorch and a stand-in: NumPy's bits, one launch, no allocation, no waiting, graphs."""

import numpy as np
import pytest
from cuda_devices import Cupy, StandIn, Torch, arrays, assert_same, everything, pair, step_both
from libraries import OPTIONS

from multiopt import Adadelta, backends

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
GPUS = [pytest.param(kind, id=kind.name, marks=pytest.mark.gpu) for kind in (Cupy, Torch)]


@pytest.fixture(params=GPUS)
def gpu(request):
    return request.param()


@pytest.fixture(params=[*GPUS, pytest.param(StandIn, id="stand-in")])
def device(request):
    made = request.param()
    if not isinstance(made, StandIn):
        yield made
        return
    with made.registered():
        yield made


# --- bits ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_the_bits_of_numpy(device, dtype):
    step_both(device, *pair(device, dtype, weight_decay=0.01))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_the_bits_of_numpy(device, name, dtype):
    step_both(device, *pair(device, dtype, steps=6, **OPTIONS[name]))


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float64"), ("float64", "float32")],
)
def test_state_of_another_dtype(device, dtype, state_dtype):
    step_both(device, *pair(device, dtype, state_dtype=state_dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges_and_subnormals(device, dtype):
    info = np.finfo(dtype)
    numbers = np.array([0, 1, info.max, info.tiny, info.smallest_subnormal, np.inf, np.nan, 1e-20, 3e9], dtype)
    x, g = np.meshgrid(np.concatenate([numbers, -numbers]), np.concatenate([numbers, -numbers]))
    ours = Adadelta([device.put(x.copy())], engine="cuda", weight_decay=0.1)
    step_both(device, ours, Adadelta([x.copy()], weight_decay=0.1), [[g], [g]])


def test_groups_have_numbers_of_their_own(device):
    """And launches, which carry them."""
    rng, options = np.random.default_rng(4), [{"lr": 0.5}, {"lr": 2.0, "rho": 0.5}, {"clip_norm": 0.5}]
    starts, grads = ([arrays(rng, "float32", [(5,), (2, 3)]) for _ in options] for _ in range(2))
    ours, numpys = (
        Adadelta([{"params": list(map(put, own)), **o} for own, o in zip(starts, options, strict=True)], engine=engine)
        for put, engine in ((device.put, "cuda"), (np.copy, "auto"))
    )
    for _ in range(2):
        ours.step([list(map(device.put, own)) for own in grads])
        numpys.step(grads)
    for found, expected in zip(ours.params, numpys.params, strict=True):
        assert [np.asarray(device.get(a)).tobytes() for a in found] == [a.tobytes() for a in expected]


# --- where arrays lie ---


@pytest.mark.parametrize("which", ["parameters", "gradients", "both"])
@pytest.mark.parametrize("way", ["gaps", "transposed", "shifted"])
def test_arrays_with_gaps_transposed_or_off_16_bytes_lose_no_update(device, which, way):
    def place(array):
        if way == "gaps":
            return device.put(np.repeat(array[..., None], 2, axis=-1))[..., 0]
        if way == "transposed":
            return device.put(np.ascontiguousarray(array.T)).T if array.ndim < 3 else device.put(array.copy())
        return device.put(np.concatenate([np.zeros(1, array.dtype), array.ravel()]))[1:].reshape(array.shape)

    rng = np.random.default_rng(7)
    shapes = [(64, 65), (40_009,), (5,)]
    start = arrays(rng, "float32", shapes)
    params = [place(a) if which != "gradients" else device.put(a) for a in start]
    ours = Adadelta(params, engine="cuda", clip_global_norm=1.0)
    numpys = Adadelta([a.copy() for a in start], clip_global_norm=1.0)
    steps = [arrays(rng, "float32", shapes) for _ in range(3)]
    step_both(device, ours, numpys, steps, place if which != "parameters" else device.put)
    assert all(a is b for a, b in zip(ours.params, params, strict=True))


def test_gradients_in_the_memory_of_parameters(device):
    ours, numpys, _ = pair(device, shapes=[(500,), (500,)])
    # The other's memory, and its own.
    step_both(device, ours, numpys, [[numpys.params[1].copy()] * 2], lambda g: ours.params[1])


def test_skipped_tensors_are_left_alone(device):
    ours, numpys, steps = pair(device, steps=4)
    for grads, skipped in zip(steps, ([0, 4], [4], [], range(1, len(steps[0]))), strict=True):
        step_both(device, ours, numpys, [[None if i in skipped else g for i, g in enumerate(grads)]])


def test_three_thousand_million_elements_in_one_array(gpu):
    size = 3_000_000_000
    if gpu.free() < 4 * 4 * size + (2 << 30):
        pytest.skip(f"it needs {16 * size / 1e9:.0f} GB on the device, {gpu.free() / 1e9:.0f} GB are free")
    x, g = gpu.full(size, 1.0, "float32"), gpu.full(size, 0.5, "float32")
    places = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, size - 4097, size - 2, size - 1]
    for k, place in enumerate(places):
        g[place] = 0.25 * (k + 1)
    small = np.array([0.25 * (k + 1) for k in range(len(places))], np.float32)
    numpys = Adadelta([np.ones(len(places), np.float32)])
    ours = Adadelta([x], engine="cuda")
    ours.step([g])
    numpys.step([small])
    assert [float(x[p]) for p in places] == numpys.params[0].tolist()
    # Elsewhere the gradient is 0.5, as at the second place.
    assert [float(x[p]) for p in (17, 2**31 + 5, size - 5000)] == [float(numpys.params[0][1])] * 3


# --- what a step costs ---


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1, "clip_value": 1.0}, {"clip_global_norm": 1.0, "clip_norm": 2.0}],
    ids=["plain", "decay and clip", "norms"],
)
def test_a_step_allocates_nothing_and_waits_for_nothing(gpu, options):
    ours, numpys, (grads, *_) = pair(gpu, **options)
    own = [gpu.put(g) for g in grads]
    ours.step(own)
    gpu.wait()
    allocations = gpu.allocations(lambda: ours.step(own))
    assert allocations == 0 or "clip_norm" in options  # clipping by norm makes small arrays in the library
    gpu.wait()
    gpu.delay()
    with gpu.no_waiting():
        ours.step(own)
    assert not gpu.done(), "the step has waited for the device"
    gpu.wait()
    for _ in range(3):
        numpys.step(grads)
    assert_same(gpu, ours, numpys)
    assert ours.grad_norm is None or float(ours.grad_norm) == float(numpys.grad_norm)


def test_it_works_on_the_current_stream(gpu):
    ours, numpys, steps = pair(gpu)
    gpu.wait()
    for grads in steps:
        with gpu.stream():
            own = [gpu.put(g) for g in grads]
            gpu.delay()
            # Were the step on another stream, it would read the gradients before they are what they shall be.
            for g in own:
                g *= 2
            ours.step(own)
        gpu.wait()
        numpys.step([np.asarray(g * 2) for g in grads])
    assert_same(gpu, ours, numpys)


# --- graphs ---


@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 1.0}], ids=["plain", "global norm"])
def test_graph_capture(device, options):
    if options and device.name == "stand-in":
        pytest.skip("a graph of the stand-in holds kernels of ours, but no clipping in NumPy")
    ours, numpys, steps = pair(device, steps=4, **options)
    static = [device.put(g) for g in steps[0]]
    step_both(device, ours, numpys, steps[:1])  # the step before capture, with gradients elsewhere
    replay = device.capture(lambda: ours.step(static))
    assert_same(device, ours, numpys)  # a capture does nothing yet
    backend = backends.of(static[0])
    for grads in steps[1:]:
        for s, g in zip(static, grads, strict=True):
            backend.write(s, device.put(g))
        device.wait()
        replay()
        numpys.step(grads)
        assert_same(device, ours, numpys)
        # And another step between replays, with its gradients elsewhere again.
        step_both(device, ours, numpys, [grads])


def test_capture_needs_a_step_with_the_same_options_before_it(device):
    ours, numpys, (grads, *_) = pair(device, shapes=[(3,)], nonfinite="skip")
    own = [device.put(g) for g in grads]

    def rejected(reason):
        with pytest.raises(RuntimeError, match=reason):
            ours.step(own)
        own[0] *= 1  # an empty graph would be warned of

    ours.nonfinite = "propagate"
    device.capture(lambda: rejected("do one step with the same options before it"))
    assert_same(device, ours, numpys)
    step_both(device, ours, numpys, [grads])
    ours.weight_decay = 0.25
    device.capture(lambda: rejected("do one step with the same options before it"))
    ours.weight_decay, ours.nonfinite = 0.0, "skip"
    device.capture(lambda: rejected("nonfinite"))
    assert_same(device, ours, numpys)
    ours.nonfinite = "propagate"
    step_both(device, ours, numpys, [grads])


def test_capturable_with_the_rate_in_a_tensor():
    gpu = Torch()
    torch = gpu.torch
    from multiopt.torch import Adadelta as TorchAdadelta

    rng = np.random.default_rng(8)
    start, grads = (arrays(rng, "float32", [(40_009,), (7, 9)]) for _ in range(2))
    params = [torch.nn.Parameter(gpu.put(a)) for a in start]
    lr = torch.tensor(0.5, device="cuda")
    opt = TorchAdadelta(params, lr=lr, capturable=True, weight_decay=0.01)
    numpys = Adadelta([a.copy() for a in start], lr=0.5, weight_decay=0.01)
    for p, g in zip(params, grads, strict=True):
        p.grad = gpu.put(g)
    opt.step()
    numpys.step(grads)
    replay = gpu.capture(opt.step)
    for value in (0.5, 0.25, 2.0):
        lr.fill_(value)
        replay()
        numpys.lr = value
        numpys.step(grads)
    for p, expected in zip(params, numpys.params, strict=True):
        assert gpu.get(p).tobytes() == expected.tobytes()
    assert float(opt.state[params[0]]["step"]) == 4


# --- devices and autograd ---


@pytest.mark.parametrize("devices", [(0, 1, 0, 1), (1, 1, 1, 1)], ids=["two", "not the current one"])
@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 1.0}], ids=["plain", "global norm"])
def test_arrays_on_other_devices_than_the_current_one(gpu, devices, options):
    if gpu.devices < 2:
        pytest.skip("it needs two CUDA devices")
    rng = np.random.default_rng(9)
    shapes = [(5000,), (33, 3), (7,), (4096,)]
    start, grads = arrays(rng, "float32", shapes), arrays(rng, "float32", shapes)
    ours = Adadelta([gpu.put(a, i) for a, i in zip(start, devices, strict=True)], engine="cuda", **options)
    numpys = Adadelta([a.copy() for a in start], **options)
    for _ in range(2):
        ours.step([gpu.put(g, i) for g, i in zip(grads, devices, strict=True)])
        numpys.step(grads)
    assert_same(gpu, ours, numpys)


def test_autograd_is_told_that_parameters_changed():
    gpu = Torch()
    x = gpu.put(np.ones(5, np.float32)).requires_grad_()
    y = (x * x).sum()
    Adadelta([x], engine="cuda").step([gpu.put(np.ones(5, np.float32))])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_non_finite_gradients_are_skipped(device):
    ours, _, (grads, *_) = pair(device, nonfinite="skip")
    before = everything(ours, device.get)
    grads[4][3, 3] = np.nan
    ours.step([device.put(g) for g in grads])
    assert ours.skipped == 1
    assert [a.tobytes() for a in before] == [a.tobytes() for a in everything(ours, device.get)]
