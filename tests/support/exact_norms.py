"""Exact norms, by rational numbers and `decimal`: what sums of squares are measured by."""

import decimal
import math
from fractions import Fraction

import numpy as np
from multiopt.backends.engines.norms import DIGITS, STEP


def worth(row, computing):
    """A row of integers as an exact number, and how many squares were infinite and how many NaN."""
    start = Fraction(2) ** DIGITS[computing][0]
    *digits, infinite, nan = map(int, row)
    assert min(digits) >= 0
    assert len(digits) == DIGITS[computing][1]
    return start * sum(digit << STEP * k for k, digit in enumerate(digits)), infinite, nan


def squares(values):
    """The exact sum of the squares, each of which is rounded to float64's 53 bits, though not to its range."""
    total = Fraction(0)
    for x in np.abs(np.asarray(values, np.float64).ravel()).tolist():
        fraction, exponent = math.frexp(x)
        total += Fraction(fraction * fraction) * Fraction(2) ** (2 * exponent)
    return total


def norm(values):
    """The norm, correctly rounded to float64."""
    total = sum((Fraction(x) ** 2 for x in np.asarray(values, np.float64).ravel().tolist()), Fraction(0))
    context = decimal.Context(prec=800, Emin=-(10**6), Emax=10**6)
    return float(context.sqrt(context.divide(decimal.Decimal(total.numerator), decimal.Decimal(total.denominator))))


def units_off(got, values):
    """By how many units in the last place a norm differs from the correctly rounded one."""
    right = norm(values)
    return 0.0 if float(got) == right else abs(float(got) - right) / np.spacing(right)


def spread(rng, size, dtype):
    """Numbers over a part of a dtype's range, down to subnormal ones, of which some are 0."""
    low, high = {"float16": (-8, 4), "bfloat16": (-40, 38), "float32": (-45, 38), "float64": (-323, 307)}[dtype]
    first = rng.uniform(low, high)
    last = rng.uniform(first, min(high, first + rng.choice([1, 10, 1000])))
    with np.errstate(over="ignore", under="ignore"):
        made = rng.uniform(-1, 1, size) * 10.0 ** rng.uniform(first, last, size)
    return np.where(rng.uniform(size=size) < 0.02, 0.0, made)
