"""The house: who imports whom, read from the source; and what `import multiopt` loads, seen in a process of its own."""

import ast
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "multiopt": "multiopt",
    "multiopt.backends": "backends",
    "multiopt.benchmarks": "benchmarks",
    "multiopt.conformance": "conformance",
}


def modules():
    """Each module's name and syntax tree."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])
            found[name] = ast.parse(path.read_text()), path.name == "__init__.py"
    return found


MODULES = modules()


def imports(module):
    """Full names of what a module imports, anywhere in it; those for type checkers only are left out."""
    tree, is_package = MODULES[module]
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for part in block.body
        for node in ast.walk(part)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def ours(module):
    return {name for name in imports(module) if within(name, "multiopt")}


def test_the_map_is_complete():
    assert {
        "multiopt.rule",
        "multiopt.optimizer",
        "multiopt.backends.protocol",
        "multiopt.backends.engines.host.engine",
    } <= set(MODULES)
    assert "multiopt.rule.Rule" in imports("multiopt.update")
    assert "multiopt.update.Pass" in imports("multiopt.backends.protocol")
    assert "multiopt.optimizer.Optimizer" not in imports("multiopt.checkpoint")  # for types only


def test_the_rule_imports_nothing_of_ours():
    assert ours("multiopt.rule") == set()
    assert not {name for name in imports("multiopt.rule") if within(name, "numpy")}


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "multiopt.backends")])
def test_backends_stand_on_the_rule_alone(module):
    assert all(within(name, "multiopt.backends", "multiopt.rule") for name in ours(module)), ours(module)


#: Who imports a library, apart from the faces for it, the conformance suite and the benchmarks.
OWNERS = {
    "torch": {"multiopt.backends.torch"},
    "cupy": {"multiopt.backends.cupy"},
    "jax": {"multiopt.backends.jax"},
    "dask": {"multiopt.backends.dask"},
    "numba": {"multiopt.backends.engines.host.kernels", "multiopt.backends.engines.host.exchange"},
    "keras": set(),
    "tensorflow": set(),
    "optax": set(),
}
FACES = ("multiopt.torch", "multiopt.keras", "multiopt.optax", "multiopt.convert")


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_where_it_belongs(library):
    elsewhere = (*FACES, "multiopt.conformance", "multiopt.benchmarks")
    who = {m for m in MODULES if not within(m, *elsewhere) and any(within(i, library) for i in imports(m))}
    assert who == OWNERS[library]


def test_faces_never_import_an_engine():
    for module in MODULES:
        if within(module, *FACES):
            assert not any(within(name, "multiopt.backends.engines") for name in ours(module)), module


def test_nothing_imports_conformance_or_benchmarks():
    for module in MODULES:
        for package in ("multiopt.conformance", "multiopt.benchmarks"):
            if not within(module, package):
                assert not any(within(name, package, "tests", "conformance") for name in imports(module)), module


def test_conformance_uses_what_any_third_party_may():
    for module in MODULES:
        if within(module, "multiopt.conformance"):
            for name in ours(module):
                if not within(name, "multiopt.conformance"):
                    assert not any(part.startswith("_") and part != "__version__" for part in name.split(".")), name
                    assert not within(name, "multiopt.backends.engines", "multiopt.binding"), (module, name)


#: Why a module other than the rule's takes a root at all.
ROOTS = {
    "multiopt.rule": "Adadelta's",
    "multiopt.backends.engines.norms": "a norm's",
    "multiopt.keras.plain": "a norm's",
    "multiopt.demo_digits": "of the sizes of layers, for the first weights",
}


def is_root(node):
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return "sqrt" in name or name == "hypot"
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and getattr(node.right, "value", 0) == 0.5


def test_only_the_rule_takes_the_root_of_an_accumulator():
    core = {m: t for m, (t, _) in MODULES.items() if not within(m, "multiopt.conformance", "multiopt.benchmarks")}
    who = {module for module, tree in core.items() if any(map(is_root, ast.walk(tree)))}
    assert who <= set(ROOTS)
    for module in who - {"multiopt.rule"}:
        roots = [ast.unparse(node) for node in ast.walk(core[module]) if is_root(node)]
        assert not any(word in root for root in roots for word in ("acc", "square_avg", "delta", "eps")), roots


def test_importing_loads_no_array_library():
    names = "torch cupy jax numba dask keras tensorflow optax optree safetensors rich array_api_strict ml_dtypes"
    code = f"""
import sys
before = set(sys.modules)
import multiopt
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(loaded & set({names.split()!r})), "array_api_compat.numpy" in sys.modules)
print(sorted(n for n in sys.modules if n.startswith("multiopt.") and n.count(".") > 1 and "engines" not in n
             and n != "multiopt.backends.protocol"))
"""
    assert run_python(code) == "[] False\n[]"


def test_a_step_on_numpy_loads_no_other_library():
    code = """
import sys
import numpy as np
from multiopt import Adadelta
Adadelta(np.ones(3)).step(np.ones(3))
print(sorted({"torch", "cupy", "jax", "dask", "keras", "optree", "safetensors"} & set(sys.modules)))
"""
    assert run_python(code) == "[]"


def test_without_numba_numpy_has_the_same_bits(numba):
    code = """
import sys
if {absent}: sys.modules["numba"] = None
import zlib
import numpy as np
from multiopt import Adadelta
rng = np.random.default_rng(0)
x = rng.standard_normal((300, 301)).astype(np.float32)
opt = Adadelta([x, x[0].astype("f8")], weight_decay=0.1, clip_norm=1.0, ema=0.5)
for _ in range(3):
    g = rng.standard_normal((300, 301)).astype(np.float32)
    opt.step([g, g[0].astype("f8")])
print("engine=eager" in repr(opt), zlib.crc32(x), *(zlib.crc32(s[k]) for s in opt.state for k in s))
"""
    without, usual = (run_python(code.format(absent=absent)).split(" ", 1) for absent in (True, False))
    assert without[0] == "True"
    assert usual[0] == "False"
    assert without[1] == usual[1]


def test_missing_extras_are_named():
    code = """
import sys
sys.modules["numba"] = sys.modules["optree"] = None
import numpy as np
from multiopt import Adadelta
for act in (lambda: Adadelta({"a": [np.ones(1)]}), lambda: Adadelta(np.ones(1), engine="host")):
    try:
        act()
    except (ImportError, ValueError) as error:
        print(error)
Adadelta({"a": np.ones(1), "b": np.ones(2)}).step({"a": np.ones(1), "b": None})
"""
    first, second = run_python(code).splitlines()
    assert first == 'nested params need optree: pip install "multiopt[tree]"'
    assert 'pip install "multiopt[numba]"' in second


def test_every_public_name_is_documented():
    import multiopt

    for name in multiopt.__all__:
        assert name.startswith("__") or getattr(multiopt, name).__doc__
