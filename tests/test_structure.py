"""The house: who may import whom, read from the source; and what `import multiopt` loads, seen in a process of its own.

The layers stand in `LAYERS`, and nowhere else. Every import counts: at the top of a module, within a function, and for
type checkers only.
"""

import ast
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

#: What conformance and benchmarks use, as a third party would: these modules' public names.
PUBLIC = (
    "multiopt",
    "multiopt.adadelta",
    "multiopt.backends",
    "multiopt.convert",
    "multiopt.functional",
    "multiopt.keras",
    "multiopt.optax",
    "multiopt.rule",
    "multiopt.schedules",
    "multiopt.torch",
)
FACES = ("multiopt.torch", "multiopt.keras", "multiopt.optax")
BACKENDS = ("multiopt.backends", "multiopt.backends.engines", "multiopt.backends.engines.program")
BASE = ("multiopt.lock", "multiopt.rule", "multiopt.tree", "multiopt.options", "multiopt.schedules", "multiopt.memory")
BINDING = (
    *BASE, "multiopt.update", "multiopt.plan", "multiopt.binding", "multiopt.joint", "multiopt.accumulation",
    "multiopt.clipping",
)  # fmt: skip
CHECKPOINT = ("multiopt.files", "multiopt.snapshot", "multiopt.restore")

#: Each layer, and the layers that it may import besides itself. A layer is a module, or a package with all that is in
#: it, down to layers within it that have rows of their own. The package `multiopt` is its `__init__` alone.
LAYERS = {
    "multiopt.backends.engines.program": (),
    "multiopt.backends.engines": BACKENDS,
    "multiopt.backends": BACKENDS,
    "multiopt.lock": (),
    "multiopt.rule": (),
    "multiopt.tree": (),
    "multiopt.memory": BACKENDS,
    "multiopt.options": ("multiopt.rule", "multiopt.tree", "multiopt.backends"),
    "multiopt.schedules": ("multiopt.rule", "multiopt.options", "multiopt.backends"),
    "multiopt.update": (*BASE, *BACKENDS),
    "multiopt.plan": BACKENDS,
    "multiopt.binding": (*BASE, *BACKENDS, "multiopt.update", "multiopt.plan"),
    "multiopt.joint": (*BASE, *BACKENDS, "multiopt.update", "multiopt.plan", "multiopt.binding"),
    "multiopt.accumulation": (*BASE, *BACKENDS, "multiopt.update", "multiopt.plan", "multiopt.binding"),
    "multiopt.clipping": (*BASE, *BACKENDS, "multiopt.update", "multiopt.plan", "multiopt.binding"),
    "multiopt.files": (),
    "multiopt.snapshot": (*BINDING, *BACKENDS),
    "multiopt.restore": (*BINDING, *BACKENDS, "multiopt.snapshot"),
    "multiopt.checkpoint": (*BINDING, *BACKENDS, *CHECKPOINT),
    "multiopt.optimizer": (*BINDING, *BACKENDS, *CHECKPOINT, "multiopt.checkpoint"),
    "multiopt.adadelta": ("multiopt.rule", "multiopt.options", "multiopt.optimizer"),
    "multiopt.functional": (*BINDING, *BACKENDS, "multiopt.adadelta"),
    "multiopt": (*BASE, "multiopt.optimizer", "multiopt.adadelta", "multiopt.functional"),
    **dict.fromkeys(FACES, (*BINDING, "multiopt.backends", "multiopt.adadelta", "multiopt.functional")),
    "multiopt.convert": (*BASE, *FACES, "multiopt.backends", "multiopt.optimizer", "multiopt.adadelta"),
    "multiopt.conformance": PUBLIC,
    "multiopt.benchmarks": PUBLIC,
    "multiopt.cli": (*PUBLIC, "multiopt.backends.engines", "multiopt.conformance", "multiopt.benchmarks"),
    "multiopt.__main__": ("multiopt.cli",),
}

#: Who imports a library, apart from the faces for it, the conformance suite and the benchmarks.
OWNERS = {
    "torch": "multiopt.backends.torch",
    "cupy": "multiopt.backends.cupy",
    "jax": ("multiopt.backends.jax", "multiopt.backends.engines.xla"),
    "dask": "multiopt.backends.dask",
    "numba": "multiopt.backends.engines",
    "keras": None,
    "tensorflow": None,
    "optax": None,
}

