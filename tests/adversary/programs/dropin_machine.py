"""Random operations, good and bad, on `multiopt.torch.Adadelta`, beside the formula written in NumPy a second time.

After each operation both hold the same bits; what is refused has changed nothing.
"""

import copy
import pickle

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from libraries import gaps, torch_array, torch_tensor
from stateful import Machine, canonical, run_machine

from multiopt.torch import Adadelta

DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64
SHAPES = (), (0,), (3,), (3,), (5, 3), (3, 3), (2, 0, 3)
LAYOUTS = "C", "C", "F", "gaps"
SLOTS = "square_avg", "acc_delta"
REFUSALS = RuntimeError, TypeError, ValueError, AssertionError
GOOD = {
    "lr": [0.0, 0.5, 1.5, torch.tensor(0.25)], "rho": [0.0, 0.9, 1.0], "eps": [1e-3, 1e-6],
    "weight_decay": [0.0, 0.1, 0], "maximize": [False, True],
}  # fmt: skip
BAD = {"lr": [None, "0.1", [1.0]], "rho": [None, "x"], "eps": [None, "x"], "weight_decay": [None, "x"]}
GRADS = ["C", "C", "C", "F", "gaps", "none", "own", "other", "owner", "turned", "expanded", "lazy", "zero", "wide"]
SCALED_GRADS = ["C", "C", "F", "gaps", "none", "lazy", "wide"]
BAD_GRADS = ["sparse", "freed", "shape", "fewer", "integer", "complex"]
BAD_STATES = ["real", "shape", "freed", "resized", "missing", "bool step", "expanded step", "no step"]


class Strange(Exception):
    """What a user's closure or hook raises."""


def native(dtype):
    return np.dtype(ml_dtypes.bfloat16 if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))


def real(array):
    return array.reshape(-1).view(array.real.dtype) if array.dtype.kind == "c" else array.reshape(-1)


def formula(x, g, v, u, lr, rho, eps, weight_decay, scale):
    """One step of Adadelta on NumPy arrays: computed in float64 if any is that wide, else in float32."""
    kinds = [real(a).dtype for a in (x, g, v, u)]
    compute = np.float64 if np.dtype(np.float64) in kinds else np.float32
    with np.errstate(all="ignore"):
        wide = [real(a).astype(compute) for a in (x, g, v, u)]
        X, G, V, U = wide
        G = G * compute(scale) if scale != 1 else G
        G = G + compute(weight_decay) * X if weight_decay != 0 else G
        V = compute(rho) * V + compute(1 - rho) * (G * G)
        D = np.sqrt(U + compute(eps)) / np.sqrt(V + compute(eps)) * G
        U = compute(rho) * U + compute(1 - rho) * (D * D)
        X = X - compute(lr) * D
        return [new.astype(real(a).dtype).view(a.dtype).reshape(a.shape) for new, a in ((X, x), (V, v), (U, u))]


