"""Fixtures of the tests of `multiopt.keras`."""

import pytest
from libraries import LIBRARIES, library_of


@pytest.fixture(params=["numpy", "torch", "jax"])
def lib(request):
    with library_of(LIBRARIES[request.param]) as library:
        yield library


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def jnp():
    return pytest.importorskip("jax.numpy")
