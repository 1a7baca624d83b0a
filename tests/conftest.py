"""Fixtures that all tests share; the table of array libraries is in `support/libraries.py`."""

import os

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
