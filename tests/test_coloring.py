"""Texts coloured by rank: in a terminal, with marks, and as an HTML page."""

from __future__ import annotations

import errno
import io
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt2c
from gpt2c import GPT2, Score
from gpt2c.coloring import class_of, html_page, save_html, shares, spans, terminal_text, wants_color
from gpt2c.coloring.visible import visible
from gpt2c.text.tokenizer import MissingTokenizer

# Colours of the 256-colour palette, green to purple, as the terminal module documents them.
PAINT = {1: 151, 2: 229, 3: 217, 4: 183}


class FixedTokenizer:
    """A tokenizer with the given tokens."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens

    def token_bytes(self, id: int) -> bytes:
        if id >= len(self.tokens):
            raise gpt2c.OptionError(f"id {id} is not in the vocabulary")
        return self.tokens[id]


def score_of(ranks: list[int], **given: Any) -> Score:
    """Return a score of the tokens 0, 1, ... with these ranks."""
    n = len(ranks)
    numbers = np.where(np.array(ranks) > 0, -1.0, np.nan).astype(np.float32)
    parts: dict[str, Any] = {
        "ids": np.arange(n, dtype=np.int32),
        "logprobs": numbers,
        "ranks": np.array(ranks, dtype=np.int32),
        "entropies": numbers * -2,
        "top_ids": np.empty((n, 0), dtype=np.int32),
        "top_logprobs": np.empty((n, 0), dtype=np.float32),
    }
    return Score(**{**parts, **given})


# ---- spans of characters and their tokens ----


def test_rank_classes_are_those_of_gltr() -> None:
    """The classes are top 10, top 100, top 1000 and the rest, as in Gehrmann et al. 2019."""
    ranks = [0, 1, 10, 11, 100, 101, 1000, 1001, 50257]
    assert [class_of(rank) for rank in ranks] == [None, 0, 0, 1, 1, 2, 2, 3, 3]
    assert shares(score_of(ranks)) == (0.25, 0.25, 0.25, 0.25)
    assert shares(score_of([0, 1, 1, 1, 11])) == (0.75, 0.25, 0, 0)
    assert shares(score_of([0])) == shares(score_of([])) == (0, 0, 0, 0)


def test_a_character_of_several_tokens_is_one_span() -> None:
    tokenizer = FixedTokenizer(b"a", b" \xf0\x9f", b"\x99", b"\x82", b"!")
    found = list(spans(score_of([0, 3, 2000, 5, 20]), tokenizer))
    assert [(s.text, s.begin, s.end, s.rank) for s in found] == [
        ("a", 0, 1, 0), (" 🙂", 1, 4, 2000), ("!", 4, 5, 20),
    ]  # fmt: skip


def test_invalid_utf_8_becomes_replacement_characters() -> None:
    """A truncated character becomes one U+FFFD, as when the whole text is decoded together."""
    tokenizer = FixedTokenizer(
        b"\xe2\x82", b"A", b"\xff", b"\x80", b"\xe0", b"\x80", b"\xf0\x9f\x99"
    )
    found = [span.text for span in spans(score_of([1] * 7), tokenizer)]
    assert found == ["\ufffd", "A", "\ufffd", "\ufffd", "\ufffd\ufffd", "\ufffd"]


def test_an_id_without_text_is_shown_as_a_number() -> None:
    found = spans(score_of([0, 1, 2]), FixedTokenizer(b"a", b""))
    assert "".join(span.text for span in found) == "a[1][2]"
    found = spans(score_of([0, 1]), MissingTokenizer("a test"))
    assert [span.text for span in found] == ["[0]", "[1]"]


BYTES = [
    b"\xe2",
    b"\x82",
    b"\xac",
    b"\xf0\x9f",
    b"\x99\x82",
    b"a",
    b" \xc3",
    b"\xa9\xe2\x82",
    b"\xff",
]


@given(tokens=st.lists(st.sampled_from(BYTES) | st.binary(min_size=1, max_size=4), max_size=20))
def test_spans_join_to_the_text_and_cover_each_token_once(tokens: list[bytes]) -> None:
    found = list(spans(score_of(list(range(len(tokens)))), FixedTokenizer(*tokens)))
    assert "".join(span.text for span in found) == b"".join(tokens).decode("utf-8", "replace")
    assert [span.begin for span in found] == [0, *(span.end for span in found)][:-1]
    assert [span.end for span in found][-1:] == [len(tokens)][: len(found)]
    for span in found:
        assert span.rank == max(range(span.begin, span.end))


def test_spans_of_a_real_text(tales: GPT2) -> None:
    text = "“Ça va ?” 🙂 的\n\tend\r\n"
    score = tales.score(text)
    found = list(spans(score, tales.tokenizer))
    assert "".join(span.text for span in found) == text
    assert len(found) < len(score.ids)  # some of the characters have several tokens


# ---- in a terminal ----


def painted(text: str) -> list[tuple[int | None, str]]:
    """Split a terminal's output into (background, characters); None is the default background."""
    parts: list[tuple[int | None, str]] = []
    ground = None
    for code, characters in re.findall(r"\033\[([0-9;]*)m|([^\033]+)", text):
        if characters:
            parts.append((ground, characters))
        elif code == "0":
            ground = None
        else:
            black, ground_code = re.fullmatch(r"38;5;(\d+);48;5;(\d+)", code).groups()  # type: ignore[union-attr]
            assert black == "16"
            ground = int(ground_code)
    assert ground is None  # the colour is reset at the end
    return parts


