"""Codes, aliases, targets and the bytes of a link: no store, no clock, no loop."""
# ruff: noqa: RUF001  lookalikes are what is tested

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.apps.shortener import aliases, codes, link
from kvstore.apps.shortener.problems import BadAlias, BadUrl
from kvstore.apps.shortener.targets import TargetRules, check_url

RULES = TargetRules(
    own_hosts=frozenset({"sho.rt", "1.1.1.1"}), blocked=frozenset({"evil.example", "9.9.9.9"})
)


def test_codes_carry_41_bits_and_do_not_repeat() -> None:
    made = [codes.new_code() for _ in range(2_000)]
    assert codes.bits(codes.LENGTH) >= 41
    assert len(set(made)) == len(made)
    assert all(len(code) == 7 and set(code) <= set(codes.ALPHABET) for code in made)
    assert set("".join(made)) == set(codes.ALPHABET), "every letter is used"


@pytest.mark.parametrize(
    ("given_", "stored"),
    [
        ("spring-sale", "spring-sale"),
        ("Ｓale２０", "Sale20"),  # NFKC: full width letters are the plain ones
        ("привет", "привет"),
        ("каталог_2", "каталог_2"),
        ("日本語", "日本語"),
        ("na\u0308he-straße", "nähe-straße"),
        ("a" * 64, "a" * 64),
    ],
)
def test_aliases_that_may_be_claimed(given_: str, stored: str) -> None:
    assert aliases.check_alias(given_) == stored


@pytest.mark.parametrize(
    "given_",
    [
        "", "ab", "a" * 65, "a b", "a/b", "a.png", "abc+", "-abc", "abc_", "abc\u200d", "ab\u0301c",
        "api", "ADMIN", "4dm1n", "l0gin", "Ａｄｍｉｎ", "well-known",
        "pаypal",  # a Cyrillic a among Latin letters
        "сосоа",  # all Cyrillic, looks all Latin
        "аdmin", "ѕсоре",
        "κόσμοςa",
    ],
)  # fmt: skip
def test_aliases_that_nobody_may_claim(given_: str) -> None:
    with pytest.raises(BadAlias):
        aliases.check_alias(given_)


def test_no_reserved_word_can_be_claimed_in_any_case() -> None:
    for word in sorted(aliases.RESERVED):
        for look in (word, word.upper(), word.replace("o", "0")):
            with pytest.raises(BadAlias):
                aliases.check_alias(look)


@pytest.mark.parametrize(
    ("given_", "stored"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTP://Example.COM:8080/A?b=c#d", "http://example.com:8080/A?b=c#d"),
        ("https://bücher.example/straße?q=ü", "https://xn--bcher-kva.example/stra%C3%9Fe?q=%C3%BC"),
        ("http://faß.de/", "http://xn--fa-hia.de/"),  # as browsers go there, not fass.de
        ("http://βόλος.gr/", "http://xn--nxasmm1c.gr/"),
        ("http://☃.Net。/", "http://xn--n3h.net/"),
        ("http://exa_mple.Bücher.example/", "http://exa_mple.xn--bcher-kva.example/"),
        ("http://[::ffff:8.8.8.8]/", "http://8.8.8.8/"),
        ("https://example.com/a%20b", "https://example.com/a%20b"),
        ("https://example.com./", "https://example.com/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700::1111]:443/x", "https://[2606:4700::1111]:443/x"),
        ("https://notevil.example/", "https://notevil.example/"),
    ],
)
def test_targets_are_stored_in_one_form(given_: str, stored: str) -> None:
    assert check_url(given_, RULES) == stored
    assert check_url(stored, RULES) == stored


@pytest.mark.parametrize(
    "given_",
    [
        "", "example.com", "//example.com", "javascript:alert(1)", "data:text/html,x", "ftp://example.com",
        "file:///etc/passwd", "https://", "https:///x", "http:example.com",
        "https://user:pw@example.com/", "https://user@example.com/", "https://@example.com/",
        "https://example.com/a b", "https://example.com/\r\nSet-Cookie: a=b", "https://exam\tple.com/",
        " https://example.com", "https://example.com/\u202egpj.exe", "https://example.com\\@evil/",
        "https://example.com:99999/", "https://exa%6dple.com/", "https://[::1", "https://-a.example/",
        "https://sho.rt/x", "https://SHO.RT./x", "https://ｓｈｏ.ｒｔ/x",
        "https://evil.example/", "https://a.b.evil.example/",
        "http://localhost/", "http://a.localhost/", "http://router/", "http://db.internal/",
        "http://127.0.0.1/", "http://10.1.2.3/", "http://192.168.0.1/", "http://169.254.169.254/",
        "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://0/",
        "http://１２７.0.0.1/", "http://127。0。0。1/", "http://1.2.3.4.5/",
        "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[fe80::1]/",
        "http://[::127.0.0.1]/", "http://[fec0::1]/", "http://[64:ff9b:1::7f00:1]/", "http://[fe80::1%25eth0]/",
        "http://localhost.localdomain/", "http://[2606:4700::1%25eth0]/",
        "http://[::ffff:9.9.9.9]/", "http://[64:ff9b::9.9.9.9]/", "http://[2002:909:909::]/",
        "http://[::ffff:1.1.1.1]/", "http://[64:ff9b::1.1.1.1]/",
        "http://[fd00::1]/", "http://[2002:7f00:1::]/", "http://224.0.0.1/", "http://100.64.0.1/",
        "https://example.com/" + "a" * 5000,
    ],
)  # fmt: skip
def test_targets_that_are_refused(given_: str) -> None:
    with pytest.raises(BadUrl):
        check_url(given_, RULES)


def test_private_hosts_pass_when_they_are_allowed() -> None:
    rules = TargetRules(own_hosts=frozenset({"127.0.0.1"}), allow_private=True)
    assert check_url("http://10.1.2.3/", rules) == "http://10.1.2.3/"
    assert check_url("http://router/", rules) == "http://router/"
    with pytest.raises(BadUrl):  # loops are refused all the same, however the address is written
        check_url("http://0x7f000001/", rules)


@given(st.text(max_size=60))
def test_whatever_is_typed_is_stored_clean_or_refused(text: str) -> None:
    try:
        stored = check_url("http://example.com/" + text, RULES)
    except BadUrl:
        return
    assert stored.isascii()
    assert stored.isprintable()
    assert " " not in stored


@given(
    st.builds(
        link.Link,
        code=st.text(min_size=1), id=st.text(min_size=1), url=st.text(), owner=st.text(),
        created_ms=st.integers(0), page=st.integers(0), expires_ms=st.none() | st.integers(0),
        permanent=st.booleans(), max_clicks=st.none() | st.integers(1),
        tags=st.lists(st.text()).map(tuple), custom=st.booleans(),
    )
)  # fmt: skip
def test_a_link_comes_back_from_its_bytes(made: link.Link) -> None:
    assert link.decode(link.encode(made)) == made


@pytest.mark.parametrize("data", [b"", b"[]", b'{"v":2}', b'{"v":1,"code":"a"}', b"null"])
def test_bytes_that_are_no_link_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the type is the promise
        link.decode(data)
