"""How long the adversary goes on."""


def pytest_addoption(parser):
    parser.addoption(
        "--adversary", type=int, metavar="N", help="tests/adversary: N cases of each kind, with a new seed, not a few"
    )
