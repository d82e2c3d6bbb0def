"""gpt2c bench: its output, counts and plot. No test checks the speed itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import config_of, model_on, needs_engine, random_weights

from gpt2c import OptionError
from gpt2c.cli.bench import speed
from gpt2c.cli.main import main
from gpt2c.config import tensor_shapes


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(speed, "_MIN_REPEAT_SECONDS", 0.001)


def test_the_table_names_every_measurement(capsys):
    assert main(["bench", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tales (embedded)" in lines[0]
    found = [line[:32].strip() for line in lines[2:]]
    # tales has 512 positions, so there is no row "decode at 1000".
    assert found == [
        "prompt of 512", "decode at 16", "decode at 256", "batch of 8", "batch of 32",
        "first token of a fresh process", "peak memory after 128 tokens",
    ]  # fmt: skip


def test_json_has_every_repeat(capsys):
    assert main(["bench", "--repeats", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "tales (embedded)"
    for measurement in report["measurements"]:
        assert len(measurement["values"]) == 2
        assert min(measurement["values"]) <= measurement["median"] <= max(measurement["values"])
        assert min(measurement["values"]) > 0
        if report["backend"] != "numpy" and measurement["unit"] == "tok/s":
            assert len(measurement["fma"]) == 2
            assert min(measurement["fma"]) > 0


def test_numpy_has_no_roofline_ratios(capsys):
    config = config_of(n_positions=64)
    model = model_on("numpy", config, random_weights(config))
    measured = speed._measure_decode(model, 16, 1)
    assert measured.values[0] > 0
    assert measured.bandwidth == measured.fma == []


def test_a_too_short_context_is_an_error():
    config = config_of(n_positions=20)
    with pytest.raises(OptionError, match="context of 20 positions; bench needs 40"):
        next(speed.measure(model_on("numpy", config, random_weights(config)), None, 1))


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_and_flops_per_token(tied):
    config = config_of(n_inner=70, tie_word_embeddings=tied)
    model = model_on("numpy", config, random_weights(config))
    shapes = tensor_shapes(config)
    head = shapes["wte.weight"]  # the head has this shape too, tied or not
    blocks = [s for name, s in shapes.items() if name.startswith("h.") and len(s) == 2]
    n_weights = sum(rows * columns for rows, columns in blocks)
    assert speed._weight_bytes(model) == 4 * (n_weights + head[0] * head[1])
    attention = sum(
        2 * 2 * config.n_embd * (position + 1)  # scores, and the weighted sum of the values
        for _ in range(config.n_layer)
        for position in range(5, 5 + 7)
    )
    assert speed._flops(config, 5, 7) == 7 * 2 * n_weights + attention


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    measurements = [
        speed.Measurement("prompt of 512", "tok/s", [900.0, 950.0], [], [0.7, 0.8]),
        speed.Measurement("decode at 16", "tok/s", [60.0, 61.0], [0.9, 0.95], [0.1, 0.1]),
        speed.Measurement("first token", "s", [0.5]),
    ]
    speed.plot(measurements, "a title", str(tmp_path / "speed.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["speed.png"]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_the_error_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    before = len(capsys.readouterr().out)
    assert main(["bench", "--repeats", "1", "--plot", str(tmp_path / "x.png")]) == 2
    captured = capsys.readouterr()
    assert "pip install matplotlib" in captured.err
    # The error comes before any measurement.
    assert len(captured.out) == before
    assert not list(tmp_path.iterdir())


def test_bad_repeats_are_an_error(capsys):
    assert main(["bench", "--repeats", "0"]) == 2
    assert "--repeats is 0" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_peak_memory_excludes_the_parent_process():
    program = (
        "import sys, numpy; from gpt2c.cli.bench.speed import peak_bytes; before = peak_bytes();"
        "held = numpy.ones(50_000_000 // 8); print(before, peak_bytes())"
    )
    big = np.ones(300_000_000 // 8)  # must not count in the child's peak
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 45e6 < after - before < 60e6
    assert after < big.nbytes


@needs_engine
def test_bench_of_every_dtype(capsys):
    assert main(["bench", "--dtype", "all", "--repeats", "1", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["dtypes"]}
    assert list(rows) == ["float32", "int8", "int4", "float32, drafts"]
    assert rows["float32"]["divergence"] == rows["float32, drafts"]["divergence"] == 0
    assert rows["float32"]["same"] == 1
    assert rows["float32"]["prefill"] == rows["float32, drafts"]["prefill"]
    assert 0 < rows["int8"]["divergence"] < rows["int4"]["divergence"]
    # "float32" stores the embedded model's matrices, which are float16 in its file, in 16 bits.
    assert rows["int4"]["megabytes"] < rows["int8"]["megabytes"] < rows["float32"]["megabytes"]
    assert min(row["decode"] for row in rows.values()) > 0
    assert main(["bench", "--dtype", "all", "--repeats", "1"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["bench", "--dtype", "all", "--plot", "x.png"]) == 2
    assert "--plot" in capsys.readouterr().err