def test_each_token_has_the_colour_of_its_rank() -> None:
    tokenizer = FixedTokenizer(b"One", b" two", b" three", b" four", b" five", b" six")
    shown = terminal_text(score_of([0, 1, 100, 1000, 1001, 11]), tokenizer)
    text, _, rest = shown.partition("\n")
    assert painted(text) == [
        (None, "One"), (PAINT[1], " two"), (PAINT[2], " three"), (PAINT[3], " four"),
        (PAINT[4], " five"), (PAINT[2], " six"),
    ]  # fmt: skip
    blank, legend, summary = rest.split("\n")
    assert blank == ""
    assert painted(legend) == [
        (PAINT[1], " top 10 "), (None, " 20.0 %   "), (PAINT[2], " top 100 "), (None, " 40.0 %   "),
        (PAINT[3], " top 1000 "), (None, " 20.0 %   "), (PAINT[4], " the rest "), (None, " 20.0 %"),
    ]  # fmt: skip
    assert summary == f"6 tokens, perplexity {math.e:.4g}"  # every log-probability is -1


def test_a_colour_does_not_reach_past_the_end_of_a_line() -> None:
    shown = terminal_text(score_of([0, 20, 20]), FixedTokenizer(b"One", b"\n\n", b"two\n"))
    text = shown.partition("\n\n\033")[0]
    assert painted(text) == [
        (None, "One"), (PAINT[2], "↵"), (None, "\n"), (PAINT[2], "↵"), (None, "\n"),
        (PAINT[2], "two↵"),
    ]  # fmt: skip


def test_marks_replace_colours() -> None:
    tokenizer = FixedTokenizer(b"One", b" two", b" three", b" four", b" five", b" ", b"\n")
    shown = terminal_text(score_of([0, 1, 100, 1000, 1001, 11, 101]), tokenizer, color=False)
    text, blank, legend, summary = shown.split("\n")
    assert text == "One two (three) [four] {five}( )[↵]"
    assert blank == ""
    assert legend == ("top 10 16.7 %   (top 100) 33.3 %   [top 1000] 33.3 %   {the rest} 16.7 %")
    assert summary.startswith("7 tokens")


