"""Clean the children's prose corpus and split it into tales.

The corpus is one text file of hard-wrapped Project Gutenberg books, with their contents pages,
prefaces and scholarly notes. `load` returns it as tales (the tales of a collection, the chapters of
a novel), with one line per paragraph, and holds out three books to score a model on.
"""

# ruff: noqa: RUF001 - the books have typographic quotes and dashes

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

CORPUS_SHA256 = "63bb20a3ae5d6e5f6f3c7421cba8f3c0f3f0eda775541c418d348a2244dce748"

# Each book: (title, author or editor, first line, last line). The lines are those of its stories in
# the file, counted from 1. Lines between books are left out: title pages, dedications, prefaces,
# contents, lists of illustrations, notes and references, transcribers' notes, advertisements.
BOOKS = [
    ("Alice's Adventures in Wonderland", "Lewis Carroll", 10, 3338),
    ("Andersen's Fairy Tales", "Hans Christian Andersen", 3371, 9149),
    ("Anne of Green Gables", "L. M. Montgomery", 9205, 19928),
    ("At the Back of the North Wind", "George MacDonald", 19940, 30321),
    ("Black Beauty", "Anna Sewell", 30427, 36318),
    ("Celtic Fairy Tales", "Joseph Jacobs", 36533, 43144),
    ("Dorothy and the Wizard in Oz", "L. Frank Baum", 44598, 49780),
    ("English Fairy Tales", "Joseph Jacobs", 49959, 55537),
    ("Five Children and It", "E. Nesbit", 56643, 63153),
    ("Grimms' Fairy Tales", "The Brothers Grimm", 63247, 72304),
    ("Heidi", "Johanna Spyri", 72403, 82308),
    ("Indian Fairy Tales", "Joseph Jacobs", 82609, 88846),
    ("Japanese Fairy Tales", "Yei Theodora Ozaki", 90259, 97693),
    ("Just So Stories", "Rudyard Kipling", 97720, 101104),
    ("Little Women", "Louisa May Alcott", 101174, 121731),
    ("More English Fairy Tales", "Joseph Jacobs", 122052, 127621),
    ("Ozma of Oz", "L. Frank Baum", 129041, 133963),
    ("Peter Pan", "J. M. Barrie", 134014, 140173),
    ("Pollyanna", "Eleanor H. Porter", 140235, 147618),
    ("Pinocchio", "C. Collodi", 147635, 153406),
    ("The Adventures of Tom Sawyer", "Mark Twain", 153862, 162229),
    ("The Blue Fairy Book", "Andrew Lang", 162291, 175770),
    ("The Brown Fairy Book", "Andrew Lang", 175890, 185739),
    ("The Crimson Fairy Book", "Andrew Lang", 185848, 195670),
    ("The Emerald City of Oz", "L. Frank Baum", 195758, 202620),
    ("The Enchanted Castle", "E. Nesbit", 202633, 211673),
    ("The Green Fairy Book", "Andrew Lang", 211820, 223803),
    ("The Grey Fairy Book", "Andrew Lang", 223880, 234527),
    ("The Jungle Book", "Rudyard Kipling", 234555, 239936),
    ("The Lilac Fairy Book", "Andrew Lang", 240111, 250562),
    ("The Lost Princess of Oz", "L. Frank Baum", 250652, 256138),
    ("The Magic of Oz", "L. Frank Baum", 256244, 261041),
    ("The Marvelous Land of Oz", "L. Frank Baum", 261199, 267681),
    ("The Olive Fairy Book", "Andrew Lang", 268087, 278010),
    ("The Orange Fairy Book", "Andrew Lang", 278175, 288766),
    ("The Patchwork Girl of Oz", "L. Frank Baum", 288881, 296155),
    ("The Pink Fairy Book", "Andrew Lang", 296255, 306770),
    ("The Princess and the Goblin", "George MacDonald", 306820, 312730),
    ("The Railway Children", "E. Nesbit", 312761, 320603),
    ("The Red Fairy Book", "Andrew Lang", 320693, 334860),
    ("The Road to Oz", "L. Frank Baum", 334953, 340021),
    ("The Scarecrow of Oz", "L. Frank Baum", 340116, 345598),
    ("The Secret Garden", "Frances Hodgson Burnett", 345661, 355061),
    ("The Story of Doctor Dolittle", "Hugh Lofting", 355323, 358496),
    ("The Violet Fairy Book", "Andrew Lang", 358620, 369607),
    ("The Wind in the Willows", "Kenneth Grahame", 369638, 375679),
    ("The Wonderful Wizard of Oz", "L. Frank Baum", 375756, 380400),
    ("The Yellow Fairy Book", "Andrew Lang", 380584, 391712),
    ("Through the Looking-Glass", "Lewis Carroll", 391723, 395618),
    ("Tik-Tok of Oz", "L. Frank Baum", 395720, 401823),
    ("Treasure Island", "Robert Louis Stevenson", 401956, 409337),
]
HELD_OUT = ("The Wind in the Willows", "Pinocchio", "The Violet Fairy Book")
SHARED_RUN = 13  # words; a held-out tale that shares such a run with the training text is dropped
SHORTEST_TALE = 300  # characters; anything shorter is a title page or a stray caption

