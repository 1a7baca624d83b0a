"""Random operations, good and bad, on an optimizer of NumPy arrays or PyTorch tensors, beside a plain twin.

The twin runs the eager engine on NumPy arrays of its own, gets copies of everything, and never sees what is refused.
After each operation both hold the same bits; what is refused has changed nothing.
"""

import copy
import pickle

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from libraries import gaps, snapshot, strided, torch_array, torch_tensor
from stateful import Machine, canonical, run_machine

from multiopt import Adadelta, checkpoint, schedules

DTYPES = "float16", "bfloat16", "float32", "float64", "complex64"
SHAPES = (), (0,), (3,), (3,), (5, 3), (3, 3), (2, 0, 3)
LAYOUTS = "C", "C", "F", "gaps", "pool"
REFUSALS = TypeError, ValueError
OPTIONS = {
    "accumulate": [1, 1, 2, 3], "ema": [None, 0.9], "state_dtype": [None, None, "float32"],
    "nonfinite": ["propagate", "skip", "raise"],
}  # fmt: skip
GOOD = {
    "lr": [0.0, 0.5, 1.5, schedules.Exponential(1.0, 3, 0.5)], "rho": [0.0, 0.9, 1.0], "eps": [1e-3, 1e-6],
    "weight_decay": [0.0, 0.1], "decoupled": [False, True], "maximize": [False, True], "clip_value": [None, 0.5],
    "clip_norm": [None, 0.7, 100.0],
}  # fmt: skip
GOOD_STEP = {
    "clip_global_norm": [None, 1.1], "loss_scale": [1.0, 128.0], "nonfinite": ["propagate", "skip", "raise"]
}  # fmt: skip
BAD = {
    "lr": [-1.0, float("nan"), float("inf"), None, "1", 1j, [1.0]], "rho": [-0.1, 1.1, None], "eps": [0.0, -1.0, True],
    "weight_decay": [-1.0, float("nan")], "decoupled": [1, None, np.True_], "clip_value": [0.0, -1.0, "1"],
    "clip_norm": [0.0, float("nan")], "learning_rate": [0.1], "params": [[]],
}  # fmt: skip
VANISHING = [("lr", 1e300), ("lr", 1e-46), ("eps", 1e-46), ("weight_decay", 1e-50), ("loss_scale", 5e-324)]
BAD_STEP = {
    "clip_global_norm": [0.0, -1.0], "loss_scale": [0.0, None], "nonfinite": ["ignore", None], "ema": [1.0, "x"]
}  # fmt: skip

GRADS = [
    "C", "C", "C", "F", "gaps", "none", "own", "other", "neighbours", "owner", "turned", "expanded", "lazy", "readonly",
]  # fmt: skip
NARROW = {
    torch.float64: torch.float32, torch.float32: torch.float16, torch.float16: torch.bfloat16,
    torch.bfloat16: torch.float16, torch.complex64: torch.complex32, torch.complex128: torch.complex64,
}  # fmt: skip
BAD_GRADS = [
    "shape", "dtype", "library", "list", "number", "many", "integer", "sparse", "meta", "freed", "nested", "subclass",
]  # fmt: skip


class Strange(Exception):
    """What a user's schedule raises."""


def native(dtype):
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def host(array):
    """A NumPy copy of an array of either library."""
    if isinstance(array, torch.Tensor):
        return torch_array(array)
    return np.array(array, order="C")


def draw(rng, shape, dtype, positive=False):
    values = rng.standard_normal((2, *shape)) * 10.0 ** rng.integers(-6, 3)
    values = np.abs(values) if positive else values
    return np.asarray(values[0] + 1j * values[1] if dtype.startswith("complex") else values[0]).astype(native(dtype))


