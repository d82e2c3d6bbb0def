"""Perplexity filter on Spark: scores the texts of a table, and keeps those that read well.

    spark-submit spark_scores.py MODEL TEXTS.parquet KEPT.parquet MAX_PERPLEXITY

Each task of Spark loads the model once and scores its part of the table. Every worker needs gpt2c,
pandas, pyarrow, and the model's files at the same path. Give a task as many threads as Spark gives
it cores (spark.task.cpus).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

Frames = Iterable["pd.DataFrame"]

ADDED = "tokens int, total double, perplexity double"  # in Spark's language for schemas


def scorer(model_path: str | None, threads: int) -> Callable[[Frames], Iterator[pd.DataFrame]]:
    """Return the function for mapInPandas: it adds the columns of ADDED to each frame."""

    def score(frames: Frames) -> Iterator[pd.DataFrame]:
        from gpt2c import GPT2  # imported where it runs

        with GPT2.from_pretrained(model_path, threads=threads) as model:
            for frame in frames:
                scores = model.score(list(frame["text"]))
                yield frame.assign(
                    tokens=[len(score.ids) for score in scores],
                    total=[score.total for score in scores],
                    perplexity=[score.perplexity for score in scores],
                )

    return score


def scored(table: DataFrame, model_path: str | None = None, threads: int = 1) -> DataFrame:
    """Return the table with the columns of ADDED; it needs a column `text`."""
    columns = [f"`{field.name}` {field.dataType.simpleString()}" for field in table.schema]
    return table.mapInPandas(scorer(model_path, threads), ", ".join([*columns, ADDED]))


def main(session: SparkSession, model: str, source: str, target: str, limit: float) -> None:
    """Write the rows whose perplexity is at most the limit."""
    threads = int(session.conf.get("spark.task.cpus", "1"))
    table = scored(session.read.parquet(source), model, threads)
    table.filter(table.perplexity <= limit).write.parquet(target)


if __name__ == "__main__":
    from pyspark.sql import SparkSession

    main(SparkSession.builder.getOrCreate(), *sys.argv[1:4], float(sys.argv[4]))