PAGED_BOOK = "The Marvelous Land of Oz"  # the only edition with page numbers

GLOSSED_BOOK = "Peter Pan"  # the only edition with explanations in brackets

GLOSS = re.compile(r"\s\[[^\]]*\]")
ASIDE = re.compile(r"\[(?:Illustration|Footnote|FN#)(?:[^\[\]]|\[[^\]]*\])*\][ ]*\n?")
PAGE_MARK = re.compile(r"\d{1,3}|(?:\d{1,3}\s+)?(?:full page )?line-art drawing\.?", re.IGNORECASE)
PAGE_TITLE = re.compile(r"\d{1,3} {3,}(\S.*)")
FOOTNOTE_MARK = re.compile(r"\s?(?:\(\d{1,2}\)|\[\d{1,2}\]|\[\*+\]|\[FN#\d+\])")
NUMBER = (
    r"(?:\d+|[IVXL]+|(?:twenty|thirty|forty)(?:[- ][a-z]+)?|[a-z]+teen"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
)
CHAPTER_LINE = re.compile(rf"chapter\s+{NUMBER}\b.*", re.IGNORECASE)
CHAPTER = re.compile(
    rf"^(?:chapter\s+{NUMBER}\b[.:]?|the\s+[a-z-]+(?:\s+and\s+last)?\s+chapter\b"
    r"|\d+\.?(?=\s|$)|[IVXL]+\.?(?=\s|$))[\s.:–—-]*",
    re.IGNORECASE,
)
LONE_NUMBER = re.compile(r"(?:[IVXLC]+|\d+)\.?")
NOTE = re.compile(r"\[?(?:\(\d+\)|\[\d+\]|\[FN#|\*|footnotes?\b)", re.IGNORECASE)
CREDIT = re.compile(
    r"[\[(].{0,300}[\])]\.?|(?:From|Adapted|Translated|Taken|By) .{0,150}|(?:the|the very) end[.!]?"
    r"|finis\.?|end of the .{0,40}|an? old (?:japan|chinese story)\.?|a story of old japan\.?"
    r"|.{0,60}\b(?:Grimm|Perrault|Aulnoy|Caylus|Villeneuve|Asbjornsen(?: and Moe)?|Moe|Fees|Genies"
    r"|Deulin|Denlin|Sebillot|Kletke|F[eé]nelon|Southey|Swift|Marelles|Andersen|Wliolocki|Gonzenbach"
    r"|Ralston|Linnet|Catalans|M\w{1,5}rchen|Tradition|Highland Tales|Hibernian Tales|Folk Tale"
    r"|Pushto Story|Arabian Nights|Chapbook|Traditions of Scotland|Hainaut|Romarin|Zaza|Papillon"
    r"|Karelian|Nite Kremnitz|Mite Thremnitz|Marchen und Sagen|Tales and Legends.{0,20})\.?",
    re.IGNORECASE,
)
TITLE_NOTE = re.compile(r"\s*(?:\[[^\]]*\]|\([^)]*\))$")
SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "as",
        "at",
        "but",
        "by",
        "for",
        "from",
        "in",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
    ]
)


