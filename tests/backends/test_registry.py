"""The registry: a library that multiopt has never heard of gets all that the others have, from outside the package."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import toyarrays
from multiopt.backends import registry
from processes import run_python

from multiopt import Adadelta, backends

SUPPORT = Path(__file__).parent.parent / "support"
DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def toy(monkeypatch):
    """ToyArrays, registered for the time of a test."""
    monkeypatch.setattr(registry, "_libraries", dict(registry._libraries))
    monkeypatch.setattr(registry, "_backends", dict(registry._backends))
    monkeypatch.setattr(registry, "_by_type", {})
    backends.register(toyarrays.LIBRARY)
    return toyarrays


def test_it_has_numpys_bits_on_every_engine(toy, numba):
    rng = np.random.default_rng(0)
    starts, batches = [rng.standard_normal((5, 7)), rng.standard_normal(3)], rng.standard_normal((3, 38))
    options = {"weight_decay": 0.1, "clip_norm": 1.0, "clip_global_norm": 0.9, "ema": 0.5, "accumulate": 1}
    for dtype in ("float32", "float64"):
        results = []
        for make, engine in ((np.array, "host"), (toy.asarray, "host"), (toy.asarray, "eager")):
            opt = Adadelta([make(s.astype(dtype)) for s in starts], engine=engine, **options)
            for batch in batches.astype(dtype):
                opt.step([make(batch[:35].reshape(5, 7)), make(batch[35:])])
            assert f"engine={engine}" in repr(opt)
            held = [*opt.params, *opt.ema_params, *(s[k] for s in opt.state for k in s)]
            results.append([getattr(a, "values", a).tobytes() for a in held])
        assert results[0] == results[1] == results[2]


def test_the_fastest_engine_serves_it_in_place(toy, numba):
    weights = toy.asarray(np.ones((4, 4), np.float32))
    values = weights.values
    opt = Adadelta(weights)
    assert opt.step(toy.asarray(np.ones((4, 4), np.float32))) is weights
    assert "engine=host" in repr(opt)
    assert weights.values is values
    assert (values < 1).all()
    with pytest.raises(ValueError, match="overlaps"):
        Adadelta([weights, weights[1:]])
    turned = toy.Array(np.ones((4, 6), np.float32)[:, ::2])  # no one run of memory
    Adadelta(turned).step(toy.asarray(np.ones((4, 3), np.float32)))
    assert (turned.values < 1).all()


def test_checkpoints_move_to_it(toy, tmp_path):
    start, grad = np.linspace(0, 1, 6, dtype=np.float32), np.full(6, 0.5, np.float32)
    numpy = Adadelta([start.copy()])
    numpy.step([grad])
    numpy.save(tmp_path / "run.safetensors")
    ours = Adadelta([toy.asarray(np.zeros(6, np.float32))])
    ours.load(tmp_path / "run.safetensors")
    for opt, make in ((numpy, np.array), (ours, toy.asarray)):
        opt.step([make(grad)])
    assert ours.params[0].values.tobytes() == numpy.params[0].tobytes()


def test_a_name_is_given_once(toy):
    backends.register(toyarrays.LIBRARY)  # the same again changes nothing
    with pytest.raises(ValueError, match="expected a name that is not taken, got 'toyarrays'"):
        backends.register(backends.Library("toyarrays", "Other", "numpy"))


@pytest.fixture
def installed(tmp_path):
    """The environment of a process in which a package that brings ToyArrays is installed."""
    folder = tmp_path / "toyarrays-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toyarrays\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[multiopt.backends]\ntoyarrays = toyarrays:LIBRARY\n")
    return {"PYTHONPATH": f"{tmp_path}:{SUPPORT}"}


def test_an_installed_package_registers_itself(installed, numba):
    code = """
import numpy as np, toyarrays
from multiopt import Adadelta
opt = Adadelta(toyarrays.asarray(np.ones(3)))
opt.step(toyarrays.asarray(np.ones(3)))
print("engine=host" in repr(opt))
from multiopt.cli import main
main(["info"])
main(["check", "--quick", "--backend", "toyarrays", "--scenario", "paper"])
"""
    first, _, rest = run_python(code, COLUMNS="200", **installed).partition("\n")
    assert first == "True"
    assert re.search(r"toyarrays +cpu +host", rest)  # multiopt info
    assert re.search(r"passed: [1-9]\d* within tolerance", rest)  # the conformance suite
    assert "failed" not in rest


def test_the_documents_show_this_very_backend():
    assert (SUPPORT / "toyarrays" / "backend.py").read_text() in (DOCS / "backends.md").read_text()


def test_every_library_of_the_registry_can_be_had():
    for library in backends.libraries():
        if library.installed() and library.name != "cupy":
            backend = backends.get(library.name)
            assert backend.name == library.name
            made = backend.from_host(np.ones(2, np.float32), "float32")
            assert backends.of(made) is backend
            assert backend.to_host(made).tolist() == [1.0, 1.0]
    assert sys.modules["multiopt.backends"].get("numpy") is backends.of(np.ones(1))
