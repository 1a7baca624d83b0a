"""What both machines share: running one, its log, comparing bits, and expecting that something is refused."""

import os
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

PHASES = [Phase.generate, Phase.shrink]


def canonical(array):
    """The bytes of a NumPy array with every NaN the same: which of two NaNs comes out of a sum, nobody promises."""
    array = np.array(array, order="C")
    if array.dtype == np.uint16 or array.dtype.name == "bfloat16":  # how `to_host` gives it
        bits = array.view(np.uint16)
        bits[(bits & 0x7FFF) > 0x7F80] = 0x7FC0
    else:
        parts = array.reshape(-1).view(array.real.dtype)
        parts[np.isnan(parts)] = np.nan
    return array.tobytes()


class Machine(RuleBasedStateMachine):
    """A machine that counts its operations and writes them to a log: after a crash, the last ones stand there."""

    log_file = folder = None
    operations = 0

    def note(self, *what):
        Machine.operations += not what[0].startswith(" ")
        if what[0] == "make":
            os.ftruncate(Machine.log_file, 0)
        os.write(Machine.log_file, f"{' '.join(map(str, what))}\n".encode())

    def everything(self):
        """All that a refused operation must leave as it was."""
        raise NotImplementedError

    def refuses(self, kinds, act, *why):
        """Expect an error, after which everything is as before."""
        before, caught = self.everything(), None
        try:
            act()
        except kinds as error:
            caught = error
        assert caught is not None, ("not refused", *why)
        assert str(caught), f"no message: {caught!r}"
        assert self.everything() == before, ("a refused operation changed something", why, repr(caught))


def run_machine(kind, number, cases, folder):
    """Run `cases` examples of a machine; `number` is the seed. Prints what was done."""
    Machine.folder = Path(folder)
    Machine.log_file = os.open(Machine.folder / "log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    start = time.time()
    how = settings(
        max_examples=cases,
        stateful_step_count=25,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=PHASES,
    )
    kind = seed(number)(kind)
    run_state_machine_as_test(kind, settings=how)
    print(f"{cases} cases, {Machine.operations} operations, {time.time() - start:.0f} s")