@dataclass
class Tale:
    """One document: a tale of a collection or a chapter of a novel."""

    book: str
    title: str
    paragraphs: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The title and the paragraphs, each on a line of its own."""
        head = [self.title] if self.title else []
        return "\n".join(head + self.paragraphs)


@dataclass
class Corpus:
    """Documents to train on, documents to score on, and counts of what was dropped, by reason."""

    train: list[Tale]
    held_out: dict[str, list[Tale]]
    dropped: Counter[str]


def load(path: Path) -> Corpus:
    """Load and clean the corpus. Refuse any other file, because BOOKS would not fit its lines."""
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != CORPUS_SHA256:
        raise SystemExit(f"{path}: found SHA-256 {digest}, expected {CORPUS_SHA256}")
    lines = raw.decode("utf-8").split("\n")
    dropped: Counter[str] = Counter()
    kept = sum(last - first + 1 for _, _, first, last in BOOKS)
    dropped["lines outside the stories (contents, prefaces, notes)"] = len(lines) - kept
    books = {
        title: split_tales(title, "\n".join(lines[first - 1 : last]), dropped)
        for title, _, first, last in BOOKS
    }
    train = [tale for title in books if title not in HELD_OUT for tale in books[title]]
    held_out = {title: books[title] for title in HELD_OUT}
    violet = HELD_OUT[2]
    held_out[violet] = without_shared_runs(held_out[violet], train)
    dropped["held-out tales that share a run of words with the training text"] = len(
        books[violet]
    ) - len(held_out[violet])
    return Corpus(train, held_out, dropped)


def split_tales(book: str, text: str, dropped: Counter[str]) -> list[Tale]:
    """Split a book into tales; a heading follows three or more blank lines."""
    text, asides = ASIDE.subn("", text)
    dropped["illustration captions and bracketed footnotes"] += asides
    if book == GLOSSED_BOOK:
        text, glosses = GLOSS.subn("", text)
        dropped["an editor's explanations in brackets"] += glosses
    found = text_blocks(text)
    if book == PAGED_BOOK:
        found = without_pages(found, dropped)
    tales = [Tale(book, "")]
    want_title = False
    for blank_lines, block in found:
        heading = is_heading(blank_lines, block)
        if heading or (want_title and is_short(block) and not is_sentence(block)):
            title = clean_title(block, numbered=heading)
            if heading:
                tales.append(Tale(book, title))
            else:
                tales[-1].title = title
            want_title = heading and not title
            continue
        want_title = False
        paragraph = unwrap(block)
        if reason := reason_to_drop(paragraph):
            dropped[reason] += 1
        elif paragraph := FOOTNOTE_MARK.sub("", paragraph).strip(" |"):
            tales[-1].paragraphs.append(paragraph)
    for tale in tales:
        dropped["source credits before or after a tale"] += strip_credits(tale.paragraphs)
    whole = [tale for tale in tales if len(tale.text) >= SHORTEST_TALE]
    dropped["title pages and fragments"] += len([t for t in tales if t.paragraphs]) - len(
        [t for t in whole if t.paragraphs]
    )
    return whole


def text_blocks(text: str) -> list[tuple[int, list[str]]]:
    """Split a text into runs of lines; return each with the number of blank lines before it."""
    found: list[tuple[int, list[str]]] = []
    blank, block = 4, []
    for line in [*text.split("\n"), ""]:
        line = line.replace("\xa0", " ").rstrip()
        if line.strip():
            block.append(line)
        elif block:
            found.append((blank, block))
            blank, block = 1, []
        else:
            blank += 1
    return found


def without_pages(
    found: list[tuple[int, list[str]]], dropped: Counter[str]
) -> list[tuple[int, list[str]]]:
    """Remove page numbers and captions; rejoin paragraphs that a page break cut."""
    kept: list[tuple[int, list[str]]] = []
    new_page = False
    for _, block in found:
        text = " ".join(line.strip() for line in block)
        if PAGE_MARK.fullmatch(text) or (text.upper() == text and text.endswith(".")):
            dropped["page numbers and captions of one edition"] += 1
            new_page = True
            continue
        if PAGE_MARK.fullmatch(block[0].strip()):
            block, new_page = block[1:], True
        if title := PAGE_TITLE.fullmatch(text):
            kept.append((4, [title[1]]))
        elif new_page and kept and kept[-1][0] == 1 and kept[-1][1][-1][-1] not in ".!?:;\"'-":
            kept[-1][1].extend(block)
        else:
            kept.append((1, block))
        new_page = False
    return kept


def is_short(block: list[str]) -> bool:
    """Whether a block is short enough to be a heading."""
    text = " ".join(line.strip() for line in block)
    return len(block) <= 3 and len(text) <= 150 and any(c.isalnum() for c in text)


def is_heading(blank_lines: int, block: list[str]) -> bool:
    """Whether a block is a chapter's number, or a short block after a wide gap, not a sentence."""
    text = " ".join(line.strip() for line in block)
    if CHAPTER_LINE.fullmatch(text) and is_short(block):
        return True
    if blank_lines < 3 or not is_short(block):
        return False
    spoken = text[0] in '“"' and text.upper() != text
    return not (spoken or text[-1] in ",;:—-" or (is_sentence(block) and len(text) > 60))


