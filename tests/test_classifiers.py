"""Classifiers: transformers' logits for each text alone, labels, and what is written or refused."""

from __future__ import annotations

import base64
import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import FIXTURES, assert_logits_close, load, needs_engine

from gpt2c import GPT2
from gpt2c.cli.main import main
from gpt2c.errors import CheckpointError, ConfigError, ContextError, OptionError

CLASSIFIERS = FIXTURES / "classifiers"
ADAPTERS = FIXTURES / "adapters"
EXPECTED = json.loads((CLASSIFIERS / "expected.json").read_text())
TEXTS = EXPECTED["texts"]


def expected_logits(name: str) -> list[np.ndarray]:
    return [np.frombuffer(base64.b64decode(text), "<f4") for text in EXPECTED["logits"][name]]


@pytest.mark.parametrize("name", EXPECTED["logits"])
def test_logits_are_transformers_for_each_text_alone(name: str, backend: str) -> None:
    with load(CLASSIFIERS / name, backend) as model:
        together = model.classify(TEXTS)
        alone = [model.classify(text) for text in TEXTS]
        lazily = list(model.classify(iter(TEXTS)))
    theirs = np.concatenate([logits.ravel() for logits in expected_logits(name)])
    assert_logits_close(np.concatenate([found.logits.ravel() for found in together]), theirs)
    for found, single, lazy in zip(together, alone, lazily, strict=True):
        np.testing.assert_array_equal(found.logits, lazy.logits)
        if backend != "numpy":  # NumPy promises no bits
            np.testing.assert_array_equal(found.logits, single.logits)


def test_probabilities_and_labels_of_texts() -> None:
    """They are the formulas of transformers' pipeline."""
    with load(CLASSIFIERS / "padding") as model:
        found = model.classify(TEXTS[0])
        assert model.labels == found.labels == ("bad", "so, so", "good")
    powers = np.exp(found.logits.astype(np.float64))
    np.testing.assert_allclose(found.probabilities, powers / powers.sum(), rtol=1e-12)
    assert found.chosen == (found.label,) == (found.labels[int(found.logits.argmax())],)

    with load(CLASSIFIERS / "multi_label") as model:
        for found in model.classify(TEXTS):
            sigmoid = 1 / (1 + np.exp(-found.logits.astype(np.float64)))
            np.testing.assert_allclose(found.probabilities, sigmoid, rtol=1e-12)
            above = [label for label, x in zip(found.labels, found.logits, strict=True) if x >= 0]
            assert list(found.chosen) == above
    with load(CLASSIFIERS / "one_label") as model:
        found = model.classify(TEXTS[0])
        assert found.labels == ("LABEL_0",)
        assert found.probabilities[0] == pytest.approx(1 / (1 + np.exp(-float(found.logits[0]))))
    with load(CLASSIFIERS / "regression") as model:
        found = model.classify(TEXTS[0])
        assert (found.probabilities, found.label, found.chosen) == (None, None, ())


def test_each_token_has_a_label() -> None:
    with load(CLASSIFIERS / "tokens") as model:
        assert model.classifies_tokens
        found = model.classify(TEXTS[0])
    assert found.ids.tolist() == TEXTS[0]
    assert found.logits.shape == found.probabilities.shape == (5, 3)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-12)
    assert found.chosen == tuple(found.labels[best] for best in found.logits.argmax(axis=1))


def test_a_longer_text_is_an_error_or_cut() -> None:
    with load(CLASSIFIERS / "plain") as model:
        text = [*TEXTS[5], 4, 4]
        with pytest.raises(ContextError, match=r"text 1 has 14 tokens.*truncation=True"):
            model.classify([TEXTS[0], text])
        cut = model.classify(text, truncation=True)
        np.testing.assert_array_equal(cut.logits, model.classify(TEXTS[5]).logits)
        with pytest.raises(OptionError, match="text 0 is empty"):
            model.classify([[]])
        assert model.classify([]) == []


@needs_engine
@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
@pytest.mark.parametrize("name", ["padding", "tokens"])
def test_a_written_classifier_is_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    command = ["convert"] if dtype == "float32" else ["quantize", "--dtype", dtype]
    assert main([*command, str(CLASSIFIERS / name), str(tmp_path / "out")]) == 0
    with (
        GPT2.from_pretrained(CLASSIFIERS / name, dtype=dtype) as model,
        GPT2.from_pretrained(tmp_path / "out") as written,
    ):
        assert written.fingerprint == model.fingerprint
        assert written.labels == model.labels
        for a, b in zip(model.classify(TEXTS), written.classify(TEXTS), strict=True):
            np.testing.assert_array_equal(a.logits, b.logits)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((CLASSIFIERS / name / "config.json").read_text())
    for key in ("architectures", "id2label"):
        assert config[key] == original[key]


