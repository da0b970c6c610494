"""Numbers as people write them."""

import math

import numpy as np

__all__ = ["plain"]


def plain(value: float, digits: int = 4) -> str:
    """Return a number rounded to so many digits, without an exponent where it can be read without one.

    >>> from energyppl._numerals import plain
    >>> plain(127330.4), plain(0.00123456), plain(3.0), plain(1.5e12)
    ('127300', '0.001235', '3', '1.5e+12')
    """
    short = f"{value:.{digits}g}"
    if not math.isfinite(value) or value == 0.0 or not 1e-4 <= abs(value) < 1e9:
        return short
    return np.format_float_positional(float(short), trim="-")
