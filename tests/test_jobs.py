"""Jobs: what they write, what they refuse, and that restarts change no byte."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import on_backend

import gpt2c
from gpt2c.checks.untrusted import parse_json
from gpt2c.cli.main import main
from gpt2c.errors import OptionError, TableError
from gpt2c.files import locked_file
from gpt2c.jobs import Job, JobRow, ModelSpec, Progress, Task, Worker, row_seed
from gpt2c.jobs.estimate import estimate
from gpt2c.jobs.inputs import ReadingOptions
from gpt2c.jobs.job import OutputOptions
from gpt2c.jobs.manifest import model_facts
from gpt2c.jobs.template import Template
from gpt2c.tables import open_table
from gpt2c.tables.source import Limits

pytestmark = pytest.mark.usefixtures("no_preferences")

TEXTS = ["Once upon a time " * (n % 4 + 1) + f"there were {n} kings." for n in range(23)]
ROWS: list[dict[str, Any]] = [
    {"name": f"r{n}", "text": text, "number": n} for n, text in enumerate(TEXTS)
]


@pytest.fixture
def lines(tmp_path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


def run(model, task: Task, inputs: list[str], output: object, **options: Any) -> Progress:
    writing = {k: options.pop(k) for k in ("format", "compression", "shard_rows", "max_errors")
               if k in options}  # fmt: skip
    reading = ReadingOptions(task.column, **options)
    job = Job(task, inputs, str(output), reading, OutputOptions(**writing))
    worker = Worker(task, model)
    return job.run(model_facts(model, task, None), worker.columns, partial(map, worker.run))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def written(folder: Path, format: str = "jsonl") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("shard-*")):
        with open_table(path, format=format) as table:
            rows += [dict(row) for row in table]
    return rows


def errors(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("errors-*"))
    return [parse_json(line) for path in paths for line in path.read_bytes().splitlines()]


def manifest(folder: Path) -> dict[str, Any]:
    return dict(parse_json((folder / "manifest.json").read_bytes()))


# ---- results ----


def test_generate_gives_what_complete_gives_with_the_rows_seeds(tales, lines, tmp_path):
    options = {"max_new_tokens": 6, "temperature": 1.0}
    task = Task("generate", options=options, seed=3)
    done = run(tales, task, [lines], tmp_path / "out", shard_rows=5)
    seeds = [row_seed(3, n) for n in range(len(ROWS))]
    expected = tales.complete(TEXTS, seed=seeds, **options)
    rows = written(tmp_path / "out")
    assert [row["generated_text"] for row in rows] == [one.text for one in expected]
    assert [row["finish_reason"] for row in rows] == [one.finish_reason for one in expected]
    assert [row["seed"] for row in rows] == seeds
    assert [{k: row[k] for k in ROWS[0]} for row in rows] == ROWS
    assert [row["row"] for row in rows] == list(range(1, len(ROWS) + 1))
    assert done.new_tokens == sum(len(one.ids) for one in expected)
    assert len(list((tmp_path / "out").glob("shard-*"))) == 5
    assert len(set(seeds)) == len(seeds)


def test_score_surprisal_and_embed_give_what_the_calls_give(tales, lines, tmp_path):
    run(tales, Task("score", options={"with_tokens": True}), [lines], tmp_path / "s")
    for row, score in zip(written(tmp_path / "s"), tales.score(TEXTS), strict=True):
        assert (row["tokens"], row["total"]) == (len(score.ids), score.total)
        assert row["ids"] == score.ids.tolist()
        assert row["logprobs"][1:] == [float(x) for x in score.logprobs[1:]]
    run(tales, Task("surprisal", options={"unit": "nats"}), [lines], tmp_path / "w", shard_rows=4)
    rows, found = written(tmp_path / "w"), gpt2c.surprisal(tales, TEXTS, unit="nats").rows()
    assert [row["word"] for row in rows] == [row["word"] for row in found]
    assert [row["surprisal"] for row in rows] == [row["surprisal"] for row in found]
    assert [row["row"] for row in rows] == [row["text_id"] for row in found]
    run(tales, Task("surprisal", options={"whole": True}), [lines], tmp_path / "t")
    spans = [[(0, len(text))] for text in TEXTS]
    whole = gpt2c.surprisal(tales, TEXTS, spans=spans).rows()
    assert [r["surprisal"] for r in written(tmp_path / "t")] == [r["surprisal"] for r in whole]
    run(tales, Task("embed"), [lines], tmp_path / "e")
    vectors = np.array([row["embedding"] for row in written(tmp_path / "e")], dtype=np.float32)
    assert np.array_equal(vectors, tales.embed(TEXTS))


def test_every_backend_runs_jobs(backend, lines, tmp_path):
    model = on_backend(backend, lambda name: gpt2c.GPT2.from_pretrained(backend=name))
    options = {"max_new_tokens": 2}
    run(model, Task("generate", options=options), [lines], tmp_path / "out")
    texts = [row["generated_text"] for row in written(tmp_path / "out")]
    assert texts == model.generate(TEXTS, max_new_tokens=2)


def test_ids_are_prompts_and_texts_too(tales, tmp_path):
    ids = tales.tokenizer.encode("The king")
    (tmp_path / "in.jsonl").write_text(json.dumps(ids) + '\n"The fox"\n')
    options = {"max_new_tokens": 3, "with_ids": True}
    run(tales, Task("generate", options=options), [str(tmp_path / "in.jsonl")], tmp_path / "out")
    first, second = written(tmp_path / "out")
    assert first["text"] == ids
    assert first["generated_ids"] == tales.generate(ids, max_new_tokens=3)
    assert first["generated_text"] == tales.generate("The king", max_new_tokens=3)
    assert second["generated_text"] == tales.generate("The fox", max_new_tokens=3)


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet"])
def test_formats_hold_the_same_rows(tales, lines, tmp_path, format):
    run(tales, Task("score"), [lines], tmp_path / "out", format=format, shard_rows=9)
    rows = written(tmp_path / "out", format)
    expected = [score.total for score in tales.score(TEXTS)]
    assert [float(row["total"]) for row in rows] == expected
    assert [int(row["number"]) for row in rows] == list(range(len(ROWS)))
    # The results are a job's input in turn.
    inputs = [str(tmp_path / "out" / f"shard-*.{format}")]
    again = Task("score", keep=("name",))
    run(tales, again, inputs, tmp_path / "again", format="jsonl")
    assert [row["total"] for row in written(tmp_path / "again")] == expected
    assert list(written(tmp_path / "again")[0])[:2] == ["row", "name"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_results_are_inputs(tales, lines, tmp_path, compression):
    task = Task("score", keep=("text",))
    for name in ("one", "two"):
        run(tales, task, [lines], tmp_path / name, compression=compression, shard_rows=10)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    run(tales, Task("score", keep=()), [str(tmp_path / "one" / "shard-*")], tmp_path / "again")
    totals = [row["total"] for row in written(tmp_path / "one")]
    assert [row["total"] for row in written(tmp_path / "again")] == totals


@pytest.mark.parametrize("overflow", ["slide", "crop"])
def test_a_prompt_that_an_overflow_cuts_is_no_bad_row(tales, overflow):
    long = [5] * (tales.config.n_positions + 9)
    options = {"max_new_tokens": 2, "overflow": overflow}
    worker = Worker(Task("generate", column="ids", options={**options, "with_ids": True}), tales)
    (done,) = worker.run([JobRow(0, "row 1", {"ids": long})])
    assert done.error is None
    assert done.rows[0]["generated_ids"] == tales.generate(long, **options)
    assert done.rows[0]["prompt_tokens"] == len(long)
    plain = Worker(Task("generate", column="ids"), tales).run([JobRow(0, "row 1", {"ids": long})])
    assert "the prompt has 521 tokens" in str(plain[0].error)


def test_results_do_not_depend_on_the_company(tales):
    task = Task("generate", options={"max_new_tokens": 5, "temperature": 1.0})
    worker = Worker(task, tales)
    rows = [JobRow(n, f"row {n}", dict(row)) for n, row in enumerate(ROWS)]
    together = worker.run(rows)
    order = random.Random(0).sample(rows, len(rows))
    apart = [result for row in order for result in worker.run([row])]
    assert sorted(apart, key=lambda r: r.number) == together
    assert pickle.loads(pickle.dumps((task, ModelSpec("a"), rows, together)))[3] == together


# ---- bad rows ----

BAD = [
    (b"{broken", "is not JSON"),
    (b'{"name": "x"}', "found no column 'text'"),
    (b'{"text": 5}', "expected a text or a list of ids, found 5"),
    (b'{"text": [1, 99999999]}', "99999999"),
    (b'{"text": "a\xff"}', "is not UTF-8"),
    (b"7", "expected an object, a text or a list of ids, found 7"),
    (b'{"text": "a", "seed": 1}', "has a column 'seed' already"),
    (json.dumps({"text": "word " * 3000}).encode(), "more than the context's"),
]


def test_bad_rows_are_listed_and_the_others_done(tales, tmp_path):
    good = [json.dumps({"text": text}).encode() for text in TEXTS[: len(BAD)]]
    raw = b"".join(one + b"\n" + bad + b"\n" for one, (bad, _) in zip(good, BAD, strict=True))
    (tmp_path / "in.jsonl").write_bytes(raw)
    task = Task("generate", options={"max_new_tokens": 2})
    done = run(tales, task, [str(tmp_path / "in.jsonl")], tmp_path / "out", shard_rows=6)
    assert (done.rows, done.bad_rows) == (2 * len(BAD), len(BAD))
    assert [row["row"] for row in written(tmp_path / "out")] == list(range(1, 2 * len(BAD), 2))
    found = errors(tmp_path / "out")
    for number, (entry, (_, reason)) in enumerate(zip(found, BAD, strict=True)):
        assert entry["row"] == 2 * number + 2
        assert entry["place"] == f"{tmp_path / 'in.jsonl'}, line {2 * number + 2}"
        assert reason in entry["error"]
    assert manifest(tmp_path / "out")["errors"] == len(BAD)


def test_bad_rows_of_csv(tales, tmp_path):
    raw = 'name,text\na,"The king"\nb\nc,"a"b,\nd,nul\0\ne,The fox\nf,"open\n'
    (tmp_path / "in.csv").write_text(raw)
    task = Task("score", id_column="name")
    run(tales, task, [str(tmp_path / "in.csv")], tmp_path / "out", format="jsonl")
    assert [row["name"] for row in written(tmp_path / "out")] == ["a", "e"]
    reasons = ["found 1 cells, expected 2", "after a closing quote", "NUL", "a quote that is not"]
    for entry, reason in zip(errors(tmp_path / "out"), reasons, strict=True):
        assert reason in entry["error"]


def test_a_row_that_only_the_call_refuses_is_found(tales, lines, tmp_path):
    with open(lines, "a", encoding="utf-8") as file:
        file.write('{"text": "", "name": "empty"}\n{"text": "The end", "name": "last"}\n')
    task = Task("embed", id_column="name")
    run(tales, task, [lines], tmp_path / "out")
    (entry,) = errors(tmp_path / "out")
    assert (entry["row"], entry["id"]) == (len(ROWS) + 1, "empty")
    rows = written(tmp_path / "out")
    assert [row["name"] for row in rows] == [*(row["name"] for row in ROWS), "last"]
    assert rows[-1]["embedding"] == [float(x) for x in tales.embed("The end")]


def test_max_errors_ends_the_job_which_may_go_on(tales, tmp_path):
    text = "".join("bad\n" if n % 3 == 2 else f'"text {n}"\n' for n in range(30))
    (tmp_path / "in.jsonl").write_text(text)
    inputs, task = [str(tmp_path / "in.jsonl")], Task("score")
    with pytest.raises(TableError, match=r"more than 4 bad rows .*line 15"):
        run(tales, task, inputs, tmp_path / "out", max_errors=4, shard_rows=4)
    assert [entry["row"] for entry in errors(tmp_path / "out")] == [3, 6, 9, 12, 15]
    assert not manifest(tmp_path / "out")["complete"]
    run(tales, task, inputs, tmp_path / "out", shard_rows=4)
    run(tales, task, inputs, tmp_path / "whole", shard_rows=4)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_cells_that_a_table_cannot_hold_are_bad_rows(tales, tmp_path):
    rows = [{"text": "a b", "x": 1}] * 1200 + [{"text": "c d", "x": "one"}, {"text": "e", "y": 2}]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tales, Task("score"), [str(path)], tmp_path / "out", format="parquet")
    wrong, new = errors(tmp_path / "out")
    assert "column 'x' has 'one', expected an integer" in wrong["error"]
    assert "has the column 'y', which the first 1000 rows lack" in new["error"]
    assert len(written(tmp_path / "out", "parquet")) == 1200
    run(tales, Task("score", keep=("text",)), [str(path)], tmp_path / "kept", format="parquet")
    assert len(written(tmp_path / "kept", "parquet")) == 1202


# ---- limits ----


def test_a_long_line_is_a_bad_row_that_takes_no_memory(tales, tmp_path):
    path = tmp_path / "in.txt"
    with open(path, "wb") as file:  # the long line takes no blocks of the disk
        file.write(b"The king\n")
        file.seek(1 << 26, os.SEEK_CUR)
        file.write(b"\nThe fox\n")
    reading = {"limits": Limits(line_bytes=1 << 16)}
    run(tales, Task("score"), [str(path)], tmp_path / "out", **reading)
    assert [row["text"] for row in written(tmp_path / "out")] == ["The king", "The fox"]
    (entry,) = errors(tmp_path / "out")
    assert entry["row"] == 2
    assert "line 2: found a line of more than 65536 bytes" in entry["error"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("content", [b"\0" * 1024, b'"%b"\n' % (b"a" * 1021)])
def test_a_bomb_is_refused(tmp_path, monkeypatch, kind, content):
    monkeypatch.setattr("gpt2c.tables.compressed.FREE_BYTES", 1 << 20)
    piece, n_pieces = content * (1 << 10), 16
    if kind == "gzip":
        import gzip

        path = tmp_path / "bomb.jsonl.gz"
        with gzip.open(path, "wb") as file:
            for _ in range(n_pieces):
                file.write(piece)
    else:
        import zstandard

        path = tmp_path / "bomb.jsonl.zst"
        with open(path, "wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as writer:
            for _ in range(n_pieces):
                writer.write(piece)
    job = Job(Task("score"), [str(path)], str(tmp_path / "out"))
    with pytest.raises(TableError, match=f"bomb.*{kind} data expand more than 200 times"):
        job.run(
            {"name": "", "sha256": "", "dtype": "", "backend": ""}, {"total": float},
            lambda windows: ([] for _ in windows),
        )  # fmt: skip


def test_a_bomb_of_parquet_is_refused(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "bomb.parquet"
    texts = pa.table({"text": [chr(97 + n) * 100_000 for n in range(20)]})
    pq.write_table(texts, path, compression="zstd", use_dictionary=False)
    job = Job(Task("score"), [str(path)], str(tmp_path / "out"))
    facts = {"name": "", "sha256": "", "dtype": "", "backend": ""}
    monkeypatch.setattr("gpt2c.tables.parquet.FREE_BYTES", 1 << 20)
    with pytest.raises(TableError, match=r"bomb.parquet: Parquet data expand more than 200 times"):
        job.run(facts, {"total": float}, lambda windows: ([] for _ in windows))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_file_ends_the_job(tmp_path, suffix):
    rng = np.random.default_rng(0)
    text = "".join(
        json.dumps(" ".join(map(str, rng.integers(0, 99, 9)))) + "\n" for _ in range(999)
    )
    whole = tmp_path / f"in.jsonl{suffix}"
    if suffix == ".gz":
        import gzip

        whole.write_bytes(gzip.compress(text.encode()))
    else:
        import zstandard

        compressor = zstandard.ZstdCompressor(write_checksum=True)
        whole.write_bytes(compressor.compress(text.encode()))
    raw = whole.read_bytes()
    facts = {"name": "", "sha256": "", "dtype": "", "backend": ""}
    for name, part in {"cut": raw[:-40], "wrong": raw[:99] + b"\x55" * 60 + raw[159:]}.items():
        whole.write_bytes(part)
        job = Job(Task("score"), [str(whole)], str(tmp_path / name))
        with pytest.raises(TableError, match=r"data (end before their end|are damaged)"):
            job.run(facts, {"total": float}, lambda windows: ([] for _ in windows))


def test_too_many_rows(tales, lines, tmp_path):
    with pytest.raises(TableError, match=r"rows.jsonl: the inputs have more than 10 rows"):
        run(tales, Task("score"), [lines], tmp_path / "out", max_rows=10)


# ---- inputs, templates and refusals ----


def test_names_and_patterns(tmp_path):
    for name in ("b-2.jsonl", "b-10.jsonl", "a.jsonl"):
        (tmp_path / name).write_text('"x"\n')
    names = Job(Task("score"), [str(tmp_path / "b-*"), str(tmp_path / "a.jsonl")], "out").names
    assert [Path(name).name for name in names] == ["b-10.jsonl", "b-2.jsonl", "a.jsonl"]
    for given, message in {
        "nothing-*": "no file has a name like",
        "": "is a folder",
        "*.jsonl|a.jsonl": "named twice",
    }.items():
        with pytest.raises(OptionError, match=message):
            Job(Task("score"), [str(tmp_path / part) for part in given.split("|")], "out")
    with pytest.raises(OptionError, match="cannot read standard input"):
        Job(Task("score"), ["-"], "out")
    with pytest.raises(FileNotFoundError):
        Job(Task("score"), [str(tmp_path / "missing.jsonl")], "out")


def test_templates(tales, tmp_path):
    template = Template("{{Q}}: {q}\n{a.b}{n}")
    assert template.columns == ("q", "a.b", "n")
    assert template.fill({"q": "Why?", "a.b": [1, "x"], "n": 1.5}) == '{Q}: Why?\n[1, "x"]1.5'
    with pytest.raises(TableError, match=r"found no column 'a\.b', or a null"):
        template.fill({"q": "x", "a.b": None})
    # A name is a column's name, so nothing of a cell can be named.
    with pytest.raises(TableError, match=r"q\.__class__"):
        Template("{q.__class__}").fill({"q": "x"})
    for wrong in ("{q!r}", "{q:>999}", "{}", "{q", "no name"):
        with pytest.raises(OptionError, match="template is"):
            Template(wrong)
    (tmp_path / "in.csv").write_text("who,what\nking,ran\n")
    task = Task("generate", options={"max_new_tokens": 2}, template="The {who} {what}")
    run(tales, task, [str(tmp_path / "in.csv")], tmp_path / "out", format="jsonl")
    (row,) = written(tmp_path / "out")
    assert row["generated_text"] == tales.generate("The king ran", max_new_tokens=2)
    wrong_column = Task("generate", template="{whom}")
    with pytest.raises(TableError, match="found no column 'whom'"):
        run(tales, wrong_column, [str(tmp_path / "in.csv")], tmp_path / "no")


def test_a_changed_job_is_refused_by_name(tales, lines, tmp_path):
    options = {"max_new_tokens": 2, "temperature": 0.5}
    run(tales, Task("generate", options=options), [lines], tmp_path / "out")
    before = files_of(tmp_path / "out")

    def refused(message: str, task: Task, *inputs: str, **more: Any) -> None:
        with pytest.raises(OptionError, match=message):
            run(tales, task, [lines, *inputs], tmp_path / "out", **more)

    changed = {**options, "temperature": 0.6}
    refused(r"task.options.temperature was 0.5, and is 0.6", Task("generate", options=changed))
    refused("task.seed was 0, and is 1", Task("generate", options=options, seed=1))
    refused("task.kind was 'generate', and is 'score'", Task("score"))
    refused("output.shard_rows", Task("generate", options=options), shard_rows=7)
    job = Job(Task("generate", options=options), [lines], str(tmp_path / "out"))
    facts = {**model_facts(tales, job.task, None), "sha256": "0" * 64}
    with pytest.raises(OptionError, match=r"model\.sha256 was"):
        job.run(facts, Worker(job.task, tales).columns, partial(map, Worker(job.task, tales).run))
    other = tmp_path / "other.jsonl"
    shutil.copy(lines, other)
    refused("other.jsonl was not given", Task("generate", options=options), str(other))
    status = os.stat(lines)
    raw = Path(lines).read_bytes()
    os.utime(lines, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    run(tales, Task("generate", options=options), [lines], tmp_path / "out")  # the same bytes
    Path(lines).write_bytes(raw.replace(b"22 kings", b"21 kings"))
    refused(r"rows.jsonl.sha256 was", Task("generate", options=options))
    assert files_of(tmp_path / "out") == before


def test_an_input_that_changes_meanwhile_ends_the_job(tales, lines, tmp_path):
    task = Task("score")
    worker = Worker(task, tales)

    def changes_input(windows):
        for window in windows:
            os.utime(lines, ns=(0, 0))
            yield worker.run(window)

    job = Job(task, [lines], str(tmp_path / "out"))
    with pytest.raises(TableError, match="was changed while the job read it"):
        job.run(model_facts(tales, task, None), worker.columns, changes_input)
    assert not manifest(tmp_path / "out")["complete"]


def test_a_folder_of_other_files_is_refused(tales, lines, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"has files, such as 'thesis\.txt', and no manifest"):
        run(tales, Task("score"), [lines], tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_wrong_options_are_refused_before_anything_is_written(tales, lines, tmp_path):
    for task in (
        Task("generate", options={"top_k": -1}),
        Task("generate", options={"max_time": 1.0}),
        Task("score", options={"stride": 0}),
        Task("embed", options={"layer": 99}),
        Task("surprisal", options={"unit": "bananas"}),
        Task("score", context_column="name"),
    ):
        with pytest.raises(gpt2c.Error):
            run(tales, task, [lines], tmp_path / "out")
    with pytest.raises(OptionError):
        Task("summarise")
    assert not (tmp_path / "out").exists()


def test_two_jobs_cannot_mix(tales, lines, tmp_path):
    (tmp_path / "out").mkdir()
    with locked_file(tmp_path / "out" / ".lock") as is_free:
        assert is_free
        with pytest.raises(OptionError, match="another job is writing to"):
            run(tales, Task("score"), [lines], tmp_path / "out")
    run(tales, Task("score"), [lines], tmp_path / "out")


# ---- restarts ----


class StopError(Exception):
    pass


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_job_that_stops_anywhere_goes_on(tales, lines, tmp_path, format):
    task = Task("generate", options={"max_new_tokens": 2, "temperature": 1.0})
    worker = Worker(task, tales)
    facts = model_facts(tales, task, None)
    job = Job(task, [lines], str(tmp_path / "out"),
              writing=OutputOptions(format=format, shard_rows=4))  # fmt: skip
    n_windows = math.ceil(len(ROWS) / 4)
    done: list[int] = []

    def stop_after(n: int, windows):
        for index, window in enumerate(windows):
            if index == n:
                raise StopError
            done.extend(row.number for row in window)
            yield worker.run(window)

    for _ in range(n_windows - 1):
        with pytest.raises(StopError):
            job.run(facts, worker.columns, partial(stop_after, 1))
    job.run(facts, worker.columns, partial(stop_after, 99))
    assert done == list(range(len(ROWS)))  # nothing is done twice
    run(tales, task, [lines], tmp_path / "whole", format=format, shard_rows=4)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def command(lines: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "gpt2c", "batch", "generate", lines, "--column", "text",
            "--output", str(folder), "--shard-rows", "4", "-n", "3", "--seed", "5"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_job_goes_on(lines, tmp_path, start):
    """tools/soak/kills.py is the long form."""
    assert main(command(lines, tmp_path / "whole")[3:]) == 0
    chance, killed = random.Random(1), 0
    while True:
        process = start(command(lines, tmp_path / "out"), stderr=subprocess.DEVNULL)
        n_shards = chance.randint(0, 2)
        before = len(list((tmp_path / "out").glob("shard-*")))
        while process.poll() is None:
            if len(list((tmp_path / "out").glob("shard-*"))) >= before + n_shards:
                process.kill()
                break
        if process.wait() == 0:
            break
        killed += 1
    assert killed
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit of file sizes")
def test_a_full_disk_is_an_error_after_which_the_job_goes_on(lines, tmp_path):
    assert main(command(lines, tmp_path / "whole")[3:]) == 0
    size = max(path.stat().st_size for path in (tmp_path / "whole").glob("shard-*"))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 1}, -1))"
    run_main = "import sys; from gpt2c.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{limit}; {run_main}", *command(lines, tmp_path / "out")[3:]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.search(r"out/(manifest|shard|\.progress)\S*: File too large", done.stderr)
    assert main(command(lines, tmp_path / "out")[3:]) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


# ---- the order of writes ----


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_each_file_is_written_synced_renamed_and_its_folder_synced(lines, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    trace = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", "trace=write,fsync,rename,unlink"]
    if subprocess.run([*trace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("strace cannot trace here")
    subprocess.run([*trace, *command(lines, out)], check=True, capture_output=True)
    calls = re.findall(r"\d+\s+(\w+)\((.*)\)\s+= \d", log.read_text())
    renamed: list[str] = []
    for index, (name, arguments) in enumerate(calls):
        if name != "rename":
            continue
        source, target = re.findall(r'"([^"]*)"', arguments)
        of_source = [call for call, given in calls[:index] if f"<{source}>" in given]
        last = max(i for i, (_, given) in enumerate(calls[:index]) if f"<{source}>" in given)
        assert calls[last][0] == "fsync", of_source  # after all of its writes
        after = [given for call, given in calls[index:] if call == "fsync"]
        assert f"<{Path(target).parent}>" in after[0]  # before any other file
        renamed.append(str(Path(target).relative_to(out)))
    n_shards = math.ceil(len(ROWS) / 4)
    expected = ["manifest.json"]
    for shard in range(n_shards):  # the record says that a shard is whole, so it comes after it
        expected += [f"shard-{shard:06d}.jsonl", f".progress/{shard:06d}.json"]
    assert renamed == [*expected, "manifest.json"]


# ---- URLs ----


def test_urls(tales, lines, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.rm("/", recursive=True)
    memory.pipe_file("/in/a.jsonl", Path(lines).read_bytes())
    task = Task("score")
    inputs, output = ["memory://in/*.jsonl"], "memory://results/one"
    stopping = Job(task, inputs, output, writing=OutputOptions(shard_rows=5))
    worker = Worker(task, tales)
    facts = model_facts(tales, task, None)

    def stops(windows):
        yield worker.run(next(windows))
        raise StopError

    with pytest.raises(StopError):
        stopping.run(facts, worker.columns, stops)
    assert memory.exists("/results/one/.progress/000000.json")
    done = run(tales, task, inputs, output, shard_rows=5)
    assert (done.rows_before, done.rows) == (5, len(ROWS) - 5)
    names = [path.rsplit("/", 1)[1] for path in memory.ls("/results/one", detail=False)]
    assert sorted(names) == ["manifest.json", *(f"shard-{n:06d}.jsonl" for n in range(5))]
    run(tales, task, [f"file://{lines}"], f"file://{tmp_path / 'out'}", shard_rows=5)
    for name in names:
        if name != "manifest.json":  # it names the inputs
            assert memory.cat_file(f"/results/one/{name}") == (tmp_path / "out" / name).read_bytes()
    memory.pipe_file("/in/a.jsonl", Path(lines).read_bytes() + b'"more"\n')
    with pytest.raises(OptionError, match="bytes was"):
        run(tales, task, inputs, output, shard_rows=5)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        run(tales, task, ["memory://in/none.jsonl"], output)
    with pytest.raises(gpt2c.Error):
        run(tales, task, ["nosuchscheme://in/none.jsonl"], output)


# ---- the command ----


def test_the_command(lines, tmp_path, capsys):
    out = tmp_path / "out"
    start = ["batch", "generate", lines, "--output", str(out), "--template", "{name}:\\n{text}"]
    assert main([*start, "-n", "2", "--keep", "name", "--format", "csv"]) == 0
    assert f"{out} is complete: {len(ROWS)} rows" in capsys.readouterr().err
    with open(out / "shard-000000.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["row", "name", "generated_text"]
    with gpt2c.GPT2.from_pretrained() as model:
        expected = model.generate(f"r0:\n{TEXTS[0]}", max_new_tokens=2)
    assert rows[0]["generated_text"] == expected
    assert main([*start, "-n", "3", "--keep", "name", "--format", "csv"]) == 2
    assert "task.options.max_new_tokens was 2, and is 3" in capsys.readouterr().err
    for task, more in {
        "score": ["--bos"],
        "surprisal": ["--whole"],
        "embed": ["--layer", "1"],
    }.items():
        folder = str(tmp_path / task)
        assert main(["batch", task, lines, "--output", folder, *more]) == 0


def test_a_dry_run_counts_and_writes_nothing(tales, lines, tmp_path, capsys):
    with open(lines, "a", encoding="utf-8") as file:
        file.write("bad\n")
    out = tmp_path / "out"
    assert main(["batch", "score", lines, "--output", str(out), "--dry-run"]) == 0
    found = parse_json(capsys.readouterr().out.encode())
    tokens = sum(len(tales.tokenizer.encode(text)) for text in TEXTS)
    assert (found["rows"], found["bad_rows"], found["tokens"]) == (len(ROWS) + 1, 1, tokens)
    assert found["sample_rows"] == len(ROWS)
    # The sample is the whole input, so its time is the estimate.
    assert found["seconds"] == pytest.approx(found["sample_seconds"])
    assert not out.exists()
    task = Task("generate", options={"max_new_tokens": 4})
    part = estimate(Job(task, [lines], str(out)), Worker(task, tales), sample_rows=5)
    assert (part.sample_rows, part.new_tokens) == (5, 4 * len(ROWS))