#: Private names of Keras' optimizers that the Keras face has too: the suite reads them from either.
KERAS_PRIVATE = {
    "_accumulated_delta_vars",
    "_accumulated_grads",
    "_decayed_lr",
    "_iterations",
    "_model_variables_moving_average",
}

#: Where square roots are taken, and of what: Adadelta's in one place only.
ROOTS = {
    "multiopt.adadelta": "the formula's",
    "multiopt.backends.engines": "a norm's",
    "multiopt.clipping": "a norm's",
    "multiopt.cli": "of the sizes of layers, for the first weights",
    "multiopt.keras.later.step": "a norm's, where nothing can be looked at",
    "multiopt.keras.variables.initializers": "of variances, for initial values",
}


# --- what the source says ---


def read_modules():
    """Each module's syntax tree by the module's name, the names of the packages among them, and the files."""
    trees, packages, files = {}, set(), {}
    for package, folder in PYPROJECT["package-dir"].items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join([package, *(parts[:-1] if is_package else parts)])
            trees[name], files[name] = ast.parse(path.read_text()), path
            packages |= {name} if is_package else set()
    return trees, packages, files


MODULES, PACKAGES, FILES = read_modules()


def imports_in(tree, module, is_package):
    """What a module imports, as pairs: a module's full name, and a name from it or None."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {(source, alias.name) for alias in node.names}
    return found


IMPORTS = {module: imports_in(tree, module, module in PACKAGES) for module, tree in MODULES.items()}


def target(source, name):
    """The module that an import reaches: a name may be a module itself."""
    return f"{source}.{name}" if f"{source}.{name}" in MODULES else source


#: Each module, and the modules of ours that it imports.
GRAPH = {
    module: {target(*pair) for pair in pairs if target(*pair) in MODULES} - {module}
    for module, pairs in IMPORTS.items()
}


def within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layer(module):
    """The layer that a module belongs to, or None."""
    rows = [row for row in LAYERS if (within(module, row) if row != "multiopt" else module == row)]
    return max(rows, key=len, default=None)


def room(module):
    """The files that may share private names: a face with all that is in it, any other package without its packages."""
    for whole in (*FACES, "multiopt.convert", "multiopt.cli", "multiopt.backends.engines"):
        if within(module, whole):
            return whole
    return module if module in PACKAGES else module.rpartition(".")[0]


def circles(graph):
    """Circles of imports, each as a text; one for each import that must go."""
    graph, found = {module: set(imported) for module, imported in graph.items()}, []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return found
        except CycleError as error:
            path = error.args[1][::-1]
            found.append(" -> ".join(path))
            graph[path[0]].remove(path[1])


def exported(module):
    """The names in a module's ``__all__``."""
    lists = [
        ast.literal_eval(node.value)
        for node in MODULES[module].body
        if isinstance(node, ast.Assign) and [getattr(name, "id", "") for name in node.targets] == ["__all__"]
    ]
    return lists[0] if lists else []


def is_public(module):
    parent, _, name = module.rpartition(".")
    return module in PUBLIC or (parent in MODULES and is_public(parent) and name in exported(parent))


def is_private(name):
    """Whether a name is private, and not one that Python gives to named tuples."""
    public = ("_asdict", "_fields", "_replace")
    return name is not None and name.startswith("_") and not name.endswith("__") and name not in public


