"""Word surprisals: words and their tokens, the corrections, and other tools' numbers."""

from __future__ import annotations

import json
import math
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
from conftest import FIXTURES, TALES, TINY, cases, load
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c import GPT2, OptionError, OptionTypeError, Tokenizer, TokenizerError, surprisal
from gpt2c.measure.words import Aligner, Passage, words_of
from gpt2c.text.added_tokens import WHITE_SPACE
from gpt2c.text.characters import read_meta
from gpt2c.text.tokenizer import MissingTokenizer

PEERS = json.loads((FIXTURES / "word_surprisals.json").read_text(encoding="utf-8"))
TEXT = 'The old  king\u00a0sat down\non the café\'s chair, and said: "Well!"'
# Characters of one to four bytes, white space of one to three, and punctuation.
CHARACTERS = "aZ9'.,-\u00e9\u4f60\U0001f600 \t\n\u00a0\u2003\u3000"


# ---- words and tokens ----


def tokens_of_words(tokenizer: Tokenizer, passage: Passage) -> list[bytes]:
    words = Aligner(tokenizer, special=False).align(passage, "a text")
    return [
        b"".join(tokenizer.token_bytes(id) for id in words.ids[first:end])
        for first, end in zip(words.first, words.end, strict=True)
    ]


@settings(max_examples=cases(200))
@given(st.text(alphabet=CHARACTERS, max_size=40))
def test_the_tokens_of_a_word_are_the_white_space_before_it_and_the_word(tales, text):
    spans = words_of(text)
    assert [text[a:b] for a, b in spans] == [w for w in re.split(f"[{WHITE_SPACE}]+", text) if w]
    ends = [0, *(end for _, end in spans)]
    expected = [text[ends[i] : end].encode() for i, (_, end) in enumerate(spans)]
    for tokenizer in (Tokenizer.gpt2(), tales.tokenizer):
        assert tokens_of_words(tokenizer, Passage(text, spans)) == expected


@settings(max_examples=cases(200))
@given(st.lists(st.text(alphabet="abdont'.\u4f60\u559c", min_size=1, max_size=5), max_size=6))
def test_given_words_never_share_a_token(words):
    text = "".join(words)
    ends = np.cumsum([0, *map(len, words)]).tolist()
    spans = list(pairwise(ends))
    found = tokens_of_words(Tokenizer.gpt2(), Passage(text, spans))
    assert found == [word.encode() for word in words]


def test_a_text_is_encoded_as_a_whole_unless_a_token_would_hold_two_words(tales):
    encode = tales.tokenizer.encode
    whole = surprisal(tales, TEXT)
    assert [id for ids in whole.columns["token_ids"] for id in ids] == encode(TEXT)
    assert not whole.columns["is_cut"].any()
    for words in (["over", "night"], ["night", "over"], ["do", "n't"], ["a", "b", "c"]):
        spans = surprisal(tales, [words], sep="").columns
        assert spans["token_ids"] == [encode(word) for word in words]
        is_one_part = encode("".join(words)) == [id for ids in spans["token_ids"] for id in ids]
        assert spans["is_cut"].any() != is_one_part


def test_spans_and_names(tales):
    columns = surprisal(tales, ["A cat.", " It  sat"], context="So:", text_ids=["x", "y"]).columns
    assert columns["text_id"] == ["x", "x", "y", "y"]
    assert columns["word_index"].tolist() == [1, 2, 1, 2]
    assert columns["word"] == ["A", "cat.", "It", "sat"]
    assert columns["start"].tolist() == [0, 2, 1, 5]
    assert columns["end"].tolist() == [1, 6, 3, 8]
    assert len(surprisal(tales, ["", "  ", "a"])) == 1


# ---- the numbers, from their definitions ----


