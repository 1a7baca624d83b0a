"""Rules of one's own that the tests run."""

import importlib.util
from pathlib import Path

from multiopt import Hyper, Rule

LR = {"lr": Hyper(0.1, low=0.0)}


def descent(xp, x, g, *, lr):
    return (x - lr * g,)


def relative(xp, x, g, *, lr):
    return (x - lr * (g * x),)


def adam(xp, x, g, m, v, *, lr, beta1, beta2, eps, step):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * xp.square(g)
    m_hat, v_hat = m / (1 - beta1 ** (step + 1)), v / (1 - beta2 ** (step + 1))
    return x - lr * m_hat / (xp.sqrt(v_hat) + eps), m, v


def lion(xp, x, g, m, *, lr, beta):
    move = xp.sign(beta * m + (1 - beta) * g)
    return x - lr * move, xp.where(abs(g) > 1, m, xp.minimum(xp.maximum(m + g, -2.0), 2.0))


def cubic(xp, x, g, peak, *, lr):
    # No ``** 3``: powers beyond the square are the library's own, close but not the same bits.
    peak, short = xp.maximum(peak, abs(g)), xp.clip(g, -1.0, 1.0)
    return x - lr * (short**2 * short) / (1 + peak) - xp.where((g > 0) & ~(x > 1), 0.0 * x, lr * x / 7), peak


def two_slots(xp, x, g, z, a, *, lr):
    z, a = 0.5 * z + g, a + 0.25 * g
    return x - lr * (z - a), z, a


def examples():
    path = Path(__file__).parent.parent.parent / "examples" / "custom_rule.py"
    spec = importlib.util.spec_from_file_location("custom_rule", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DESCENT = Rule("descent", descent, {}, LR)
ADAM = Rule(
    "adam",
    adam,
    {"m": 0.0, "v": 0.0},
    {"lr": Hyper(0.01), "beta1": Hyper(0.9, 0, 1), "beta2": Hyper(0.999, 0, 1), "eps": Hyper(1e-8, 0)},
)
#: A rule whose slots are not in the order of the alphabet.
MOMENTUM_LIKE = Rule("two slots", two_slots, {"z": 0.0, "a": 0.0}, LR)
RULES = {
    rule.name: rule
    for rule in [
        examples().RMSPROP,
        examples().MOMENTUM,
        examples().ADAGRAD,
        DESCENT,
        ADAM,
        Rule("lion", lion, {"m": 0.0}, {**LR, "beta": Hyper(0.9, 0, 1)}),
        Rule("cubic", cubic, {"peak": 0.5}, LR),
    ]
}
