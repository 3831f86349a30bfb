"""What a terminal obeys instead of showing it, and names that look like markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dprp_tf.files.shown import shown
from dprp_tf.files.tables import lay_out

OBEYED = (
    *map(chr, range(32)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c",
    *"\u2028\u2029\ufeff\udc80\udfff",
)


@pytest.mark.parametrize("letter", OBEYED, ids=[f"{ord(letter):04x}" for letter in OBEYED])
def test_nothing_that_is_obeyed_is_left(letter: str) -> None:
    text = shown(f"a{letter}b")
    assert letter not in text
    assert text.isprintable()
    assert text.encode("ascii").decode("unicode_escape") == f"a{letter}b" or ord(letter) > 0xD7FF
    assert (shown(letter, lines=True) == "\n") == (letter == "\n")


@pytest.mark.parametrize(
    "text",
    [
        "conv_1/kernel",
        "Käfer",
        "車",
        "عربي",
        "\u0645\u06cc\u200c\u062e",
        "👩\u200d🔬",
        "[red]",
        "a\u3000b",
        "",
    ],
)
def test_names_in_any_language_stay(text: str) -> None:
    assert shown(text) == text


HOSTILE = ("[red]x[red]", "[/x]", "[link=http://a]b[/link]", ":dog:", "\x1b[31mred\x1b[0m", "a\nb")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["heading", "cell", "title", "caption"])
def test_tables_show_names_as_they_are(name: str, place: str) -> None:
    given = {part: name if part == place else "plain" for part in ("heading", "cell", "title")}
    table = lay_out(
        {given["heading"]: "fold", "wide enough for the lines above and below": "right"},
        [[given["cell"], 3]],
        title=given["title"],
        caption=shown(name) if place == "caption" else "",
    )
    # As a user's console draws it, in which markup is on; its own styles are the only escapes.
    stream = io.StringIO()
    Console(file=stream, width=200, color_system=None).print(table)
    assert shown(name) in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