def test_control_characters_do_not_reach_the_terminal() -> None:
    hostile = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x2066])).encode()
    for color in (True, False):
        shown = terminal_text(score_of([20]), FixedTokenizer(hostile), color=color)
        shown = re.sub(r"\033\[[0-9;]*m", "", shown)
        controls = {c for c in shown if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0}
        assert controls == {"\n", "\t"}
        assert "\u202e" not in shown
        assert "␛" in shown
        assert "<U+202E>" in shown
    assert visible("a\u200db e\u0301 של") == "a\u200db e\u0301 של"  # they compose letters


def test_lines_break_between_words() -> None:
    tokenizer = FixedTokenizer(
        b"one two", b" thr", b"ee four\n", "一二三 四".encode(), b" " + b"x" * 12
    )
    shown = terminal_text(score_of([0, 1, 20, 1, 1]), tokenizer, width=9)
    plain = re.sub(r"\033\[[0-9;]*m", "", shown)
    lines = plain.split("\n")
    assert lines[:2] == ["one two ", "three "]
    assert lines[2:4] == ["four↵", "一二三 "]  # CJK characters are two columns wide
    assert lines[4:6] == ["四 ", "x" * 12]  # too long for any line
    assert (PAINT[1], "thr") in painted(shown)
    whole = terminal_text(score_of([0, 1, 20, 1, 1]), tokenizer)
    assert re.sub(r"\s", "", plain) == re.sub(r"\s|\033\[[0-9;]*m", "", whole)