class DropInMachine(Machine):
    # --- making ---

    @initialize(count=st.integers(1, 4), data=st.data())
    def make(self, count, data):
        self.note("make", count)
        self.saved = []
        self.twin = []
        self.opt = Adadelta([self.new_param(data) for _ in range(count)], fused=True)

    def new_param(self, data):
        dtype, shape = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(SHAPES))
        layout = data.draw(st.sampled_from(LAYOUTS))
        self.note("  param", dtype, shape, layout)
        values = self.draw(self.rng(data), shape, dtype)
        self.twin.append({"x": values.copy()})
        return torch.nn.Parameter(self.laid(values, layout))

    def draw(self, rng, shape, dtype, positive=False):
        values = rng.standard_normal((2, *shape)) * 10.0 ** rng.integers(-6, 3)
        values = np.abs(values) if positive else values
        return np.asarray(values[0] + 1j * values[1] if dtype.is_complex else values[0]).astype(native(dtype))

    def laid(self, values, layout):
        return gaps(values) if layout == "gaps" else torch_tensor(np.array(values, order="F" if layout == "F" else "C"))

    def rng(self, data):
        return np.random.default_rng(data.draw(st.integers(0, 2**16), "values"))

    # --- looking ---

    def params(self):
        return [p for group in self.opt.param_groups for p in group["params"]]

    def options(self):
        """The options of each parameter."""
        return [group for group in self.opt.param_groups for _ in group["params"]]

    def everything(self):
        found = []
        for p in self.params():
            own = self.opt.state.get(p, {})
            found.append((canonical(torch_array(p)), p.dtype, [(name, id(t), _bits(t)) for name, t in own.items()]))
        options = [{name: value for name, value in g.items() if name != "params"} for g in self.opt.param_groups]
        return found, repr(options), len(self.opt.state)

    @invariant()
    def same_bits(self):
        for p, own in zip(self.params() if hasattr(self, "opt") else [], getattr(self, "twin", []), strict=True):
            assert canonical(torch_array(p)) == canonical(own["x"])
            state = self.opt.state.get(p, {})
            assert bool(state) == ("step" in own), (state, own)
            if state:
                assert float(state["step"]) == own["step"]
                assert all(canonical(torch_array(state[slot])) == canonical(own[slot]) for slot in SLOTS)

    # --- gradients ---

    def give(self, data, kinds=None):
        """Set gradients; copies of them."""
        rng, found = self.rng(data), []
        kinds = kinds or [data.draw(st.sampled_from(GRADS)) for _ in self.params()]
        for p, kind in zip(self.params(), kinds, strict=True):
            p.grad = None
            if hasattr(p, "grad_dtype"):
                p.grad_dtype = p.dtype
            p.grad = g = self.grad(rng, p, kind)
            found.append(g if g is None else np.zeros(g.shape, native(g.dtype)) if kind == "zero" else torch_array(g))
        self.note("  grads", kinds)
        return found

    def grad(self, rng, p, kind):
        shape, values = tuple(p.shape), self.draw(rng, p.shape, p.dtype)
        alike = [
            t.detach()
            for q in self.params()
            for t in (q, *(self.opt.state.get(q, {}).get(slot) for slot in SLOTS))
            if t is not None and t.shape == p.shape and t.dtype == p.dtype
        ]
        if kind == "none":
            return None
        if kind == "own":
            return p.detach()
        if kind == "other":
            return alike[rng.integers(len(alike))]
        if kind == "owner" and p.is_contiguous() and p.dtype != torch.bfloat16:
            return torch.from_numpy(p.detach().numpy())
        if kind == "turned" and len(shape) == 2 and shape[0] == shape[1]:
            return p.detach().T
        if kind == "expanded" and shape:
            return torch_tensor(self.draw(rng, (1,) * len(shape), p.dtype)).expand(shape)
        if kind == "lazy":
            return torch_tensor(values).conj() if p.is_complex() else torch._neg_view(torch_tensor(values))
        if kind == "zero":
            return torch._efficientzerotensor(shape, dtype=p.dtype)
        if kind == "wide" and hasattr(p, "grad_dtype") and not p.is_complex():
            p.grad_dtype = None
            return torch_tensor(values).to(torch.float64 if p.dtype == torch.float32 else torch.float32)
        return self.laid(values, kind if kind in ("F", "gaps") else "C")

    def follow(self, grads, scale=1.0, skip=False):
        """The same step on the twin."""
        for own, g, options, p in zip(self.twin, grads, self.options(), self.params(), strict=True):
            if g is None or skip:
                continue
            if "step" not in own:
                own |= {"step": 0.0} | {slot: np.zeros(own["x"].shape, native(p.dtype)) for slot in SLOTS}
            numbers = {name: float(options[name]) for name in ("lr", "rho", "eps", "weight_decay")}
            sign = -1.0 if options["maximize"] else 1.0
            own["x"], *state = formula(own["x"], g, *(own[slot] for slot in SLOTS), **numbers, scale=sign / scale)
            own |= dict(zip(SLOTS, state, strict=True)) | {"step": own["step"] + 1}

    # --- steps ---

    @rule(data=st.data())
    def step(self, data):
        self.note("step")
        grads = self.give(data)
        self.opt.step()
        self.follow(grads)

    @rule(data=st.data(), found=st.booleans())
    def scaled_step(self, data, found):
        """As `GradScaler` does it with fused optimizers, which leave the gradients unscaled."""
        self.note("scaled_step", found)
        grads = self.give(data, [data.draw(st.sampled_from(SCALED_GRADS)) for _ in self.params()])
        self.opt.grad_scale, self.opt.found_inf = torch.tensor(128.0), torch.tensor(float(found))
        self.opt.step()
        del self.opt.grad_scale, self.opt.found_inf
        self.follow(grads, 128.0, skip=found)
        for p, g in zip(self.params(), grads, strict=True):
            if g is not None:
                kind = np.float64 if real(g).dtype == np.float64 else np.float32
                left = (real(g).astype(kind) / kind(1 if found else 128)).astype(real(g).dtype)
                assert canonical(torch_array(p.grad)) == canonical(left.view(g.dtype).reshape(g.shape))

    @rule(data=st.data())
    def bad_step(self, data):
        kind = data.draw(st.sampled_from(BAD_GRADS))
        self.give(data)
        p = data.draw(st.sampled_from(self.params()))
        self.note("bad_step", kind, [q is p for q in self.params()])
        values = self.draw(self.rng(data), p.shape, p.dtype)
        p.grad = g = torch_tensor(values).clone()
        if kind == "sparse" and p.ndim:
            p.grad = g.to_sparse()
        elif kind == "freed" and p.numel():
            g.untyped_storage().resize_(0)
        elif kind == "shape":
            g.data = torch.zeros((*p.shape, 2), dtype=p.dtype)
        elif kind == "fewer" and p.numel():
            g.data = g.data.reshape(-1)[:-1]
        elif kind in ("integer", "complex") and hasattr(p, "grad_dtype") and not p.is_complex():
            p.grad, p.grad_dtype = None, None
            p.grad = torch.ones(p.shape, dtype=torch.int32 if kind == "integer" else torch.complex64)
        else:
            return
        self.refuses(REFUSALS, self.opt.step, kind)

    @rule(data=st.data(), where=st.sampled_from(["closure", "hook"]))
    def strange_step(self, data, where):
        self.note("strange_step", where)
        self.give(data)

        def strange(*args):
            raise Strange("user's code")

        if where == "closure":
            self.refuses(Strange, lambda: self.opt.step(strange), where)
        else:
            handle = self.opt.register_step_pre_hook(strange)
            self.refuses(Strange, self.opt.step, where)
            handle.remove()

    # --- options and groups ---

    @rule(data=st.data())
    def set_option(self, data):
        name = data.draw(st.sampled_from(list(GOOD)))
        value = data.draw(st.sampled_from(GOOD[name]))
        self.note("set_option", name, value)
        data.draw(st.sampled_from(self.opt.param_groups))[name] = value

    @rule(data=st.data())
    def set_bad_option(self, data):
        name = data.draw(st.sampled_from(list(BAD)))
        value = data.draw(st.sampled_from(BAD[name]))
        k = data.draw(st.integers(0, len(self.opt.param_groups) - 1))
        self.note("set_bad_option", k, name, value)
        group = self.opt.param_groups[k]
        self.give(data, ["C"] * len(self.params()))
        old, group[name] = group[name], value
        self.refuses(REFUSALS, self.opt.step, name, value)
        group[name] = old

    @rule(data=st.data(), count=st.integers(1, 2))
    def add_group(self, data, count):
        if len(self.opt.param_groups) < 4:
            self.note("add_group", count)
            options = data.draw(st.sampled_from([{}, {"lr": 0.3}, {"maximize": True, "weight_decay": 0.2}]))
            self.opt.add_param_group({"params": [self.new_param(data) for _ in range(count)], **options})

    @rule(data=st.data(), kind=st.sampled_from(["twice", "known", "non-leaf", "array", "set"]))
    def add_bad_group(self, data, kind):
        self.note("add_bad_group", kind)
        new, known = torch.nn.Parameter(torch.ones(3)), data.draw(st.sampled_from(self.params()))
        bad = {"twice": [new, new], "known": [new, known], "non-leaf": [new, new * 2], "array": [new, np.ones(3)],
               "set": {new}}[kind]  # fmt: skip
        if kind != "twice":  # PyTorch only warns of it
            self.refuses(REFUSALS, lambda: self.opt.add_param_group({"params": bad}), kind)

    # --- snapshots and copies ---

    @rule()
    def save(self):
        self.note("save")
        self.saved.append((copy.deepcopy(self.opt.state_dict()), copy.deepcopy(self.twin)))

    @precondition(lambda self: getattr(self, "saved", None))
    @rule(data=st.data(), damage=st.sampled_from([None, None, "groups", "params", "shape"]))
    def load(self, data, damage):
        k = data.draw(st.integers(0, len(self.saved) - 1))
        self.note("load", k, damage)
        state, twin = copy.deepcopy(self.saved[k])
        lengths = [
            [len(group["params"]) for group in groups] for groups in (state["param_groups"], self.opt.param_groups)
        ]
        if damage == "groups":
            state["param_groups"] = state["param_groups"] * 9
        elif damage == "params":
            state["param_groups"][0]["params"].append(10**6)
        if damage in ("groups", "params") or lengths[0] != lengths[1]:
            self.refuses(REFUSALS, lambda: self.opt.load_state_dict(state), damage)
            return
        if damage == "shape" and any(state["state"].values()):
            own = data.draw(st.sampled_from([own for own in state["state"].values() if own]))
            own["square_avg"] = torch.zeros((*own["square_avg"].shape, 2))
            self.opt.load_state_dict(state)  # PyTorch's own, which looks at no shape
            self.give(data, ["C"] * len(self.params()))
            self.refuses(REFUSALS, self.opt.step, damage)
            state = copy.deepcopy(self.saved[k][0])
        self.opt.load_state_dict(state)
        for mine, loaded, p in zip(self.twin, twin, self.params(), strict=True):
            new = {name: loaded[name] for name in ("step", *SLOTS) if name in loaded}
            if p.is_floating_point():  # PyTorch's own, too
                new |= {slot: new[slot].astype(mine["x"].dtype) for slot in SLOTS if slot in new}
            for name in ("step", *SLOTS):
                mine.pop(name, None)
            mine |= new

    @rule(how=st.sampled_from(["pickle", "deepcopy"]))
    def copied(self, how):
        self.note("copied", how)
        for p in self.params():
            p.grad = None
        self.opt = copy.deepcopy(self.opt) if how == "deepcopy" else pickle.loads(pickle.dumps(self.opt))

    # --- tensors that change behind the optimizer's back ---

    @rule(data=st.data(), how=st.sampled_from(["values", "clone", "turned", "dtype", "clear", "assigned"]))
    def change(self, data, how):
        """What is allowed."""
        i = data.draw(st.integers(0, len(self.twin) - 1))
        self.note("change", i, how)
        p, own = self.params()[i], self.twin[i]
        state, rng = self.opt.state.get(p, {}), self.rng(data)
        p.grad = None
        if how == "values":
            own["x"] = self.draw(rng, p.shape, p.dtype)
            p.data.copy_(torch_tensor(own["x"]))
        elif how == "clone":
            for t in (p, *state.values()):
                t.data = t.detach().clone()
        elif how == "turned" and p.ndim == 2:
            for t in (p, *(state[slot] for slot in SLOTS if state)):
                t.data = t.detach().T.contiguous().T
        elif how == "dtype" and not p.is_complex():
            p.data = p.data.half() if p.dtype == torch.float32 else p.data.float()
            own["x"] = torch_array(p)
        elif how == "clear":
            self.opt.state.pop(p, None)
            for name in ("step", *SLOTS):
                own.pop(name, None)
        elif how == "assigned" and state:
            for slot in SLOTS:
                own[slot] = self.draw(rng, p.shape, p.dtype, positive=True)
                state[slot] = torch_tensor(own[slot].copy())

    @precondition(lambda self: hasattr(self, "twin") and any("step" in own for own in self.twin))
    @rule(data=st.data())
    def bad_state(self, data):
        kind = data.draw(st.sampled_from(BAD_STATES))
        p = data.draw(st.sampled_from([p for p, own in zip(self.params(), self.twin, strict=True) if "step" in own]))
        name = "step" if "step" in kind else data.draw(st.sampled_from(SLOTS))
        self.note("bad_state", kind, name, [q is p for q in self.params()])
        self.give(data, ["C"] * len(self.params()))
        own = self.opt.state[p]
        old, kept = own[name], own[name].detach().clone()
        swapped = data.draw(st.booleans())  # in place, or another tensor under the same name
        alone = old.numel() and old.untyped_storage().nbytes() == old.nbytes and old.untyped_storage().resizable()
        if kind == "freed" and alone:
            old.untyped_storage().resize_(0)
        elif kind == "resized" and alone:
            old.resize_(old.numel() + 4)
        elif kind == "missing":
            del own[name]
        elif kind in ("real", "shape", "bool step", "expanded step", "no step"):
            if kind == "real" and not p.is_complex():
                return
            new = {
                "real": torch.zeros(p.shape), "shape": torch.zeros((*p.shape, 2), dtype=old.dtype),
                "bool step": torch.tensor(True), "expanded step": torch.zeros(1).expand(2), "no step": None,
            }[kind]  # fmt: skip
            if swapped and new is not None and name != "step" and new.is_complex() == old.is_complex():
                old.data = new
            else:
                own[name] = new
        else:
            return
        try:
            before = self.bare()
            self.opt.step()
        except (*REFUSALS, KeyError) as error:
            assert self.bare() == before, f"a refused step changed something: {error!r}"  # noqa: PT017
        else:
            raise AssertionError(("not refused", kind, name))
        old.data = kept
        if list(own) != ["step", *SLOTS] or own[name] is not old:
            own[name] = old

    def bare(self):
        """The parameters' bits alone, where a state is not fit to be looked at."""
        return [canonical(torch_array(p)) for p in self.params()]


def _bits(t):
    if not isinstance(t, torch.Tensor) or t.untyped_storage().nbytes() == 0:
        return repr(t) if not isinstance(t, torch.Tensor) else t.shape
    return t.dtype, t.shape, canonical(torch_array(t))


def main(seed, cases, folder):
    run_machine(DropInMachine, seed, cases, folder)
