"""Codes of links: base62, unpredictable, made unique by whoever claims them in the store.

Seven characters are 62^7 = 2^41.68 codes. They come from `secrets`, so who sees one cannot guess the next;
nobody reads before writing: a code that is taken loses its `put_if_absent`, and another is tried.
"""

from __future__ import annotations

import math
import secrets
import string

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
LENGTH = 7
LENGTH_MIN, LENGTH_MAX = 7, 32
"""Seven are the least that carry 41 bits."""
_ID_BYTES = 12


def new_code(length: int = LENGTH) -> str:
    """A code nobody can guess."""
    assert LENGTH_MIN <= length <= LENGTH_MAX
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_id() -> str:
    """Names one link for ever, also when its alias is claimed again after a deletion."""
    return secrets.token_urlsafe(_ID_BYTES)


def bits(length: int) -> float:
    """How hard a code of this length is to guess."""
    return length * math.log2(len(ALPHABET))