def is_sentence(block: list[str]) -> bool:
    """Whether a block ends like a sentence or speech and is not all in capitals."""
    text = block[-1].strip(" _")
    return text.upper() != text and text[-1] in ".,;:!?\"'”’-—"


def clean_title(block: list[str], numbered: bool) -> str:
    """Return a heading without number, source and capitals; empty if it was only a number."""
    text = " ".join(line.strip() for line in block).replace("_", "")
    text = FOOTNOTE_MARK.sub("", CHAPTER.sub("", text, count=1) if numbered else text)
    text = TITLE_NOTE.sub("", re.split(r" {3,}", text.strip())[0]).rstrip(".").strip()
    if text.upper() != text:
        return text
    words = text.lower().split()
    return " ".join(
        word if i and word in SMALL_WORDS else capitalise(word) for i, word in enumerate(words)
    )


def capitalise(word: str) -> str:
    """Capitalise the first letter, also after a hyphen or an opening quote."""
    return re.sub(r"(^|-|[“‘\"(])([a-z])", lambda m: m[1] + m[2].upper(), word)


def unwrap(block: list[str]) -> str:
    """Join prose to one line; keep the lines of verse, which are short and start with capitals."""
    lines = [" ".join(line.replace("_", "").split()) for line in block]
    verse = (
        len(lines) > 1
        and max(len(line) for line in lines) <= 56
        and sum(starts_with_capital(line) for line in lines) >= 0.8 * len(lines)
    )
    return ("\n" if verse else " ").join(lines)


def starts_with_capital(line: str) -> bool:
    """Whether a line starts with a capital, like lines of verse."""
    letters = line.lstrip("“‘\"'(*-—")
    return letters[:1].isupper()


def reason_to_drop(paragraph: str) -> str:
    """Return why a paragraph is not part of the story, or an empty string if it is."""
    if not any(c.isalpha() for c in paragraph) or LONE_NUMBER.fullmatch(paragraph):
        return "rules and section numbers"
    if paragraph.startswith("+--"):
        return "boxes drawn with lines"
    if NOTE.match(paragraph):
        return "footnotes"
    if paragraph[0] == "[" and paragraph[-1] == "]":
        return "bracketed credits and notes"
    return ""


def strip_credits(paragraphs: list[str]) -> int:
    """Remove the credits before and after a tale (its source, THE END); return their number."""
    before = len(paragraphs)
    while paragraphs and CREDIT.fullmatch(paragraphs[-1]):
        paragraphs.pop()
    while paragraphs and CREDIT.fullmatch(paragraphs[0]):
        paragraphs.pop(0)
    return before - len(paragraphs)


def words_of(text: str) -> list[str]:
    """Return the words in lower case, with letters and inner apostrophes only."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("’", "'"))


def word_runs(text: str, length: int) -> set[int]:
    """Return the hash of every run of `length` words."""
    words = words_of(text)
    return {hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)}


def without_shared_runs(tales: list[Tale], train: list[Tale]) -> list[Tale]:
    """Return the tales that share no run of `SHARED_RUN` words with the training text."""
    seen: set[int] = set()
    for tale in train:
        seen |= word_runs(tale.text, SHARED_RUN)
    return [tale for tale in tales if not word_runs(tale.text, SHARED_RUN) & seen]
