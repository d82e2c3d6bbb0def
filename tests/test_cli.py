"""The command line, in this process and in a process of its own."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import FIXTURES, ISAS

import gpt2c
from gpt2c.cli.main import main
from gpt2c.coloring import html_page, terminal_text

PLAIN = str(FIXTURES / "transformers" / "plain")
COMMAND = [sys.executable, "-m", "gpt2c"]
pytestmark = pytest.mark.usefixtures("no_preferences")


def run(*arguments: str, stdin: bytes = b"", **environment: str):
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_generate_prints_the_new_text(tales, capsys):
    assert main(["generate", "Once upon a time", "-n", "12"]) == 0
    assert capsys.readouterr().out == tales.generate("Once upon a time", max_new_tokens=12) + "\n"
    assert main(["generate", "Once upon a time", "-n", "12", "--echo"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_generate_passes_sampling_options(tales, capsys):
    options = ["--temperature", "0.8", "--top-k", "40", "--seed", "7", "-n", "20"]
    assert main(["generate", "The old king", *options]) == 0
    text = tales.generate("The old king", temperature=0.8, top_k=40, seed=7, max_new_tokens=20)
    assert capsys.readouterr().out == text + "\n"


def test_generate_with_beam_search(tales, capsys):
    options = [
        "--num-beams",
        "4",
        "--early-stopping",
        "never",
        "--length-penalty",
        "0.5",
        "-n",
        "6",
    ]
    by_name = {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.5}
    texts = tales.generate(["One", "Two"], max_new_tokens=6, **by_name)
    assert main(["generate", "One", "Two", *options]) == 0
    assert capsys.readouterr().out == "\n\n".join(texts) + "\n"
    assert main(["generate", "One", *options, "--echo", "--early-stopping", "true"]) == 0
    early = tales.generate("One", max_new_tokens=6, **{**by_name, "early_stopping": True})
    assert capsys.readouterr().out == f"One{early}\n"
    groups = ["--num-beam-groups", "2", "--diversity-penalty", "2", "--num-return-sequences", "3"]
    assert main(["generate", "One", *options, *groups, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = tales.complete(
        "One", max_new_tokens=6, num_beam_groups=2, diversity_penalty=2, num_return_sequences=3,
        **by_name,
    )  # fmt: skip
    assert [line["text"] for line in lines] == [c.text for c in found]
    assert [line["sequence_score"] for line in lines] == [c.sequence_score for c in found]


def test_generate_prints_several_completions_of_a_prompt(tales, capsys):
    options = ["--num-return-sequences", "2", "--temperature", "1", "--seed", "3", "-n", "6"]
    assert main(["generate", "One", *options]) == 0
    texts = tales.generate("One", max_new_tokens=6, num_return_sequences=2, temperature=1, seed=3)
    assert capsys.readouterr().out == "\n\n".join(texts) + "\n"
    assert main(["generate", "One", "--length-penalty", "2"]) == 2
    assert "length_penalty is given without num_beams" in capsys.readouterr().err


def test_a_blank_line_separates_the_completions_of_several_prompts(tales, capsys):
    assert main(["generate", "One", "Two", "-n", "5"]) == 0
    texts = tales.generate(["One", "Two"], max_new_tokens=5)
    assert capsys.readouterr().out == "\n\n".join(texts) + "\n"


def test_json_prints_one_object_per_line(tales, capsys, tmp_path):
    prompts = [f"The {i}th day" for i in range(40)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts) + "\n")
    assert main(["generate", "--file", str(file), "--json", "-n", "4"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line, done in zip(lines, tales.complete(prompts, max_new_tokens=4), strict=True):
        assert line["text"] == done.text
        assert (line["ids"], line["finish_reason"], line["seed"]) == (done.ids, "length", None)


def test_blank_lines_and_a_byte_order_mark_are_skipped(tales, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfOne\n\n  \nTwo\n")
    assert main(["generate", "--file", str(file), "--json", "-n", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["One", "Two"]


def test_a_prompt_that_is_too_long_is_reported_by_line_before_any_runs(tales, capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("One\n\n" + "word " * 600 + "\nTwo\n")
    for options in ([], ["--json"]):
        assert main(["generate", "--file", str(file), *options]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{file}, line 3 has 6" in err
        assert "--truncate left" in err
    assert main(["generate", "--file", str(file), "--truncate", "left", "-n", "3"]) == 0


def test_standard_input_is_a_prompt(tales, capsys, monkeypatch):
    class Stdin:
        buffer = io.BytesIO("Im Märchen\n".encode())

        @staticmethod
        def isatty():
            return False

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["generate", "-n", "6"]) == 0
    assert capsys.readouterr().out == tales.generate("Im Märchen", max_new_tokens=6) + "\n"


def test_generate_without_a_prompt_in_a_terminal_starts_from_bos(tales, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["generate", "-n", "6"]) == 0
    assert capsys.readouterr().out == tales.generate("", max_new_tokens=6) + "\n"


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"gpt2c             {gpt2c.__version__}" in out
    assert f"arithmetic        {gpt2c.ARITHMETIC}" in out
    assert "tales (embedded)" in out
    if ISAS:
        assert f"c, {ISAS[-1]} (the fastest that runs here)" in out
    assert "MB as float32)" in out
    assert "defaults          none\n" in out
    assert main(["info", "--backend", "numpy", "--model", PLAIN]) == 0
    out = capsys.readouterr().out
    assert "numpy (asked for by --backend=numpy)" in out
    # 97 * 48 + 40 * 48 + 2 blocks of 12 * 48^2 + 13 * 48 + 2 * 48
    assert "parameters        63,216" in out


def test_info_names_the_source_of_the_number_of_threads(capsys, monkeypatch):
    if not ISAS:
        pytest.skip("NumPy chooses its own threads")
    monkeypatch.delenv("GPT2C_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
    assert main(["info"]) == 0
    assert "threads           1 (asked for by OMP_NUM_THREADS)" in capsys.readouterr().out


def test_help_shows_examples(capsys):
    for arguments in (["--help"], ["generate", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert 'gpt2c generate "Once upon a time"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--model", "./nowhere"], "nowhere"),
        (["generate", "x", "--model", PLAIN], "vocab.json"),
        (["generate", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "x", "-n", "-1"], "max_new_tokens is -1"),
        (["generate", "x", "--file", "y"], "--file"),
        (["generate", "--file", "/nowhere/at/all"], "/nowhere/at/all: No such file"),
        (["generate", "x", "--backend", "cuda"], "backend is 'cuda'"),
        (["generate", "\udcff"], "surrogate"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpt2c: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_usage_error_is_one_line_and_status_2():
    for arguments in ([], ["tell"], ["generate", "-n", "many"], ["generate", "--nonsense"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(b"gpt2c")
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--num-beam", "4"], "--num-beam 4; did you mean --num-beams?"),
        (["generate", "x", "--top_k", "4"], "did you mean --top-k? (see gpt2c generate --help)"),
        (["generate", "x", "--max-tokens", "4"], "; did you mean --max-new-tokens?"),
        (["generate", "x", "--max_new_tokens=4"], "; did you mean --max-new-tokens?"),
        (["generate", "x", "--n-predict=4"], "; did you mean --max-new-tokens?"),
        (["generate", "x", "--max-length=4"], "--max-new-tokens, which does not count the prompt?"),
        (["generate", "x", "--stop-sequences", "."], "; did you mean --stop?"),
        (["generate", "x", "--nsamples", "2"], "; did you mean --num-return-sequences?"),
        (["generate", "x", "--return-full-text"], "; did you mean --echo?"),
        (["info", "--nsamples", "2"], "--nsamples 2 (see gpt2c info --help)"),
        (["perplexity", "x", "y"], "arguments: y (see gpt2c perplexity --help)"),
    ],
)
def test_an_unknown_option_gets_a_suggestion_from_the_same_command(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_output_encoding_without_the_characters():
    done = run("generate", "“Come in,” said", "-n", "30", "--echo", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no signals here")
def test_output_streams_and_ctrl_c_ends_with_130(start):
    process = start(
        [*COMMAND, "generate", "Once", "--backend", "numpy", "-n", "480"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert os.read(process.stdout.fileno(), 1)  # output arrives while the process runs
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_a_closed_pipe_prints_no_traceback(start):
    process = start(
        [*COMMAND, "generate", "Once", "-n", "480"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""


def test_the_fallback_warning_is_one_line():
    program = (
        "import sys; sys.modules['gpt2c.engine._engine'] = None\n"
        "from gpt2c.cli.main import main; sys.exit(main(['generate', 'Once', '-n', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stderr.startswith(b"gpt2c: warning: ")
    assert done.stderr.count(b"\n") == 1


def test_output_is_streamed(start):
    """The first piece arrives before the last; no test checks the speed itself."""
    began = time.monotonic()
    process = start(
        [*COMMAND, "generate", "Once", "--backend", "numpy", "-n", "200"], stdout=subprocess.PIPE
    )
    os.read(process.stdout.fileno(), 1)
    first = time.monotonic() - began
    process.communicate()
    assert first < time.monotonic() - began


# ---- score and perplexity ----


def test_score_prints_one_line_per_text(tales, tmp_path, capsys):
    texts = ["Once upon a time", "The old king said <|endoftext|>", "é"]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts) + "\n")
    assert main(["score", str(tmp_path / "texts.txt"), "--lines"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for text, line, score in zip(texts, lines, tales.score(texts), strict=True):
        assert line["ids"] == score.ids.tolist() == tales.tokenizer.encode(text, special=False)
        assert "".join(line["tokens"]) == text or text == "é"
        assert line["logprobs"] == [None, *score.logprobs[1:].tolist()]
        assert line["ranks"] == score.ranks.tolist()
        assert line["total"] == score.total


def test_a_file_is_scored_as_one_text(tales, tmp_path, capsys):
    text = "Once upon a time\n\nthere was a king.\n" * 60  # longer than the context
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert main(["perplexity", str(tmp_path / "book.txt"), "--stride", "100", "--bos"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    score = tales.score(text, stride=100, bos=True)
    assert line["perplexity"] == score.perplexity
    assert line["scored"] == line["tokens"] == len(score.ids) > 512
    bits = -score.total / math.log(2) / len(text.encode())  # with bos every token is scored
    assert line["bits_per_byte"] == pytest.approx(bits, rel=1e-12)


def test_bits_per_byte_count_only_scored_bytes(tales, tmp_path, capsys):
    (tmp_path / "text").write_text("One two")
    assert main(["perplexity", str(tmp_path / "text")]) == 0
    line = json.loads(capsys.readouterr().out)
    score = tales.score("One two")
    n_first = len(tales.tokenizer.decode(score.ids[:1]))
    bits = -score.total / math.log(2) / (len("One two") - n_first)
    assert line["bits_per_byte"] == pytest.approx(bits, rel=1e-12)


def test_json_lines_are_texts_ids_or_objects(tales, tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    ids = tales.tokenizer.encode("The fox")
    path.write_text(f'"The fox"\n\n{ids}\n{{"text": "The fox", "id": 7}}\n{{"ids": {ids}}}\n[]\n')
    assert main(["perplexity", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["perplexity"] for line in lines] == [tales.perplexity("The fox")] * 4 + [None]
    assert lines[4] == {
        "tokens": 0, "scored": 0, "total": 0.0, "perplexity": None, "bits_per_byte": None,
    }  # fmt: skip


def test_standard_input_is_scored_line_by_line(tales):
    done = run("score", "-", "--jsonl", stdin=b'"The fox"\n"The old king"\n')
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is not JSON"),
        (b'{"name": 1}', "line 2: expected an object with"),
        (b'{"name": 1}', "found {'name': 1}; name the key of the texts with the option column"),
        (b'{"text": "a", "ids": [1]}', "line 2: expected an object"),
        (b"[1.5]", "line 2: expected a text or a list of ids"),
        (b"[true]", "line 2: expected a text or a list of ids"),
        (b"5", "line 2: expected a text or a list of ids"),
        (b"[4096]", "text 1: token 0 is 4096"),
        (b'"\xff"', "line 2 is not UTF-8 at byte 11 of the input: found 0xff"),
    ],
)
def test_an_invalid_line_is_reported_after_the_results_before_it(tmp_path, capsys, line, message):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'"The fox"\n' + line + b'\n"The king"\n')
    assert main(["score", str(path)]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_score_prints_top_logprobs(tales, tmp_path, capsys):
    (tmp_path / "text").write_text("Once upon a time")
    assert main(["score", str(tmp_path / "text"), "--top-logprobs", "3"]) == 0
    line = json.loads(capsys.readouterr().out)
    score = tales.score("Once upon a time", top_logprobs=3)
    assert line["top_ids"] == [[], *score.top_ids[1:].tolist()]
    assert line["top_logprobs"] == [[], *score.top_logprobs[1:].tolist()]
    assert line["top_tokens"][3] == [tales.tokenizer.decode([id]) for id in score.top_ids[3]]
    assert main(["score", str(tmp_path / "text"), "--top-logprobs", "129"]) == 2
    assert "top_logprobs is 129" in capsys.readouterr().err


def test_score_shows_a_text_in_colours(tales, tmp_path, capsys, monkeypatch):
    text = "Once upon a time 🙂 there was a laptop.\n" * 40  # longer than the context
    (tmp_path / "text").write_text(text)
    score = tales.score(text)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert main(["score", "--color", str(tmp_path / "text")]) == 0
    shown = capsys.readouterr().out
    assert shown == terminal_text(score, tales.tokenizer, color=False) + "\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["score", "--color", str(tmp_path / "text")]) == 0
    shown = capsys.readouterr().out
    assert shown == terminal_text(score, tales.tokenizer) + "\n"
    assert f"perplexity {score.perplexity:,.4g}" in shown


def test_score_in_a_terminal_is_coloured_and_wrapped(tales, tmp_path, terminal):
    ours, theirs = terminal
    (tmp_path / "text").write_text("Once upon a time there was a king who had a laptop.")
    environment = {n: v for n, v in os.environ.items() if n not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [*COMMAND, "score", "--color", str(tmp_path / "text")], stdout=theirs, check=False,
        env={**environment, "TERM": "xterm", "COLUMNS": "20"},
    )  # fmt: skip
    shown = os.read(ours, 65536).decode().replace("\r\n", "\n")
    assert done.returncode == 0
    score = tales.score((tmp_path / "text").read_text())
    assert shown == terminal_text(score, tales.tokenizer, width=20) + "\n"
    assert "\033[" in shown


def test_score_writes_a_page(tales, tmp_path, capsys):
    texts = ["The fox", "The old <b>king</b>"]
    source, page = tmp_path / "a & b.txt", tmp_path / "page.html"
    source.write_text("\n".join(texts))
    arguments = ["score", str(source), "--lines", "--html", str(page), "--top-logprobs", "2"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    scores = tales.score(texts, top_logprobs=2)
    expected = "".join(html_page(scores, tales.tokenizer, title="a & b.txt", model="tales"))
    assert page.read_text() == expected
    assert main([*arguments, "--color"]) == 0
    shown = [terminal_text(score, tales.tokenizer, color=False) for score in scores]
    assert capsys.readouterr().out == "\n\n".join(shown) + "\n"
    assert page.read_text() == expected


def test_a_failed_page_leaves_the_old_one(tmp_path, capsys):
    source, page = tmp_path / "texts.jsonl", tmp_path / "page.html"
    source.write_text('"The fox"\n5\n')
    page.write_text("old")
    assert main(["score", str(source), "--html", str(page)]) == 2
    assert "line 2: expected a text" in capsys.readouterr().err
    assert page.read_text() == "old"
    source.write_text('"The fox"\n')
    for path, message in (
        (tmp_path, "expected a file"),
        (tmp_path / "no" / "page", f"{tmp_path / 'no' / 'page'}: No such file"),
    ):
        assert main(["score", str(source), "--html", str(path)]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert main(["score", str(source), "--html", ""]) == 2
    assert sorted(os.listdir(tmp_path)) == ["page.html", "texts.jsonl"]


def test_ids_of_a_model_without_a_tokenizer_are_shown_as_numbers(tmp_path, capsys):
    (tmp_path / "ids.jsonl").write_text("[2, 0, 1, 0, 2, 1, 0, 0, 1]\n")
    model = str(FIXTURES / "sort-nano")
    assert main(["score", str(tmp_path / "ids.jsonl"), "--model", model, "--color"]) == 0
    assert capsys.readouterr().out.startswith("[2][0][1][0][2][1][0][0][1]\n")


def test_generate_passes_other_options(tales, capsys):
    options = ["--top-p", "0.9", "--min-p", "0.02", "--repetition-penalty", "1.2", "--seed", "3"]
    assert main(["generate", "The old king", *options, "-n", "30", "--stop", "."]) == 0
    text = tales.generate(
        "The old king", top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=3, max_new_tokens=30,
        stop_strings=["."],
    )  # fmt: skip
    assert capsys.readouterr().out == text + "\n"
    assert main(["generate", "The", "-n", "600", "--slide", "--min-new-tokens", "600"]) == 0
    slid = tales.generate("The", max_new_tokens=600, overflow="slide", min_new_tokens=600)
    assert capsys.readouterr().out == slid + "\n"
    assert main(["generate", "The", "--top-p", "2"]) == 2
    assert "top_p is 2.0" in capsys.readouterr().err
