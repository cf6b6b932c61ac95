"""Custom aliases: what may be claimed, and what looks too much like something else.

An alias is 3 to 64 characters in NFKC: letters and digits of one script, `-` and `_` between them. After
Unicode TR39, in small:

- one script only (digits, `-`, `_` go with all): no `pаypal` with a Cyrillic `а`;
- an alias outside ASCII must not look like one inside: no `сосоа` that is all Cyrillic;
- reserved words are kept in every look: `Admin`, `4dmin`, `аdmin` are all `admin`.

The table of lookalikes holds Greek, Cyrillic and Armenian letters that common fonts draw as Latin ones; it
is no full copy of Unicode's confusables.txt.
"""
# ruff: noqa: RUF001, RUF002  lookalikes are what this file is about

from __future__ import annotations

import unicodedata

from kvstore.apps.shortener.problems import BadAlias

LENGTH_MIN, LENGTH_MAX = 3, 64
_JOINERS = "-_"

RESERVED = frozenset({
    "about", "account", "admin", "administrator", "api", "app", "apps", "assets", "auth", "billing",
    "blog", "contact", "dashboard", "delete", "docs", "edit", "favicon", "health", "healthz", "help",
    "home", "index", "link", "links", "livez", "login", "logout", "me", "metrics", "new", "null",
    "openapi", "password", "ping", "preview", "privacy", "public", "qr", "ready", "readyz", "register",
    "report", "robots", "root", "security", "settings", "signin", "signup", "sitemap", "static", "stats",
    "status", "support", "system", "terms", "undefined", "user", "users", "well-known", "www",
})  # fmt: skip
"""Paths the service has or may come to have, and words that would lend a link false authority."""

_LIKE_LATIN = {
    # Cyrillic
    "а": "a", "в": "b", "е": "e", "ё": "e", "к": "k", "м": "m", "н": "h", "о": "o", "р": "p", "с": "c",
    "т": "t", "у": "y", "х": "x", "ѕ": "s", "і": "i", "ї": "i", "ј": "j", "ԁ": "d", "ԛ": "q", "ԝ": "w",
    "һ": "h", "ӏ": "l", "г": "r", "п": "n", "ѵ": "v", "ь": "b", "з": "3", "б": "6",
    # Greek
    "α": "a", "β": "b", "γ": "y", "ε": "e", "ζ": "z", "η": "n", "ι": "i", "κ": "k", "μ": "u", "ν": "v",
    "ο": "o", "ρ": "p", "σ": "o", "ς": "c", "τ": "t", "υ": "u", "χ": "x", "ω": "w", "ϲ": "c", "ϳ": "j",
    # Armenian
    "ա": "w", "գ": "q", "զ": "q", "հ": "h", "ո": "n", "ս": "u", "ց": "g", "օ": "o", "ք": "p", "լ": "l",
    # Latin letters and digits among themselves
    "ı": "i", "ƒ": "f", "ɑ": "a", "ɡ": "g",
}  # fmt: skip
_DIGITS_AS_LETTERS = str.maketrans("01345", "oleas") | {ord("|"): "l", ord("i"): "l"}


def check_alias(text: str) -> str:
    """The alias as it is stored. Raises BadAlias."""
    alias = unicodedata.normalize("NFKC", text)
    if not LENGTH_MIN <= len(alias) <= LENGTH_MAX:
        raise BadAlias(f"an alias has {LENGTH_MIN} to {LENGTH_MAX} characters, this one has {len(alias)}")
    for char in alias:
        if char not in _JOINERS and unicodedata.category(char) not in ("Lu", "Ll", "Lo", "Nd"):
            raise BadAlias("an alias has letters, digits, - and _ only")
    if alias[0] in _JOINERS or alias[-1] in _JOINERS:
        raise BadAlias("an alias begins and ends with a letter or a digit")
    scripts = sorted({_script(char) for char in alias} - {""})
    if len(scripts) > 1:
        raise BadAlias(f"an alias has letters of one script, this one mixes {', '.join(scripts)}")
    if skeleton(alias) in _RESERVED_LOOKS:
        raise BadAlias("this word is reserved, or looks like one that is")
    if not alias.isascii() and all(_LIKE_LATIN.get(char, char).isascii() for char in alias.lower()):
        raise BadAlias("this alias looks like another one that is written with Latin letters")
    return alias


def skeleton(text: str) -> str:
    """What a text looks like: equal for texts that a reader may take for each other."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(char for char in plain if not unicodedata.combining(char))
    return "".join(_LIKE_LATIN.get(char, char) for char in bare).translate(_DIGITS_AS_LETTERS)


_RESERVED_LOOKS = frozenset(skeleton(word) for word in RESERVED)


def _script(char: str) -> str:
    """The first word of a letter's name, which is its script; nothing for what goes with all scripts."""
    if char in _JOINERS or (char.isascii() and char.isdigit()):
        return ""
    return unicodedata.name(char, "UNKNOWN").split()[0].removesuffix("-UNIFIED")