def test_texts_of_zero_tokens_and_one_token() -> None:
    assert terminal_text(score_of([]), FixedTokenizer()).endswith("0 tokens, none scored")
    assert terminal_text(score_of([0]), FixedTokenizer(b"a")).endswith("1 token, none scored")
    assert "0 tokens, none scored" in "".join(html_page([score_of([])], FixedTokenizer()))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "in_terminal", "in_pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),  # no-color.org: an empty value does not count
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_when_colours_are_used(
    environment: dict[str, str], in_terminal: bool, in_pipe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wants_color(Terminal()) is in_terminal
    assert wants_color(io.StringIO()) is in_pipe


# ---- as an HTML page ----


class Page(HTMLParser):
    """Parse a page like a browser: its elements, and the spans of its texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[tuple[str | None, str, str]]] = []  # per span: class, tooltip, text
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs)
        self.elements.append((tag, given))
        if tag != "meta":
            self.open.append(tag)
        if given.get("class") == "text":
            self.texts.append([])
        if tag == "span" and "title" in given:
            self.texts[-1].append((given.get("class"), given["title"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.texts and "span" in self.open:
            kind, tooltip, text = self.texts[-1].pop()
            self.texts[-1].append((kind, tooltip, text + data))


HOSTILE = (
    "</span></div><script>alert('1')</script><img src=x onerror='y'>&lt;&#0;\x00\x1b]0;"
    '"\r\n--> <!--'
)


def test_html_in_a_text_is_escaped() -> None:
    tokens = [HOSTILE.encode(), b'"', b"' onmouseover=z ", b"<", b"/", b"b>"]
    score = score_of(
        [1, 20, 200, 2000, 1, 1],
        top_ids=np.zeros((6, 1), dtype=np.int32), top_logprobs=np.zeros((6, 1), dtype=np.float32),
    )  # fmt: skip
    page = "".join(html_page([score], FixedTokenizer(*tokens), title=HOSTILE, model=HOSTILE))
    found = Page(page)
    allowed = {
        "html": {"lang"}, "head": set(), "meta": {"charset", "http-equiv", "content", "name"},
        "title": set(), "style": set(), "body": set(), "main": set(), "h1": set(), "h2": set(),
        "p": set(), "section": set(), "div": {"class", "dir", "lang"}, "footer": set(), "ul": set(),
        "li": set(), "b": {"class"}, "i": set(), "span": {"class", "title", "style"},
    }  # fmt: skip
    for tag, attributes in found.elements:
        assert attributes.keys() <= allowed[tag]
    (text,) = found.texts
    assert [(kind, shown) for kind, _, shown in text] == [
        ("k0", visible(HOSTILE)), ("k1", '"'), ("k2", "' onmouseover=z "), ("k3", "<"), ("k0", "/"),
        ("k0", "b>"),
    ]  # fmt: skip
    assert all("\n1. “</span></div><script>" in tooltip for _, tooltip, _ in text)
    assert not set(page) & set("\x00\x1b\r")
    # The page references nothing that a browser would fetch, and its policy forbids fetching.
    assert not re.search(
        r"(?i)<[^>]*\b(src|href)=|url\(|@import|https?:", page.replace("src=x", "")
    )
    assert "default-src 'none'" in page


def test_a_tooltip_shows_the_values_of_the_score(tales: GPT2) -> None:
    text = "Once upon a time there was a 🙂"
    score = tales.score(text, top_logprobs=3)
    (found,) = Page("".join(html_page([score], tales.tokenizer))).texts
    assert "".join(shown for _, _, shown in found) == text
    assert found[0][:2] == (None, "“Once”\nnot scored: nothing precedes it")
    index = [shown for _, _, shown in found].index(" time")
    kind, tooltip, _ = found[index]
    assert kind == f"k{class_of(int(score.ranks[index]))}"
    token, numbers, entropy, blank, heading, *likeliest = tooltip.split("\n")
    assert (token, blank, heading) == ("“ time”", "", "likeliest here:")
    shown = re.fullmatch(r"rank ([\d,]+), probability ([\d.e-]+) %", numbers)
    assert shown is not None
    assert int(shown[1].replace(",", "")) == score.ranks[index]
    assert float(shown[2]) == pytest.approx(100 * math.exp(score.logprobs[index]), rel=5e-3)
    assert entropy == f"entropy here {score.entropies[index]:.2f} nats"
    best = [tales.tokenizer.decode([id]) for id in score.top_ids[index]]
    assert [line.rpartition(" ")[0].rpartition(" ")[0] for line in likeliest] == [
        f"{rank}. “{token}”" for rank, token in enumerate(best, start=1)
    ]
    smile = found[-1][1].split("\n\n")
    assert sum(part.startswith("“\\x") for part in smile) > 1  # each of its tokens is listed
    plain = "".join(html_page([tales.score(text)], tales.tokenizer))
    assert "likeliest" not in plain


def test_a_page_shows_every_text(tales: GPT2) -> None:
    texts = ["The king", "", "The fox and the goose"]
    found = Page("".join(html_page(tales.score(texts), tales.tokenizer)))
    assert ["".join(shown for *_, shown in text) for text in found.texts] == texts
    assert len(Page("".join(html_page([], tales.tokenizer))).texts) == 0


def test_a_page_is_written_atomically(tmp_path: Path) -> None:
    file = tmp_path / "page.html"

    def broken() -> Any:
        yield "half"
        assert os.listdir(tmp_path) != ["page.html"]
        raise gpt2c.NumericalError("a test")

    with pytest.raises(gpt2c.NumericalError):
        save_html(file, broken())
    assert os.listdir(tmp_path) == []
    save_html(file, ["é", "\n\udcff"])
    assert file.read_bytes() == "é\n?".encode()
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask  # like any new file
    with pytest.raises(gpt2c.NumericalError):
        save_html(file, broken())
    assert file.read_bytes() == "é\n?".encode()
    save_html(str(file), ["new"])
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["page.html"]


def test_paths_where_a_page_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(gpt2c.OptionError, match="expected a file"):
            save_html(path, iter(["x"]))
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)) as caught:
        save_html(tmp_path / "nowhere" / "page.html", ["x"])
    assert caught.value.filename == str(tmp_path / "nowhere" / "page.html")
    assert "nowhere" in str(caught.value)
    with pytest.raises(gpt2c.OptionTypeError, match="path is 5"):
        save_html(5, ["x"])  # type: ignore[arg-type]
    with pytest.raises(gpt2c.OptionError, match="path is"):
        save_html("a\0b", ["x"])
    with pytest.raises(gpt2c.OptionError, match="surrogates not allowed"):
        save_html(tmp_path / "\ud800", ["x"])