def test_the_source_is_read_right():
    source = """
from ..rule import Rule
from . import base, host as own
if TYPE_CHECKING:
    from .. import Optimizer
def late():
    import torch.nn
"""
    pairs = {
        ("multiopt.rule", "Rule"),
        ("multiopt.torch", "base"),
        ("multiopt.torch", "host"),
        ("multiopt", "Optimizer"),
        ("torch.nn", None),
    }
    assert imports_in(ast.parse(source), "multiopt.torch.step", is_package=False) == pairs
    assert imports_in(ast.parse(source.replace("..", ".")), "multiopt", is_package=True) >= {("multiopt.rule", "Rule")}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == ["a -> b -> c -> a"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert target("multiopt", "functional") == "multiopt.functional"
    assert target("multiopt.functional", "init") == "multiopt.functional"
    assert layer("multiopt.backends.engines.host") == "multiopt.backends.engines"
    assert layer("multiopt.unheard_of") is None
    assert is_public("multiopt.keras.legacy")
    assert not is_public("multiopt.keras.legacy.optimizer")


# --- layers ---


def test_every_module_has_its_layer():
    homeless = [module for module in MODULES if layer(module) is None]
    assert not homeless, "\n".join(homeless)


@pytest.mark.parametrize("row", LAYERS)
def test_layers(row):
    wrong = [
        f"{module} imports {imported}"
        for module in MODULES
        if layer(module) == row
        for imported in GRAPH[module]
        if layer(imported) not in (row, *LAYERS[row])
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_circles():
    found = circles(GRAPH)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("suite", ["multiopt.conformance", "multiopt.benchmarks"])
def test_the_suites_use_the_public_api(suite):
    wrong = [
        f"{module} imports {source}.{name}"
        for module in MODULES
        for source, name in IMPORTS[module]
        if within(module, suite) and within(source, "multiopt") and not within(source, suite)
        if not is_public(f"{source}.{name}") and not (is_public(source) and name in (None, *exported(source)))
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_tests():
    for module, pairs in IMPORTS.items():
        assert not any(within(source, "tests", "conformance", "benchmarks") for source, _ in pairs), module


def names_defined(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_private_names_stay_in_their_room():
    defined = {}
    for module, tree in MODULES.items():
        defined.setdefault(room(module), set()).update(filter(is_private, names_defined(tree)))
    ours, wrong = set().union(*defined.values()) - KERAS_PRIVATE, []
    for module, tree in MODULES.items():
        for source, name in IMPORTS[module]:
            private = is_private(name) or any(map(is_private, source.split(".")))
            if private and source in MODULES and room(target(source, name)) != room(module):
                wrong.append(f"{module} imports {source}.{name}")
        foreign = ours - defined[room(module)]
        reached = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & foreign
        wrong += [f"{module} reaches .{name}" for name in sorted(reached)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_where_it_belongs(library):
    elsewhere = (*FACES, "multiopt.convert", "multiopt.conformance", "multiopt.benchmarks")
    who = {m for m, pairs in IMPORTS.items() if any(within(source, library) for source, _ in pairs)}
    who = {module for module in who if not within(module, *elsewhere)}
    if OWNERS[library] is None:
        assert who == set()
    else:
        assert who
        owners = (OWNERS[library],) if isinstance(OWNERS[library], str) else OWNERS[library]
        assert all(within(module, *owners) for module in who), who


# --- the formula, files and packages ---


def is_root(node):
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return "sqrt" in name or name == "hypot"
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and getattr(node.right, "value", 0) == 0.5


def test_only_the_formula_takes_the_root_of_an_accumulator():
    for module, tree in MODULES.items():
        roots = [ast.unparse(node) for node in ast.walk(tree) if is_root(node)]
        if module == "multiopt.adadelta":
            assert len(roots) == 2
        elif roots and not within(module, "multiopt.conformance", "multiopt.benchmarks"):
            assert within(module, *ROOTS), (module, roots)
            assert not any(word in root for root in roots for word in ("acc", "square_avg", "delta", "eps")), roots


def test_no_file_is_long():
    files = [*FILES.values(), *(ROOT / "examples").rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_every_package_is_shipped():
    assert set(PYPROJECT["packages"]) == PACKAGES


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(module):
    if module in ("multiopt.torch", "multiopt.optax"):
        pytest.importorskip(module.removeprefix("multiopt."))
    public = import_module(module)
    assert public.__doc__
    for name in public.__all__:
        assert name.startswith("__") or getattr(public, name).__doc__, name


# --- what is loaded ---


def test_importing_loads_no_array_library():
    names = {*OWNERS, "optree", "safetensors", "rich", "array_api_strict", "ml_dtypes", "array_api_compat.numpy"}
    names |= {f"multiopt.backends.{library}" for library in ("numpy", *OWNERS)}
    names |= {f"multiopt.{room}" for room in ("torch", "keras", "optax", "convert", "cli", "conformance", "benchmarks")}
    code = f"import sys; before = set(sys.modules); import multiopt; print((set(sys.modules) - before) & {names!r})"
    assert run_python(code) == "set()"


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
