"""The recipe for Spark, docs/examples/spark_scores.py: the scores are those of one call."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gpt2c import GPT2

RECIPE = Path(__file__).parents[1] / "docs" / "examples" / "spark_scores.py"
TEXTS = [f"The king saw {i} birds. {'They sang all night. ' * (i % 5)}" for i in range(40)]


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    if not RECIPE.exists():
        pytest.skip("needs docs/examples")
    return runpy.run_path(str(RECIPE))


@pytest.fixture(scope="module")
def expected() -> list[tuple[float, float]]:
    with GPT2.from_pretrained() as model:
        return [(score.total, score.perplexity) for score in model.score(TEXTS)]


def test_as_spark_applies_it(recipe: dict[str, Any], expected: list[tuple[float, float]]) -> None:
    frame = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
    parts = [frame[i : i + 7] for i in range(0, len(frame), 7)]
    found = pd.concat(recipe["scorer"](None, 1)(iter(parts)))
    assert list(found["text"]) == TEXTS
    assert list(zip(found["total"], found["perplexity"], strict=True)) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pyspark leaves sockets open
@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="needs pyspark and a Java runtime",
)
def test_on_spark(
    recipe: dict[str, Any],
    expected: list[tuple[float, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyspark.sql import SparkSession

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.parquet.compression.codec", "gzip")  # Java's own; snappy is not
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .getOrCreate()
    )
    try:
        frame = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
        table = session.createDataFrame(frame).repartition(3)
        rows = sorted(recipe["scored"](table).collect(), key=lambda row: row["id"])
        assert [(row["total"], row["perplexity"]) for row in rows] == expected
        source, target = str(tmp_path / "texts"), str(tmp_path / "kept")
        table.write.parquet(source)
        limit = sorted(perplexity for _, perplexity in expected)[10]
        recipe["main"](session, None, source, target, limit)
        kept = [row["id"] for row in session.read.parquet(target).collect()]
        assert sorted(kept) == [i for i, (_, p) in enumerate(expected) if p <= limit]
    finally:
        session.stop()
