"""Shares of a whole as people read them: only all of it is 100 %, only none of it is 0 %."""

EXACT = 1e-9
"""Less than this much beside 0 and 1 is the rounding of sums."""


def hundredths(share: float, digits: int = 1) -> str:
    """A share times 100, rounded, but never to all or to nothing: 99.9 of nearly all, <0.1 of hardly any."""
    text, least = f"{100 * share:.{digits}f}", 10.0**-digits
    if share > EXACT and not float(text):
        return f"<{least:.{digits}f}"
    if share < 1 - EXACT and float(text) >= 100:
        return f"{100 - least:.{digits}f}"
    return text


def percent(share: float, digits: int = 1) -> str:
    """A share for people."""
    return f"{hundredths(share, digits)} %"