class CoreMachine(Machine):
    # --- making ---

    @initialize(
        library=st.sampled_from(["numpy", "torch"]),
        options=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONS.items()}),
        count=st.integers(1, 5),
        data=st.data(),
    )
    def make(self, library, options, count, data):
        self.library, self.files, self.snapshots, self.pools = library, [], [], {}
        self.note("make", library, options, count)
        given, twins = self.drawn_params(data, count)
        self.opt, self.twin = Adadelta(given, **options), Adadelta(twins, engine="eager", **options)

    def drawn_params(self, data, count):
        pairs = [self.new_param(data) for _ in range(count)]
        return [one for one, _ in pairs], [other for _, other in pairs]

    def new_param(self, data):
        dtype, shape = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(SHAPES))
        layout = data.draw(st.sampled_from(LAYOUTS))
        values = draw(self.rng(data), shape, dtype)
        self.note("  param", dtype, shape, layout)
        if layout == "pool" and shape == (3,):
            return self.from_pool(dtype, values), values
        return self.laid(values, layout), values.copy()

    def from_pool(self, dtype, values):
        """Three elements of a buffer that parameters share, without gaps between them."""
        buffer, used = self.pools.setdefault(dtype, (np.zeros(300, native(dtype)), []))
        own = buffer[3 * len(used) : 3 * len(used) + 3]
        own[...] = values
        used.append(own)
        return torch_tensor(own) if self.library == "torch" else own

    def laid(self, values, layout):
        if layout == "gaps":
            return gaps(values) if self.library == "torch" else strided(values)
        values = np.array(values, order="F" if layout == "F" else "C")
        if self.library == "torch":  # in memory of NumPy's, or of PyTorch's, which can be resized
            return torch_tensor(values) if layout == "F" else torch_tensor(values).clone()
        return values

    def rng(self, data):
        return np.random.default_rng(data.draw(st.integers(0, 2**16), "values"))

    # --- looking ---

    def leaves(self, tree):
        if isinstance(tree, (list, tuple)):
            return [leaf for entry in tree for leaf in self.leaves(entry)]
        return [leaf for entry in tree.values() for leaf in self.leaves(entry)] if isinstance(tree, dict) else [tree]

    def params(self, opt=None):
        return self.leaves((opt or self.opt).params)

    def owned(self, opt):
        """Parameters, state and averages, in one order for both."""
        return self.params(opt) + self.leaves(opt.state) + (self.leaves(opt.ema_params) if opt.ema is not None else [])

    def is_whole_step(self):
        """Whether the next call of `step` updates the parameters."""
        return self.opt.micro_steps + 1 == self.opt.accumulate

    def nested(self, flat):
        """A flat list of gradients in the structure of the parameters."""
        rest = iter(flat)
        if not self.opt.grouped:
            return list(rest)
        return [[next(rest) for _ in group.params] for group in self.opt.groups]

    def everything(self):
        return snapshot(self.opt), self.opt.settings, len(self.opt.groups)

    def bits(self, opt):
        arrays = {p.key: canonical(p.bucket.backend.to_host(p.get())) for p in checkpoint.places(opt, params=True)}
        norm = None if opt.grad_norm is None else canonical(np.asarray(float(opt.grad_norm)))
        settings = {name: value for name, value in opt.settings.items() if name != "engine"}
        groups = [group.options() for group in opt.groups]
        return arrays, norm, settings, groups, opt.steps, opt.micro_steps, opt.skipped

    @invariant()
    def same_bits(self):
        if hasattr(self, "opt"):
            assert self.bits(self.opt) == self.bits(self.twin)

    def both(self, act):
        """Do it to both: both accept it, or both refuse it and nothing has changed."""
        before, found, told = self.everything(), [], []
        for opt in (self.opt, self.twin):
            try:
                act(opt)
                found.append(None)
            except (*REFUSALS, FloatingPointError) as error:
                found.append(type(error))
                told.append(str(error))
        assert found[0] == found[1], (found, told)
        if found[0] is not None:
            assert self.everything() == before, ("a refused operation changed something", told)
        return found[0]

    # --- gradients ---

    def good_grads(self, data, finite=False):
        """Gradients for all parameters, and copies of them for the twin."""
        rng, kinds, given = self.rng(data), [], []
        for i, p in enumerate(self.params()):
            kinds.append(data.draw(st.sampled_from(GRADS)))
            given.append(self.grad(rng, i, p, kinds[-1]))
        if all(g is None for g in given):
            given[0] = self.grad(rng, 0, self.params()[0], "C")
        if not finite and rng.random() < 0.1:
            some = [g for g, kind in zip(given, kinds, strict=True) if kind == "C" and g is not None and g.ndim]
            for g in some:
                g[:1] = rng.choice([np.inf, -np.inf, np.nan])
        self.note("  grads", kinds)
        return given, [None if g is None else host(g) for g in given]

    def grad(self, rng, i, p, kind):
        if kind == "none":
            return None
        dtype, shape = self.opt.backend.dtype(p), tuple(p.shape)
        tensors = self.library == "torch"
        values = draw(rng, shape, dtype)
        others = [a for a in self.owned(self.opt) if a.shape == p.shape and a.dtype == p.dtype]
        if kind == "own":
            return p
        if kind == "other":
            return others[rng.integers(len(others))]
        if kind == "neighbours" and shape == (3,) and dtype in self.pools:
            start = int(rng.integers(3 * len(self.pools[dtype][1])))
            near = self.pools[dtype][0][start : start + 3]
            return torch_tensor(near) if tensors else near
        if kind == "owner":  # the same memory under another owner
            if tensors and p.is_contiguous() and dtype != "bfloat16":
                return torch.from_numpy(p.detach().numpy())
            if not tensors and p.flags.c_contiguous and p.size:
                return np.frombuffer(memoryview(p.view(f"V{p.itemsize}")).cast("B"), p.dtype).reshape(shape)
        if kind == "turned" and len(shape) == 2 and shape[0] == shape[1]:
            return p.T
        if kind == "expanded" and shape:
            one = draw(rng, (1,) * len(shape), dtype)
            return torch_tensor(one).expand(shape) if tensors else np.broadcast_to(one, shape)
        if kind == "lazy" and tensors:
            if dtype.startswith("complex"):
                return torch_tensor(values).conj()
            return torch._neg_view(torch_tensor(values))
        if kind == "readonly" and not tensors:
            values.flags.writeable = False
            return values
        return self.laid(values, kind if kind in ("F", "gaps") else "C")

    # --- steps ---

    @rule(data=st.data())
    def step(self, data):
        self.note("step")
        given, copies = self.good_grads(data)
        pair = {id(self.opt): given, id(self.twin): copies}
        refused = self.both(lambda opt: opt.step(self.nested(pair[id(opt)])))
        assert refused in (None, FloatingPointError), refused
        assert self.opt.nonfinite == "raise" or refused is None

    @rule(data=st.data())
    def bad_step(self, data):
        kind = data.draw(st.sampled_from(BAD_GRADS))
        given, _ = self.good_grads(data, finite=True)
        i = data.draw(st.integers(0, len(given) - 1))
        self.note("bad_step", kind, i)
        bad = self.bad_grad(kind, self.params()[i])
        if bad is None:
            return
        given[i] = bad
        tree = [*self.nested(given), given[i]] if kind == "many" else self.nested(given)
        self.refuses(REFUSALS, lambda: self.opt.step(tree), kind)

    def bad_grad(self, kind, p):
        values, tensors = host(p), self.library == "torch"
        make = torch_tensor if tensors else np.array
        if kind == "shape":
            return make(np.zeros((*p.shape, 2), values.dtype))
        if kind == "dtype":
            other = {"float32": np.float64, "complex64": np.complex128}.get(values.dtype.name, np.float32)
            return make(values.astype(other))
        if kind == "integer":
            return make(np.zeros(p.shape, np.int32))
        if kind == "library":
            return values if tensors else torch_tensor(values)
        if kind == "list":
            return values.astype(complex).tolist() if p.ndim else [1.0]
        if kind == "number":
            return 1.0
        if kind == "many":
            return make(values)
        if not tensors:
            return np.ma.masked_array(values) if kind == "subclass" else None
        if kind == "sparse" and p.ndim:
            return torch_tensor(values).to_sparse()
        if kind == "meta":
            return torch.empty_like(p, device="meta")
        if kind == "freed" and p.numel():
            g = torch_tensor(values).clone()
            g.untyped_storage().resize_(0)
            return g
        if kind == "nested" and p.ndim == 1 and p.numel():
            return torch.nested.nested_tensor([torch_tensor(values)])
        return None

    @rule(data=st.data(), answer=st.sampled_from([Strange, None, "x", float("nan"), -1.0]))
    def strange_schedule(self, data, answer):
        """A schedule, which is user code, raises or answers nonsense: the step is refused."""
        group = data.draw(st.sampled_from(self.opt.groups))
        self.note("strange_schedule", answer)
        old, given = group["lr"], self.good_grads(data, finite=True)[0]

        def schedule(step):
            if answer is Strange:
                raise Strange("no rate")
            return answer

        group["lr"] = schedule
        if self.is_whole_step():
            self.refuses((*REFUSALS, Strange), lambda: self.opt.step(self.nested(given)), answer)
        group["lr"] = old

    # --- options ---

    @rule(data=st.data())
    def set_option(self, data):
        name = data.draw(st.sampled_from([*GOOD, *GOOD_STEP]))
        value = data.draw(st.sampled_from({**GOOD, **GOOD_STEP}[name]))
        self.note("set_option", name, value)
        one = name in GOOD and data.draw(st.booleans())
        for opt in (self.opt, self.twin):
            if one:
                opt.groups[-1][name] = value
            elif name in GOOD:
                opt[name] = value
            else:
                setattr(opt, name, value)

    @rule(data=st.data())
    def set_bad_option(self, data):
        name = data.draw(st.sampled_from([*BAD, *BAD_STEP]))
        value = data.draw(st.sampled_from({**BAD, **BAD_STEP}[name]))
        self.note("set_bad_option", name, value)
        if name in BAD_STEP:
            self.refuses(REFUSALS, lambda: setattr(self.opt, name, value), name, value)
        else:
            group = data.draw(st.sampled_from(self.opt.groups))
            self.refuses(REFUSALS, lambda: group.__setitem__(name, value), name, value)
            self.refuses(REFUSALS, lambda: self.opt.__setitem__(name, value), name, value)

    @rule(pair=st.sampled_from(VANISHING))
    def set_vanishing_number(self, pair):
        """A number that float32, in which all but float64 is computed, has not."""
        self.note("set_vanishing_number", pair)
        if any(self.opt.backend.dtype(p) != "float64" for p in self.params()):
            self.refuses(REFUSALS, lambda: setattr(self.opt, *pair), *pair)

    @rule(data=st.data(), count=st.integers(1, 2))
    def add_group(self, data, count):
        if len(self.opt.groups) < 4:
            self.note("add_group", count)
            given, twins = self.drawn_params(data, count)
            options = data.draw(st.sampled_from([{}, {"lr": 0.3}, {"clip_norm": 0.5, "weight_decay": 0.2}]))
            self.opt.add_param_group({"params": given, **options})
            self.twin.add_param_group({"params": twins, **options})

    @rule(data=st.data(), kind=st.sampled_from(["itself", "view", "integer", "library", "option", "value", "empty",
                                                "no params", "twice", "readonly"]))  # fmt: skip
    def add_bad_group(self, data, kind):
        self.note("add_bad_group", kind)
        p = data.draw(st.sampled_from(self.params()))
        good = self.laid(np.ones(3, np.float32), "C")
        other = np.ones(3, np.float32) if self.library == "torch" else torch.ones(3)
        view = p.reshape(-1)[:1] if self.library == "numpy" else p.view(-1)[:1] if p.is_contiguous() else p
        if kind in ("itself", "view") and (0 in p.shape or (self.library == "numpy" and not p.flags.c_contiguous)):
            return
        group = {
            "itself": {"params": [good, p]}, "view": {"params": [good, view]},
            "integer": {"params": [good, self.laid(np.ones(3, np.int64), "C")]}, "library": {"params": [good, other]},
            "option": {"params": [good], "learning_rate": 0.1}, "value": {"params": [good], "lr": "x"},
            "empty": {"params": []}, "no params": {"lr": 1.0}, "twice": {"params": [good, good]},
            "readonly": {"params": [np.broadcast_to(np.float32(1), (3,))]},
        }[kind]  # fmt: skip
        self.refuses(REFUSALS, lambda: self.opt.add_param_group(group), kind)

    # --- files, snapshots, copies ---

    @rule()
    def save(self):
        path = self.folder / f"{len(self.files) % 3}"
        self.note("save", path.name)
        self.opt.save(path)
        self.files.append(path)

    @rule()
    def take_snapshot(self):
        self.note("take_snapshot")
        self.snapshots.append(self.opt.state_dict())

    @precondition(lambda self: getattr(self, "files", None))
    @rule(data=st.data())
    def load(self, data):
        path = data.draw(st.sampled_from(self.files))
        self.note("load", path.name)
        self.both(lambda opt: opt.load(path))

    @precondition(lambda self: getattr(self, "snapshots", None))
    @rule(data=st.data())
    def load_snapshot(self, data):
        k = data.draw(st.integers(0, len(self.snapshots) - 1))
        self.note("load_snapshot", k)
        self.both(lambda opt: opt.load_state_dict(self.snapshots[k]))

    @precondition(lambda self: getattr(self, "files", None))
    @rule(data=st.data())
    def load_damaged(self, data):
        content = bytearray(data.draw(st.sampled_from(self.files)).read_bytes())
        place, how = data.draw(st.integers(0, len(content) - 1)), data.draw(st.sampled_from(["flip", "cut"]))
        self.note("load_damaged", place, how)
        if how == "cut":
            del content[place:]
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        path = self.folder / "damaged"
        path.write_bytes(content)
        # A bit of white space may be another white space: then both take over the same.
        assert self.both(lambda opt: opt.load(path)) in (None, ValueError)

    @rule(data=st.data(), kind=st.sampled_from(["shape", "dtype", "missing", "more", "meta", "steps", "groups", "key"]))
    def load_forged(self, data, kind):
        self.note("load_forged", kind)
        state = self.opt.state_dict()
        key = data.draw(st.sampled_from(sorted(state["arrays"])))
        array = state["arrays"][key]
        if kind in ("shape", "dtype", "meta"):
            values = host(array)
            new = np.zeros((*values.shape, 1), values.dtype) if kind == "shape" else np.zeros(values.shape, np.int32)
            state["arrays"][key] = new if kind != "meta" else torch.empty(values.shape, device="meta")
        elif kind == "missing":
            del state["arrays"][key]
        elif kind == "more":
            state["arrays"][key + "'"] = array
        else:
            state["about"][{"steps": "steps", "groups": "groups", "key": "format"}[kind]] = -1
        self.refuses(REFUSALS, lambda: self.opt.load_state_dict(state), kind)

    @rule(how=st.sampled_from(["pickle", "deepcopy"]))
    def copied(self, how):
        self.note("copied", how)
        norm = self.opt.grad_norm
        self.opt = copy.deepcopy(self.opt) if how == "deepcopy" else pickle.loads(pickle.dumps(self.opt))
        assert (norm is None) == (self.opt.grad_norm is None)
        self.pools = {}

    # --- arrays that change behind the optimizer's back ---

    @rule(data=st.data())
    def write(self, data):
        """New values in the same memory."""
        self.note("write")
        i = data.draw(st.integers(0, len(self.owned(self.opt)) - 1))
        one, other = self.owned(self.opt)[i], self.owned(self.twin)[i]
        positive = i >= len(self.params())
        values = draw(self.rng(data), tuple(one.shape), self.opt.backend.dtype(one), positive)
        one[...] = torch_tensor(values) if self.library == "torch" else values
        other[...] = values

    @precondition(lambda self: getattr(self, "library", None) == "torch")
    @rule(data=st.data(), how=st.sampled_from(["clone", "turned", "dtype", "resized", "freed", "fewer", "shape"]))
    def swap_tensor(self, data, how):
        i = data.draw(st.integers(0, len(self.owned(self.opt)) - 1))
        self.note("swap_tensor", i, how)
        t = self.owned(self.opt)[i]
        kept = t.detach().clone()
        given = self.all_grads(data)
        if how in ("clone", "turned"):
            t.data = kept.clone() if how == "clone" else kept.T.contiguous().T if kept.ndim == 2 else kept
            return
        if not t.numel() or t.untyped_storage().nbytes() != t.nbytes or not self.is_whole_step():
            return
        if how in ("resized", "freed") and not t.untyped_storage().resizable():
            return
        if how == "dtype":
            t.data = t.data.to(NARROW[t.dtype])
        elif how == "resized":
            t.resize_(t.numel() + 4)
        elif how == "shape":
            t.data = torch.zeros((*t.shape, 2), dtype=t.dtype)
        elif how == "fewer":
            t.data = t.data.reshape(-1)[:-1]
        else:
            t.untyped_storage().resize_(0)
        try:
            self.opt.step(self.nested(given))
        except (*REFUSALS, RuntimeError):
            pass
        else:
            raise AssertionError(("not refused", how, i))
        t.data = kept

    def all_grads(self, data):
        rng = self.rng(data)
        return [self.grad(rng, i, p, "C") for i, p in enumerate(self.params())]

    @precondition(lambda self: getattr(self, "library", None) == "numpy")
    @rule(data=st.data(), how=st.sampled_from(["readonly", "resized", "moved", "shape", "dtype"]))
    def change_array(self, data, how):
        i = data.draw(st.integers(0, len(self.owned(self.opt)) - 1))
        a = self.owned(self.opt)[i]
        given, kept, shape = self.all_grads(data), a.copy(), a.shape
        self.note("change_array", i, how)
        if not a.size or not (a.flags.owndata and a.flags.c_contiguous) or not self.is_whole_step():
            return
        if how == "readonly":
            a.setflags(write=False)
            self.refuses(REFUSALS, lambda: self.opt.step(self.nested(given)), how, i)
            a.setflags(write=True)
            return
        state = a.__reduce__()[2]
        try:
            if how == "resized":
                a.resize(a.size + 7, refcheck=False)
            elif how == "moved":  # other memory, the same values
                a.__setstate__(state)
            elif how == "shape":
                a.__setstate__(np.zeros((*shape, 2), a.dtype).__reduce__()[2])
            else:
                a.__setstate__(np.zeros(shape, np.int64).__reduce__()[2])
        except (ValueError, BufferError):
            return  # the optimizer holds the memory: all the better
        if how == "moved":
            return
        try:
            self.opt.step(self.nested(given))
        except REFUSALS:
            a.__setstate__(state)
            assert a.tobytes() == kept.tobytes()
        else:
            raise AssertionError(("not refused", how, i))


def main(seed, cases, folder):
    run_machine(CoreMachine, seed, cases, folder)
