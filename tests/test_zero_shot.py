"""The zero-shot table: de-tokenizers that can be undone, and figures that equal the oracle's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from conftest import BACKENDS, shared_file
from hypothesis import given
from hypothesis import strategies as st

import gpt2c
from gpt2c.cli.main import main
from gpt2c.config import tensor_shapes
from gpt2c.oracle.reference import gpt2
from gpt2c.oracle.scoring import log_probabilities
from gpt2c.published.benchmark_files import read_bytes, read_passages, read_questions
from gpt2c.published.detokenizer import Detokenizer
from gpt2c.published.streams import score_stream
from gpt2c.published.tasks import ORDER, load_tasks, read_task
from gpt2c.published.zero_shot import measure, published_figure

pytestmark = pytest.mark.usefixtures("no_preferences")

TASKS = {task.name: task for task in load_tasks()}
TOKENIZED = ["wikitext2", "wikitext103", "ptb", "1bw", "cbt_cn", "cbt_ne"]


def joined(task, line, words=()):
    detokenizer = Detokenizer(TASKS[task].rules)
    detokenizer.find_exceptions([*line.split(), *words])
    text = detokenizer.join(line.split())
    assert detokenizer.split(text) == line.split()
    return text


# ---- de-tokenizers ----

# Written by hand, as the benchmarks tokenize and as a book would print it.
EXAMPLES = [
    (
        "wikitext2",
        'He had a guest @-@ starring role ; " Teddy \'s Story " cost $ 1 @,@ 500 ( 2 @.@ 5 % ) .',
        'He had a guest-starring role; "Teddy\'s Story" cost $1,500 (2.5%).',
    ),
    ("wikitext2", "M @-@ 82 and M @-@ 120 aren 't <unk> .", "M-82 and M-120 aren't <unk>."),
    ("wikitext2", "Mr. Smith of the U.S. left .", "Mr. Smith of the U.S. left."),
    ("wikitext103", "= = Reception = =", "= = Reception = ="),
    (
        "ptb",
        "it was n't the company 's $ N million <unk>",
        "it wasn't the company's $N million <unk>",
    ),
    ("1bw", 'He said , " We do n\'t know . " ( Reuters )', 'He said, "We don\'t know." (Reuters)'),
    (
        "cbt_cn",
        "`` I do n't know , '' said Alice -LRB- sadly -RRB- .",
        '"I don\'t know," said Alice (sadly).',
    ),
]


@pytest.mark.parametrize(("task", "line", "text"), EXAMPLES)
def test_tokenized_text_becomes_ordinary_text(task, line, text):
    assert joined(task, line) == text


def test_words_that_the_inverse_would_split_are_exceptions():
    detokenizer = Detokenizer(TASKS["wikitext2"].rules)
    words = ["Mr.", "U.S.", "cat", ".", "1,000", "@,@", ","]
    assert detokenizer.find_exceptions(words) == ["1,000", "Mr.", "U.S."]
    # "Mr." is a word of the benchmark: a full stop after "Mr" must not look like it.
    assert detokenizer.join(["Mr", "."]) == "Mr ."
    assert detokenizer.join(["Mr.", "Fox", "."]) == "Mr. Fox."


MARKS = (
    ".", ",", ";", "'", '"', "'s", "n't", "'t", "(", ")", "[", "]", "$", "%", "-", "--",
    "@-@", "@,@", "@.@", "``", "''", "-LRB-", "-RRB-", "<unk>", "N", "=", "1", "10",
    "U.S.", "Mr.", "a.", ",a", "a-b", '"a', "don't", "a's", "...", "A",
)  # fmt: skip
OTHER_WORDS = st.text("ab1.,-'\"@()$`", min_size=1, max_size=5)
WORDS = st.lists(st.one_of(st.sampled_from(MARKS), OTHER_WORDS), max_size=14)


@pytest.mark.parametrize("task", TOKENIZED)
@given(lines=st.lists(WORDS, min_size=1, max_size=4))
def test_every_detokenizer_is_invertible(task, lines):
    detokenizer = Detokenizer(TASKS[task].rules)
    exceptions = detokenizer.find_exceptions(word for line in lines for word in line)
    inverse = Detokenizer(TASKS[task].rules, exceptions)  # needs nothing else
    for line in lines:
        assert inverse.split(detokenizer.join(line)) == line


def publishers_wikitext() -> list[str]:
    text = shared_file("eval/wikitext-2-raw-test.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.split("\n\n")]


def test_the_whole_of_wikitext_2_is_given_back():
    lines = [line.split() for line in publishers_wikitext()]
    assert sum(len(line) + 1 for line in lines) == TASKS["wikitext2"].units
    detokenizer = Detokenizer(TASKS["wikitext2"].rules)
    exceptions = detokenizer.find_exceptions(word for line in lines for word in line)
    texts = [detokenizer.join(line) for line in lines]
    assert [detokenizer.split(text) for text in texts] == lines
    # Few words are exceptions, and few marks still stand apart.
    assert len(exceptions) < 200
    apart = sum(text.count(f" {mark} ") for text in texts for mark in [",", ".", ";", "@-@", "@,@"])
    tokenized = sum(line.count(mark) for line in lines for mark in [",", ".", ";", "@-@", "@,@"])
    assert apart < 0.01 * tokenized


# ---- figures that equal those of the float64 oracle ----


@pytest.fixture(scope="module")
def exact(tales):
    """Return a function from ids to the float64 log-probabilities after each, [n, n_vocab]."""
    weights = {name: tales.weight(name).astype(np.float64) for name in tensor_shapes(tales.config)}

    def log_p(ids):
        return log_probabilities(gpt2(np.array(ids), weights, tales.config))

    return log_p


@pytest.fixture(scope="module", params=["numpy", BACKENDS[-1]])
def model(request, tales):
    if request.param != "numpy":
        return tales
    return gpt2c.GPT2.from_pretrained(backend="numpy")


def exact_total(exact, ids, n_positions, stride):
    """Return the log-probability of ids after the first: each in the first window that holds it."""
    total, done = 0.0, 1
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + n_positions]
        rows = exact(window)
        for at in range(max(done, begin + 1), begin + len(window)):
            total += rows[at - 1 - begin, ids[at]]
            done = at + 1
    assert done == len(ids)
    return total


STORY = (
    "The old king had three sons , and the youngest was called Hans .\n"
    "\n"
    'He said to them , " Who brings me the bird shall have the kingdom . "\n'
    "They did n't wait , but went into the wood ; the bird 's song was heard from far away .\n"
)


def write(tmp_path, task, text):
    path = tmp_path / task.files[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# A float32 logit is wrong by some 1e-6 of the largest, about 20, and a mean of many by less.
REL = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("stride", [None, 100])
def test_perplexity_per_word_equals_the_oracles(tmp_path, model, exact, stride):
    task = TASKS["1bw"]
    wiki = TASKS["wikitext2"]
    lines = STORY.splitlines() * 14
    path = write(tmp_path, wiki, "".join(f" {line} \n" for line in lines))
    (result,) = measure(model, wiki, path, stride=stride)
    text = "".join(joined("wikitext2", line, STORY.split()) + "\n" for line in lines)
    ids = [model.config.bos_token_id, *model.tokenizer.encode(text)]
    assert len(ids) > 512 + 100
    total = exact_total(exact, ids, 512, stride or 256)
    n = sum(len(line.split()) + 1 for line in lines)
    assert result.value == pytest.approx(math.exp(-total / n), rel=REL)
    assert (result.n, result.unit, result.tokens) == (n, "word", len(ids) - 1)
    assert result.paper is None
    assert result.note == "expected 245,569 words"
    # The sentences of 1BW do not see each other.
    (result,) = measure(model, task, write(tmp_path, task, STORY))
    total = 0.0
    for line in STORY.splitlines():
        text = joined("1bw", line, STORY.split()) + "\n"
        ids = [model.config.bos_token_id, *model.tokenizer.encode(text)]
        rows = exact(ids)
        total += sum(rows[at, ids[at + 1]] for at in range(len(ids) - 1))
    n = len(STORY.split()) + 4
    assert result.value == pytest.approx(math.exp(-total / n), rel=REL)


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_bits_equal_the_oracles(tmp_path, model, exact, name):
    own = tmp_path / "own.toml"
    task_file = (gpt2c.published.tasks._FOLDER / f"{name}.toml").read_text()
    own.write_text(task_file.replace("95000000", "6").replace("units = 5000000", "units = 300"))
    task = read_task(own)
    text = "naïve: the café was full. " * 20
    path = write(tmp_path, task, text)
    (result,) = measure(model, task, path)
    # The 300 bytes from the 7th on.
    part = text.encode()[6:306].decode()
    ids = [model.config.bos_token_id, *model.tokenizer.encode(part)]
    bits = -exact_total(exact, ids, 512, 256) / math.log(2)
    n = 300 if name == "enwik8" else len(part)
    assert result.n == n
    assert len(part) < 300
    assert result.value == pytest.approx(bits / n, rel=REL)


def test_bytes_that_cut_characters(tmp_path):
    path = tmp_path / "enwik8"
    path.write_text("aé€b", encoding="utf-8")  # of 1, 2, 3 and 1 bytes
    assert [read_bytes(path, 0, n) for n in range(1, 8)] == [
        "a",
        "a",
        "aé",
        "aé",
        "aé",
        "aé€",
        "aé€b",
    ]
    assert [read_bytes(path, first, 9) for first in range(6)] == [
        "aé€b",
        "é€b",
        "€b",
        "€b",
        "b",
        "b",
    ]
    path.write_bytes(b"aaaaaa\xffaaaaaa")
    with pytest.raises(gpt2c.Error, match="not UTF-8"):
        read_bytes(path, 0, 13)
    with pytest.raises(gpt2c.Error, match="at most 13 bytes"):
        read_bytes(path, 13, 5)


PASSAGES = [
    "The king said, “Bring me the bird!” So the youngest son went into the wood to find the bird",
    "She looked at the moon. There was a man in the moon",
    "Once upon a time there was a little girl whose name was Rumpelstiltskin",
    "They went home and lived happily ever after",
    "The wolf ate the old woman, and he lay down in her bed",
]


def test_lambada_equals_the_oracles(tmp_path, model, exact):
    task = TASKS["lambada"]
    path = write(tmp_path, task, "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    found = {result.measure: result for result in measure(model, task, path)}
    word_total = token_total = 0.0
    right = dict.fromkeys(("word", "token", "filtered word", "filtered token"), 0)
    for text in PASSAGES:
        text = "\n" + text.replace("“", '"').replace("”", '"')
        context, word = text[: text.rindex(" ")], text[text.rindex(" ") :]
        given, ids = model.tokenizer.encode(context), model.tokenizer.encode(word)
        rows = exact(given + ids)[len(given) - 1 : -1]  # row i predicts ids[i]
        logs = [row[id] for row, id in zip(rows, ids, strict=True)]
        word_total, token_total = word_total + sum(logs), token_total + logs[-1]
        guesses = [int(row.argmax()) for row in rows]
        right["word"] += guesses == ids
        right["token"] += guesses[-1] == ids[-1]
        order = np.argsort(-rows[0])[:128].tolist()
        words = [model.tokenizer.decode([id]).strip().lower() for id in order]
        guesses[0] = next(
            id for id, w in zip(order, words, strict=True) if w not in task.stop_words
        )
        right["filtered word"] += guesses == ids
        right["filtered token"] += guesses[-1] == ids[-1]
    n = len(PASSAGES)
    assert found["PPL of the last word"].value == pytest.approx(math.exp(-word_total / n), rel=REL)
    assert found["PPL of the last token"].value == pytest.approx(
        math.exp(-token_total / n), rel=REL
    )
    accuracies = [result.value for name, result in found.items() if name.startswith("ACC")]
    expected = [right[name] for name in ("word", "filtered word", "token", "filtered token")]
    assert accuracies == [100 * count / n for count in expected]
    assert 0 < right["token"] < n  # so the passages tell right from wrong
    assert [result.column for result in found.values()] == ["LAMBADA PPL"] * 2 + ["LAMBADA ACC"] * 4


SENTENCES = [
    "Once upon a time there was a king .", "He had three sons .",
    "`` Who will bring me the bird ? ''",
    "They did n't know .", "The eldest went into the wood -LRB- it was dark -RRB- .",
] * 4  # fmt: skip
QUESTIONS = [
    ("`` XXXXX , '' said the king , `` come here ! ''", "Hans",
     "Hans|bird|king|wood|night|sons|song|Gretel|dark|time"),
    ("Then the second son went into the XXXXX to look for the bird .", "wood",
     "wood|king|song|moment|idea|Hans|night|sea|house|cup"),
    ("And they all lived happily ever XXXXX .", "song",
     "after|song|king|wood|night|sons|a|cup|sea|dark"),
    ("Then the XXXXX flapped its wings and flew away to its nest in the tree .", "king",
     "king|bird|son|wood|night|boy|song|girl|old|time"),
]  # fmt: skip


def cbt_file(questions=QUESTIONS):
    blocks = []
    for sentence, answer, choices in questions:
        lines = [f"{n} {line}" for n, line in enumerate(SENTENCES, start=1)]
        lines.append(f"21 {sentence}\t{answer}\t\t{choices}")
        blocks.append("\n".join(lines) + "\n\n")
    return "".join(blocks)


@pytest.mark.slow
def test_cbt_equals_the_oracles(tmp_path, model, exact):
    task = TASKS["cbt_cn"]
    (result,) = measure(model, task, write(tmp_path, task, cbt_file()))
    story = (
        'Once upon a time there was a king. He had three sons. "Who will bring me the bird?" They '
        "didn't know. The eldest went into the wood (it was dark)."
    )
    story = " ".join([story] * 4)
    parts = [
        (story + ' "', ["{}", ",", '"', " said the king", ",", ' "come here!"']),
        (story + " Then the second son went into the", [" {} to look for the bird."]),
        (story + " And they all lived happily ever", [" {}."]),
        (story + " Then the", [" {} flapped its wings and flew away to its nest in the tree."]),
    ]
    winners = []
    for (context, end), (_, _, choices) in zip(parts, QUESTIONS, strict=True):
        totals = []
        for choice in choices.split("|"):
            given = model.tokenizer.encode(context)
            ids = model.tokenizer.encode("".join(end).format(choice))
            rows = exact(given + ids)[len(given) - 1 : -1]
            totals.append(sum(row[id] for row, id in zip(rows, ids, strict=True)))
        winners.append(choices.split("|")[int(np.argmax(totals))])
    assert (result.n, result.unit, result.note) == (4, "question", "expected 2,000 questions")
    right = sum(winner == answer for winner, (_, answer, _) in zip(winners, QUESTIONS, strict=True))
    assert result.value == pytest.approx(100 * right / 4)
    # With the oracle's choices as the answers, all are right.
    questions = [(q[0], winner, q[2]) for q, winner in zip(QUESTIONS, winners, strict=True)]
    (result,) = measure(model, task, write(tmp_path, task, cbt_file(questions)))
    assert result.value == 100


@pytest.mark.slow
def test_a_story_that_is_longer_than_the_context_loses_its_beginning(tmp_path, model, exact):
    lines = [
        "the king and the bird went on and on through the wood and over the hill and back ."
    ] * 20
    block = "".join(f"{n} {line} {line}\n" for n, line in enumerate(lines, start=1))
    sentence, answer, choices = QUESTIONS[1]
    task = TASKS["cbt_ne"]
    path = write(tmp_path, task, f"{block}21 {sentence}\t{answer}\t\t{choices}\n\n")
    (result,) = measure(model, task, path)
    text = " ".join(line.replace(" .", ".") for line in [f"{line} {line}" for line in lines])
    given = model.tokenizer.encode(text + " Then the second son went into the")
    ends = [model.tokenizer.encode(f" {c} to look for the bird.") for c in choices.split("|")]
    room = 512 - max(map(len, ends))
    assert len(given) > room
    totals = []
    for ids in ends:
        rows = exact((given[-room:] + ids)[-512:])[-len(ids) - 1 : -1]
        totals.append(sum(row[id] for row, id in zip(rows, ids, strict=True)))
    assert result.value == 100 * (choices.split("|")[int(np.argmax(totals))] == answer)


@pytest.mark.parametrize("stride", [None, 19, 37, 99, 100])
def test_parts_of_a_stream_have_the_windows_of_the_whole(monkeypatch, tales, stride):
    monkeypatch.setattr("gpt2c.published.streams._N_WINDOWS", 3)
    text = STORY * 12
    counts = []
    found = score_stream(tales, text, 512 if stride == 100 else stride, counts.append)
    whole = tales.score(text, bos=True, stride=512 if stride == 100 else stride)
    assert sum(counts) == found[1] == whole.n_scored
    assert found[0] == pytest.approx(whole.total, rel=1e-12)  # sums of the same float32 numbers


# ---- the paper's figures, task files, and the command ----


def test_the_papers_figures_belong_to_the_tasks():
    columns = [column for task in TASKS.values() for column in task.columns]
    assert len(columns) == len(set(columns)) == 10
    for column in columns:
        small, *larger = (
            float(published_figure(size, column)) for size in ("124M", "355M", "774M", "1558M")
        )
        # Larger models are better in every column, but for one pair that the paper prints.
        better = (
            [small, *larger]
            if "ACC" in column or "CBT" in column
            else [-x for x in (small, *larger)]
        )
        assert better[:3] == sorted(better[:3])
        assert better[0] < better[3]
    # Radford et al. 2019, table 3, as it is quoted most often.
    assert published_figure("1558M", "LAMBADA ACC") == "63.24"
    assert published_figure("1558M", "WikiText2") == "18.34"
    assert published_figure("124M", "LAMBADA PPL") == "35.13"
    assert published_figure(None, "PTB") is None


@pytest.mark.parametrize("name", ORDER)
def test_task_files_say_where_the_data_comes_from(name):
    assert set(TASKS[name].data) == {"publisher", "file", "terms", "sha256"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "words"', 'kind = "word"', "kind is 'word'"),
        ('kind = "words"', "", "kind is missing"),
        ("units = 82430", "units = 0", "units is 0; it must be an integer of at least 1"),
        ("left = [", 'left = [" a", ', "left is"),
        ("right", "rigth", "found the unknown 'rigth'"),
        ('columns = ["PTB"]', 'columns = ["PTB", "x"]', "columns has 2 names, expected 1"),
    ],
)
def test_a_wrong_task_file_is_named(tmp_path, old, new, message):
    text = (gpt2c.published.tasks._FOLDER / "ptb.toml").read_text()
    assert old in text
    path = tmp_path / "ptb.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(gpt2c.Error, match=r"ptb\.toml") as error:
        read_task(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cbt_file().replace("2 He had", "3 He had", 1), "line 2: begins with '3', expected 2"),
        (cbt_file().replace("XXXXX", "Hans", 1), "line 21: found"),
        (cbt_file().replace("|cup", "", 1), "expected a sentence with XXXXX"),
        (cbt_file()[:60], "the last question has only 2 lines"),
        (cbt_file().replace("3 ``", "\n3 ``", 1), "a question has only 2 lines"),
    ],
)
def test_a_wrong_file_of_questions_is_named(tmp_path, text, message):
    path = tmp_path / "cbt.txt"
    path.write_text(text)
    with pytest.raises(gpt2c.Error, match=r"cbt\.txt") as error:
        read_questions(path)
    assert message in str(error.value)


def test_wrong_passages_are_named(tmp_path):
    path = tmp_path / "lambada_test.jsonl"
    for line in (b"{", b'{"x": 1}', b'{"text": "a"}', b"[1]", b"\xff"):
        path.write_bytes(b'{"text": "a b"}\n' + line + b"\n")
        with pytest.raises(gpt2c.Error, match="line 2"):
            read_passages(path)


def test_the_command(tmp_path, capsys):
    write(tmp_path, TASKS["lambada"], json.dumps({"text": PASSAGES[0]}))
    write(tmp_path, TASKS["wikitext2"], STORY)
    assert main(["zero-shot", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "none of OpenAI's four sizes" in captured.out
    assert captured.out.count("LAMBADA") == 6
    assert "gpt2c: ptb: no simple-examples/data/ptb.test.txt" in captured.err
    assert main(["zero-shot", str(tmp_path), "--tasks", "wikitext2", "--limit", "2", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["column"], result["n"], result["note"]) == ("WikiText2", 14 + 2, "")
    assert main(["zero-shot", "--list"]) == 0
    assert capsys.readouterr().out.count("publisher") == 9
    for arguments, message in (
        (
            [str(tmp_path), "--tasks", "ptb"],
            "has no file for ptb: simple-examples/data/ptb.test.txt",
        ),
        ([str(tmp_path / "absent")], "is not a folder"),
        ([], "give the folder"),
        ([str(tmp_path), "--tasks", "x"], "found the task 'x'"),
        ([str(tmp_path), "--limit", "0"], "--limit is 0"),
        ([str(tmp_path), "--stride", "513"], "--stride is 513; it must be from 1 to"),
    ):
        assert main(["zero-shot", *arguments]) == 2
        assert message in capsys.readouterr().err
