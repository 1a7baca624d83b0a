"""How long the adversary goes on: a few seconds a test, or as many cases as are asked for."""

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--adversary", type=int, metavar="N", help="cases of each test of tests/adversary, in place of its few; any seed"
    )


@pytest.fixture
def cases(request):
    """``cases(short)``: how many cases a test tries; `short` where no other number is asked for."""
    asked = request.config.getoption("--adversary", None)
    return lambda short: short if asked is None else asked


@pytest.fixture
def seed(request):
    """The same in every run of the short form, another in every long one; a failure tells it."""
    import secrets

    made = 0 if request.config.getoption("--adversary", None) is None else secrets.randbits(32)
    print(f"seed {made}")
    return made
