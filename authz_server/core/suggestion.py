"""Suggest the word that was probably meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return "; did you mean `x`?" for the known word most like `word`, or nothing.

    `likeness` is the least that counts, 0 to 1; words with a common beginning need more.
    """
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=likeness)
    return f"; did you mean `{close[0]}`?" if close else ""