def log_softmax(logits):
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def by_definition(model: GPT2, text: str, correction: str, n_given: int = 0) -> list[float]:
    """Return the words' surprisals in nats, after n_given words, straight from the logits."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text)
    log_p = log_softmax(model.logits([model.config.bos_token_id, *ids]))  # [n + 1, n_vocab]
    spaced = [tokenizer.token_bytes(id)[:1] == b" " for id in range(model.config.vocab_size)]
    begins = np.array(spaced)
    first_set = ~begins
    if correction == "pimentel":
        begins = begins.copy()
        begins[tokenizer.eot_id] = True

    def log_sum(position: int, ids_in: np.ndarray) -> float:
        return float(np.log(np.exp(log_p[position][ids_in]).sum()))

    words = text.split()
    values, at = [], 0
    for word in words:
        begin, seen = at, b""
        while seen.strip() != word.encode():
            seen += tokenizer.token_bytes(ids[at])
            at += 1
        value = -sum(log_p[i, ids[i]] for i in range(begin, at))
        if correction != "none":
            if spaced[ids[begin]] and (begin or correction == "pimentel"):
                value += log_sum(begin, begins)
            elif begin == 0 and correction == "pimentel":
                value += log_sum(0, first_set)
            if at == len(ids) or spaced[ids[at]]:
                value -= log_sum(at, begins)
        values.append(value)
    return values[n_given:]


@pytest.mark.parametrize("correction", ["none", "pimentel", "oh_schuler"])
def test_surprisals_are_those_of_the_definitions(backend, correction):
    model = load(TALES, backend)
    texts = ["The old  king sat down.", " A fox, a dog", "One\nTwo three", "x"]
    found = surprisal(model, texts, correction=correction, unit="nats")
    for text, passage in zip(texts, found.passages, strict=True):
        values = passage.surprisals if correction == "none" else passage.corrected
        # float32 logits of about 20 have errors of some 1e-5.
        np.testing.assert_allclose(values, by_definition(model, text, correction), atol=5e-5)
    column = "surprisal" if correction == "none" else "corrected"
    in_bits = surprisal(model, texts, correction=correction).columns[column]
    np.testing.assert_allclose(in_bits * math.log(2), found.columns[column], rtol=1e-12)


@pytest.mark.parametrize("correction", ["none", "pimentel", "oh_schuler"])
def test_a_context_is_read_and_not_scored(tales, correction):
    text = "The old king sat down on the chair."
    column = "surprisal" if correction == "none" else "corrected"
    options = {"correction": correction, "unit": "nats"}
    values = surprisal(tales, "sat down on the chair.", context="The old king", **options)
    np.testing.assert_allclose(
        values.columns[column], by_definition(tales, text, correction, 3), atol=5e-5
    )
    # The same bits as in the whole text, whichever side has the space, and in any company.
    whole = surprisal(tales, text, **options).columns[column][3:]
    end = "sat down on the chair."
    for context, rest in (("The old king ", end), ("The old king", f" {end}")):
        texts = [rest, "Once upon a time there was a fox", rest]
        contexts = [context, "", context]
        found = surprisal(tales, texts, context=contexts, **options)
        np.testing.assert_array_equal(found.columns[column][:5], whole)
        np.testing.assert_array_equal(found.columns[column][-5:], whole)


@pytest.mark.parametrize("context", [None, "Once upon a time,"])
@pytest.mark.parametrize("correction", ["pimentel", "oh_schuler"])
def test_corrected_surprisals_telescope(tales, correction, context):
    found = surprisal(tales, ["The  old king sat, and\nate", "A fox"], context=context,
                      correction=correction, unit="nats")  # fmt: skip
    token_bytes, n_vocab = tales.tokenizer.token_bytes, tales.config.vocab_size
    first_set = [id for id in range(n_vocab) if token_bytes(id)[:1] != b" "]
    at_start = tales.score([tales.config.bos_token_id], [0], id_sets=[first_set]).set_logprobs[0, 0]
    for p in found.passages:
        sets = p.score.set_logprobs[:, 0].astype(np.float64)
        before = sets[0] if context else float(at_start) if correction == "pimentel" else 0.0
        total = -p.score.logprobs[:-1].astype(np.float64).sum()  # without the id after the text
        # Sums of float64: the factors cancel exactly or nearly so.
        assert abs(p.corrected.sum() - (total + before - sets[-1])) < 1e-10


def test_the_other_columns_are_those_of_score(tales):
    orders = [0.5, math.inf]
    found = surprisal(tales, TEXT, unit="nats", entropy_reduction=True, renyi_orders=orders)
    (p,) = found.passages
    ids = tales.tokenizer.encode(TEXT)
    score = tales.score([*ids, 0], bos=True, renyi_orders=orders)
    first, end = p.words.first, p.words.end
    columns = found.columns
    np.testing.assert_array_equal(columns["rank"], score.ranks[first])
    entropies = score.entropies.astype(np.float64)
    np.testing.assert_array_equal(columns["entropy"], entropies[first])
    np.testing.assert_array_equal(columns["entropy_reduction"], entropies[first] - entropies[end])
    np.testing.assert_array_equal(columns["renyi_0.5"], score.renyi_entropies[first, 0])
    np.testing.assert_array_equal(columns["renyi_inf"], score.renyi_entropies[first, 1])


def test_each_renyi_order_has_its_column(tales):
    found = surprisal(tales, TEXT, renyi_orders=[2, 2.0000001, 0.1, 1e300])
    names = [name for name in found.columns if name.startswith("renyi_")]
    assert names == ["renyi_2", "renyi_2.0000001", "renyi_0.1", "renyi_1e+300"]


def test_next_tokens_are_the_most_likely_ones(tales):
    found = surprisal(tales, ["The old", ""], next_tokens=3, unit="nats").next_tokens
    ids = tales.tokenizer.encode("The old")
    log_p = log_softmax(tales.logits([tales.config.bos_token_id, *ids]))
    expected = [row for i in range(3) for row in np.argsort(-log_p[i], kind="stable")[:3]]
    assert found["token_id"] == [*expected, *expected[:3]]
    assert found["token"] == [tales.tokenizer.decode([id]) for id in found["token_id"]]
    assert found["word_index"] == [1] * 3 + [2] * 3 + [3] * 3 + [1] * 3
    assert found["token_rank"] == [1, 2, 3] * 4
    theirs = [-log_p[i, id] for i in range(3) for id in expected[3 * i : 3 * i + 3]]
    np.testing.assert_allclose(found["surprisal"][:9], theirs, atol=5e-5)
    assert not surprisal(tales, "The old").next_tokens["token"]


def test_without_bos_the_first_word_has_no_surprisal(tales):
    columns = surprisal(tales, ["The old king", "x"], bos=False, correction="oh_schuler").columns
    for name in ("surprisal", "corrected", "entropy"):
        assert np.isnan(columns[name]).tolist() == [True, False, False, True]
    score = tales.score("The old king")
    nats = columns["surprisal"][1:3] * math.log(2)
    np.testing.assert_allclose(nats, -score.logprobs[1:], rtol=1e-12)
    assert columns["rank"].tolist()[0] == 0


def test_a_text_longer_than_the_context_is_read_in_windows(tales):
    text = "The old king sat down on the chair and ate a fish. " * 60
    ids = tales.tokenizer.encode(text)
    assert len(ids) > tales.config.n_positions
    for stride in (None, 100):
        found = surprisal(tales, text, stride=stride, unit="nats", correction="oh_schuler")
        score = tales.score(ids, bos=True, stride=stride)
        total = -score.logprobs[: found.passages[0].words.end[-1]].astype(np.float64).sum()
        assert abs(found.columns["surprisal"].sum() - total) < 1e-9 * total
        assert np.isfinite(found.columns["corrected"]).all()


# ---- punctuation, spans, columns ----


def test_punctuation_set_apart_is_a_word(tales):
    text = '"Stop!" he said; don\'t.'
    found = surprisal(tales, text, apart=r"^\W+|\W+$", unit="nats")
    assert found.columns["word"] == ['"', "Stop", '!"', "he", "said", ";", "don't", "."]
    whole = surprisal(tales, text, unit="nats")
    if not found.columns["is_cut"].any():
        assert found.columns["surprisal"].sum() == pytest.approx(
            whole.columns["surprisal"].sum(), rel=1e-12
        )
    corrected = surprisal(tales, "cat, dog", apart=r"\W", correction="oh_schuler", unit="nats")
    # The comma follows "cat" without a space: nothing is moved over this border.
    assert corrected.columns["corrected"][0] == corrected.columns["surprisal"][0]


def test_ignored_tokens_do_not_count(tales):
    text = "The king, they said -- left."
    whole = surprisal(tales, text, unit="nats")
    found = surprisal(tales, text, ignore=r"\W+", unit="nats")
    (p,) = whole.passages
    kept = [
        i for i, id in enumerate(p.words.ids)
        if re.search(r"\w", tales.tokenizer.decode([int(id)]))
    ]  # fmt: skip
    logprobs = p.score.logprobs.astype(np.float64)
    for word, value in enumerate(found.columns["surprisal"]):
        inside = [i for i in kept if p.words.first[word] <= i < p.words.end[word]]
        if inside:
            assert value == pytest.approx(-logprobs[inside].sum(), rel=1e-12)
        else:
            assert math.isnan(value)
    assert np.isnan(found.columns["surprisal"]).sum() == 1  # the dashes
    assert (found.columns["surprisal"] < whole.columns["surprisal"]).sum() == 2


def test_spans_choose_regions(tales):
    text = "The old king sat down on the chair."
    whole = surprisal(tales, text, correction="pimentel")
    spans = [[(4, 12), (21, 24)], [(0, 35)]]
    found = surprisal(tales, [text, text], spans=spans, correction="pimentel")
    assert found.columns["word"] == ["old king", " on", text]
    values = whole.columns["corrected"]
    expected = [values[1] + values[2], values[5], values.sum()]
    np.testing.assert_allclose(found.columns["corrected"], expected, rtol=1e-9)


def test_a_column_of_words_and_one_of_groups(tales):
    words = ["The", "A", "old", "fox,", "king", "too."]
    groups = ["a", "b", "a", "b", "a", "b"]
    context = ["So: " if group == "a" else "" for group in groups]
    options = {"correction": "pimentel"}
    found = surprisal(tales, words, by=groups, context=context, **options).columns
    assert found["word"] == words
    assert found["text_id"] == groups
    assert found["word_index"].tolist() == [1, 1, 2, 2, 3, 3]
    texts = surprisal(tales, ["The old king", "A fox, too."], context=["So: ", ""], **options)
    np.testing.assert_array_equal(found["corrected"][::2], texts.columns["corrected"][:3])
    np.testing.assert_array_equal(found["corrected"][1::2], texts.columns["corrected"][3:])
    lists = surprisal(tales, [["The", "old", "king"], ["A", "fox,", "too."]], context=["So: ", ""])
    np.testing.assert_array_equal(lists.columns["surprisal"], texts.columns["surprisal"])


# ---- other tools ----


@pytest.mark.parametrize(
    ("peer", "correction"),
    [
        ("minicons", "none"),
        ("minicons_bow_correction", "oh_schuler"),
        ("wordsprobability_uncorrected", "none"),
        ("wordsprobability", "pimentel"),
    ],
)
def test_other_tools_compute_the_same(tales, peer, correction):
    items = [item for item in PEERS["texts"] if item[peer] is not None]
    assert len(items) >= 18
    found = surprisal(tales, [i["text"] for i in items], correction=correction, unit="nats")
    for item, p in zip(items, found.passages, strict=True):
        ends = dict(zip(p.words.end.tolist(), range(len(p.words.end)), strict=True))
        values = p.surprisals if correction == "none" else p.corrected
        at, theirs, n_words = 0, 0.0, 0
        for n_tokens, value in item[peer]:
            at, theirs = at + n_tokens, theirs + value
            # wordsprobability has an empty word for the first of two spaces.
            if at in ends:
                # torch's float32 and ours differ by 3e-5 at most in 1,000 sentences.
                assert abs(values[ends[at]] - theirs) < 1e-4, item["text"]
                theirs, n_words = 0.0, n_words + 1
        assert n_words == len(values)


# ---- the model's fingerprint ----


def test_a_fingerprint_names_the_weights_and_not_their_file(tmp_path):
    names = ("numpy", "auto")
    found = {GPT2.from_pretrained(TINY, backend=name).fingerprint for name in names}
    model = GPT2.from_pretrained(TINY)
    model.save_pretrained(tmp_path / "copy")
    found.add(GPT2.from_pretrained(tmp_path / "copy").fingerprint)
    assert len(found) == 1
    assert re.fullmatch("[0-9a-f]{64}", found.pop())
    assert model.fingerprint != GPT2.from_pretrained(TALES).fingerprint
    assert model.fingerprint != GPT2.from_pretrained(TINY, dtype="int8").fingerprint
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["layer_norm_epsilon"] = 1e-3
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert model.fingerprint != GPT2.from_pretrained(tmp_path / "copy").fingerprint


def test_metadata_says_what_made_the_numbers(tales):
    found = surprisal(tales, "x", correction="pimentel", bos=False, apart="[.]").metadata
    assert found == {
        "gpt2c": gpt2c.__version__, "arithmetic": str(gpt2c.ARITHMETIC),
        "model_sha256": tales.fingerprint, "dtype": "float32", "backend": tales.backend,
        "correction": "pimentel", "bos": "false", "unit": "bits", "stride": "256", "apart": "[.]",
    }  # fmt: skip


# ---- errors ----


class Frame(list):
    """Like a frame of pandas, which yields its columns' names."""

    columns = ("item", "sentence")

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ("x", {"correction": "oh"}, OptionError, "correction is 'oh'; it must be one of 'none'"),
        ("x", {"unit": "dits"}, OptionError, "unit is 'dits'"),
        ("x", {"bos": 1}, OptionTypeError, "bos is 1"),
        (5, {}, OptionTypeError, "texts is 5; it must be a list"),
        ([5], {}, OptionTypeError, "text 1 is 5; it must be a text or a list of words"),
        ({"item": ["a"]}, {}, OptionTypeError, "texts is of type dict; it must be a list; choose"),
        ([{"a": 1}], {}, OptionTypeError, "text 1 is of type dict; it must be a text or a list of"),
        (["a"], {"by": {"item": [1]}}, OptionTypeError, "by is of type dict"),
        (Frame(), {}, OptionTypeError, "texts is of type Frame; it must be a list; choose a"),
        ([[1]], {}, OptionTypeError, "text 1, word 0: the word is 1"),
        ([["a", " "]], {}, OptionError, "text 1, word 1: the word is ' '"),
        (["a", "b"], {"by": [1]}, OptionError, "by has 1 items, and there are 2 words"),
        (["a", ""], {"by": [1, 1]}, OptionError, "group 1, row 1: the word is ''"),
        (["a"], {"by": [[]]}, OptionTypeError, "a group must be hashable"),
        (["a", "b"], {"by": [1, 1], "context": ["x", "y"]}, OptionError, "context differs"),
        (["a"], {"by": [1], "spans": [[]]}, OptionError, "spans is given with by"),
        ("a", {"context": ["x", "y"]}, OptionError, "context has 2 items, and there are 1 texts"),
        ("a", {"context": [3]}, OptionTypeError, "context 0 is 3"),
        ("ab cd", {"spans": [(0, 9)]}, OptionError, "text 1: span 0 is (0, 9)"),
        ("ab cd", {"spans": [(2, 4), (3, 5)]}, OptionError, "span 1 is (3, 5); it must begin at 4"),
        ("ab cd", {"spans": [(2, 3)]}, OptionError, "has only white space"),
        ("ab cd", {"spans": [7]}, OptionError, "span 0 is 7; it must be a pair"),
        ("a", {"apart": "("}, OptionError, "apart is '(', which is no regular expression"),
        ("a", {"ignore": "[.]", "correction": "pimentel"}, OptionError, "ignore is given with"),
        ("a", {"renyi_orders": [1]}, OptionError, "renyi_orders has 1"),
        ("a", {"next_tokens": 200}, OptionError, "next_tokens is 200"),
        ("a \ud800", {}, TokenizerError, "text 1: the text has a lone surrogate"),
        (["a"], {"text_ids": [1, 2]}, OptionError, "text_ids has 2 items"),
        ("a", {"sep": 3}, OptionTypeError, "sep is 3"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(tales, texts, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        surprisal(tales, texts, **options)


def test_corrections_need_tokens_that_begin_with_spaces(tmp_path):
    model = load(TINY)
    letters = {char: id for id, char in enumerate("ab ")}
    meta = {"stoi": letters, "itos": {id: char for char, id in letters.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    model.tokenizer = read_meta(tmp_path / "meta.pkl")
    found = surprisal(model, "a ba", bos=False)
    assert found.columns["token_ids"] == [[0], [2, 1, 0]]
    for correction in ("pimentel", "oh_schuler"):
        with pytest.raises(TokenizerError, match=r"needs a byte-level BPE vocabulary.*meta\.pkl"):
            surprisal(model, "a", correction=correction, bos=False)
    model.tokenizer = MissingTokenizer("a test")
    with pytest.raises(TokenizerError, match="no tokenizer: a test"):
        surprisal(model, "a", bos=False)
    with pytest.raises(OptionTypeError, match="model is 5; it must be a GPT2 model"):
        surprisal(5, "a")