def test_the_fingerprint_covers_the_head(tmp_path: Path) -> None:
    changed = edited(tmp_path, lambda t: t.update({"score.weight": t["score.weight"] * 2}))
    with load(CLASSIFIERS / "plain") as model, load(changed) as other:
        assert model.fingerprint != other.fingerprint


def edited(tmp_path: Path, change: Any = None, **settings: Any) -> Path:
    folder = tmp_path / "edited"
    shutil.copytree(CLASSIFIERS / "plain", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    if change is not None:
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"id2label": {"0": "a"}}, CheckpointError, "a head of 2 labels, and id2label"),
        ({"id2label": {"0": "a", "2": "b"}}, CheckpointError, "one for each index from 0"),
        ({"id2label": ["a", "b"]}, ConfigError, "id2label is"),
        ({"id2label": {"0": 1, "1": 2}}, ConfigError, "id2label is"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        load(edited(tmp_path, **settings))


def test_a_head_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda t: t.update({"score.weight": np.full((2, 8), np.inf, "f4")}))
    with pytest.raises(CheckpointError, match=r"'score.weight': found inf"):
        load(folder)


def test_a_head_of_another_shape_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = edited(tmp_path, lambda t: t.update({"score.weight": np.zeros((2, 9), "f4")}))
    with caplog.at_level(logging.WARNING, "gpt2c"), load(folder) as model:
        assert model.labels == ()
    assert "left out: 'score.weight'" in caplog.text


def test_models_without_a_head_say_so(tales: GPT2) -> None:
    with pytest.raises(OptionError, match=r"no head of a classifier.*choose"):
        tales.classify("a")


def test_generating_with_a_classifier_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gpt2c"), load(CLASSIFIERS / "plain") as model:
        assert not caplog.text
        model.generate([1], max_new_tokens=1)
        model.generate([1], max_new_tokens=1)
    assert caplog.text.count("this model is a classifier") == 1


def test_embeddings_of_a_classifier_are_those_of_its_body() -> None:
    with load(CLASSIFIERS / "plain") as model:
        hidden = model.embed(TEXTS[0], pooling="last").astype(np.float64)
        weight = safetensors.numpy.load_file(CLASSIFIERS / "plain" / "model.safetensors")
        found = model.classify(TEXTS[0]).logits
    # The logits are rounded to float32 once.
    np.testing.assert_allclose(found, weight["score.weight"].astype(float) @ hidden, rtol=1e-6)


def test_an_adapter_with_a_head_makes_a_classifier(backend: str) -> None:
    """The logits are those of peft's merge of its adapter for SEQ_CLS."""
    values = json.loads((ADAPTERS / "expected.json").read_text())
    case = values["cases"]["classifier"]
    theirs = np.frombuffer(base64.b64decode(case["logits"]), "<f4")
    with load(ADAPTERS / "base", backend, adapter=ADAPTERS / "classifier") as model:
        assert model.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
        assert_logits_close(model.classify(values["ids"]).logits, theirs)


def test_the_command_adds_columns(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CLASSIFIERS / "padding", folder)
    tokenizer = {"type": "BPE", "vocab": {chr(97 + i): i for i in range(20)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": tokenizer}))
    rows = "".join(json.dumps({"review": ids, "stars": 3}) + "\n" for ids in TEXTS)
    (tmp_path / "in.jsonl").write_text(rows)
    arguments = ["classify", str(tmp_path / "in.jsonl"), "--column", "review"]
    arguments += ["--model", str(folder), "--output", str(tmp_path / "out.csv")]
    assert main(arguments) == 0
    with (tmp_path / "out.csv").open() as file:
        found = list(csv.DictReader(file))
    with GPT2.from_pretrained(folder) as model:
        results = model.classify(TEXTS)
    assert [row["label"] for row in found] == [result.label for result in results]
    assert [float(row["logit_so, so"]) for row in found] == pytest.approx(
        [float(result.logits[1]) for result in results], rel=1e-6
    )
    assert len(found) == len(TEXTS)


def test_the_command_has_a_row_for_each_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"ids": TEXTS[0]}) + "\n")
    model = str(CLASSIFIERS / "tokens")
    assert main(["classify", str(tmp_path / "in.jsonl"), "--model", model]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == TEXTS[0]
    assert {row["label"] for row in rows} <= {"bad", "so, so", "good"}
    assert main(["classify", str(tmp_path / "in.jsonl")]) == 2
    assert "no head of a classifier" in capsys.readouterr().err
