"""Fixtures that all tests share; the array libraries and their variants are in `support/libraries.py`."""

import os

# Before a library with OpenMP is loaded. Its threads spin while they wait, and where several processes share the
# processors they take the time of those that work: a small model's step in PyTorch took twenty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings
from libraries import LIBRARIES, PLAIN, library_of

# Where a test first imports a library may be slow, and the machine may be busy: time is no defect here.
# The same examples in every run, so that a change is judged by what it changes; MULTIOPT_TEST_EXPLORE=1 makes new ones.
EXPLORE = os.environ.get("MULTIOPT_TEST_EXPLORE") == "1"
settings.register_profile("multiopt", deadline=None, print_blob=True, derandomize=not EXPLORE)
settings.load_profile("multiopt")


@pytest.fixture(params=LIBRARIES.values(), ids=str)
def lib(request):
    """Each library and variant."""
    with library_of(request.param) as library:
        yield library


@pytest.fixture(params=PLAIN, ids=str)
def plain(request):
    """Each library."""
    with library_of(request.param) as library:
        yield library


@pytest.fixture
def numba():
    return pytest.importorskip("numba", reason="the host engine needs numba")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="jax is not installed")


@pytest.fixture(params=["host", "eager"])
def engine(request):
    """Each engine that runs on a CPU."""
    if request.param == "host":
        request.getfixturevalue("numba")
    return request.param
