"""Jobs on a Ray cluster of several nodes on this machine: the same bytes as without a cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import gpt2c
from gpt2c.errors import CheckpointError, MissingDependencyError, OptionError
from gpt2c.jobs import Job, JobRow, ModelSpec, Task, Worker
from gpt2c.jobs.job import OutputOptions, Progress
from gpt2c.jobs.manifest import model_facts
from gpt2c.jobs.ray import (
    Cluster,
    GPT2ProcessorConfig,
    Placement,
    build_processor,
    generate,
    run_task,
    score,
)
from gpt2c.jobs.ray.actors import ModelActor
from gpt2c.jobs.ray.datasets import Pool

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs ray, the extra ray"
)
# Ray and its dependencies leave sockets and files open, which Python may warn about.
pytestmark = pytest.mark.filterwarnings("ignore")

SPEC = ModelSpec(None, {"threads": 1})  # the embedded model
STORE_BYTES = 80 << 20
WORDS = [
    "The",
    "old",
    "king",
    "had",
    "a",
    "daughter",
    "who",
    "went",
    "to",
    "the",
    "forest",
    "every",
    "day",
    "to",
    "look",
    "for",
    "birds",
]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A head node without CPUs and two nodes with two each, in processes of their own."""
    pytest.importorskip("ray")
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_DATA_DISABLE_PROGRESS_BARS="1",
        RAY_AUTH_MODE="disabled",
        RAY_raylet_start_wait_time_s="120",  # a busy machine starts a node slowly
    )
    import ray
    from ray.cluster_utils import Cluster as Nodes

    options = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        nodes.wait_for_nodes()
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def texts(n: int) -> list[str]:
    """Return n texts that are all different."""
    return [f"{' '.join(WORDS[: 2 + i % 15])}, said number {i}." for i in range(n)]


def write_rows(path: Path, n: int, column: str = "text") -> Path:
    """Write n good rows and, in their middle, a bad one."""
    lines = [json.dumps({"name": f"n{i}", column: text}) for i, text in enumerate(texts(n))]
    lines.insert(n // 2, "no JSON")
    path.write_text("\n".join(lines) + "\n")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a job's files, without the lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name[0] != "."}


def run_job(
    job: Job, cluster: Placement | None, report: Callable[[Progress], None] = lambda progress: None
) -> dict[str, bytes]:
    """Run a job, here or on the cluster, and return its files."""
    with SPEC.load() as model:
        worker = Worker(job.task, model)
        facts = model_facts(model, job.task, None)
        runner = partial(map, worker.run) if cluster is None else Cluster(
            job.task, SPEC, facts, cluster
        )  # fmt: skip
        job.run(facts, worker.columns, runner, report)
    return files_of(Path(job.output))


SAMPLED = Task("generate", "text", {"max_new_tokens": 12, "temperature": 0.9}, seed=3)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gpt2c\[ray\]'"):
        Cluster(SAMPLED, SPEC, {})


def test_another_model_is_refused() -> None:
    with SPEC.load() as model:
        facts = model_facts(model, SAMPLED, None)
    actor = ModelActor(SAMPLED, SPEC)
    actor.load(facts, gpt2c.__version__)
    assert len(actor.run([JobRow(0, "row 1", {"text": "The king"})])) == 1
    with pytest.raises(CheckpointError, match=r"sha256 .* expected .*0000"):
        actor.load({**facts, "sha256": "0000"}, gpt2c.__version__)
    with pytest.raises(CheckpointError, match=r"has gpt2c .* and the driver 0\.0"):
        actor.load(facts, "0.0")


@pytest.mark.parametrize("arguments", [{"num_cpus": 0}, {"actors": 0}, {"actors": True}])
def test_placements_are_checked(arguments: Mapping[str, Any]) -> None:
    with pytest.raises((OptionError, gpt2c.errors.OptionTypeError)):
        Placement(**arguments)


@needs_ray
def test_same_bytes_for_any_number_of_actors(ray_cluster: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 150)
    writing = OutputOptions(shard_rows=16)  # so that there are ten pieces
    job = Job(SAMPLED, [str(source)], str(tmp_path / "plain"), writing=writing)
    expected = run_job(job, None)
    assert len([name for name in expected if name.startswith("shard")]) == 10
    assert b"no JSON" not in expected["shard-000004.jsonl"]
    assert len(expected["errors-000004.jsonl"].splitlines()) == 1
    for actors in (1, 2, 4):
        job = Job(SAMPLED, [str(source)], str(tmp_path / f"on-{actors}"), writing=writing)
        assert run_job(job, Placement(num_cpus=1, actors=actors)) == expected
    job = Job(SAMPLED, [str(source)], str(tmp_path / "one-each"), writing=writing)
    assert run_job(job, Placement()) == expected


@needs_ray
def test_a_node_is_lost(ray_cluster: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 300)
    task = Task("score", "text", {"with_tokens": True})
    writing = OutputOptions(shard_rows=8)
    expected = run_job(Job(task, [str(source)], str(tmp_path / "plain"), writing=writing), None)
    node = ray_cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    ray_cluster.wait_for_nodes()
    lost = threading.Event()

    def lose(progress: Progress) -> None:
        if progress.rows >= 64 and not lost.is_set():
            ray_cluster.remove_node(node, allow_graceful=False)
            lost.set()

    job = Job(task, [str(source)], str(tmp_path / "lost"), writing=writing)
    assert run_job(job, Placement(num_cpus=1), lose) == expected
    assert lost.is_set()


def actor_processes() -> set[int]:
    """Return the ids of the processes of actors that hold a model."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::ModelActor"):
                found.add(int(path.parent.name))
        except OSError:  # it has ended
            pass
    return found


@needs_ray
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_an_actor_stands_still_and_another_is_killed(ray_cluster: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 600)
    writing = OutputOptions(shard_rows=8)
    expected = run_job(Job(SAMPLED, [str(source)], str(tmp_path / "plain"), writing=writing), None)
    others = actor_processes()
    hurt: list[int] = []

    def hurt_actors(progress: Progress) -> None:
        deadline = time.monotonic() + 60
        while not hurt and len(actor_processes() - others) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        if not hurt:
            hurt.extend(sorted(actor_processes() - others)[:2])
            os.kill(hurt[0], signal.SIGSTOP)
            os.kill(hurt[1], signal.SIGKILL)

    job = Job(SAMPLED, [str(source)], str(tmp_path / "hurt"), writing=writing)
    try:
        assert run_job(job, Placement(num_cpus=1, actors=3), hurt_actors) == expected
    finally:
        for process in hurt[:1]:
            os.kill(process, signal.SIGCONT)
    assert hurt


@needs_ray
def test_the_driver_is_killed(ray_cluster: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 400)
    command = [sys.executable, "-m", "gpt2c", "batch", "generate", str(source), "--column", "text",
               "-n", "12", "--temperature", "0.9", "--seed", "3", "--shard-rows", "16"]  # fmt: skip
    plain, output = tmp_path / "plain", tmp_path / "killed"
    subprocess.run([*command, "--output", str(plain)], check=True, capture_output=True)
    on_cluster = [*command, "--output", str(output), "--ray", ray_cluster.address,
                  "--ray-cpus", "1"]  # fmt: skip
    with subprocess.Popen(on_cluster, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + 90
        while not list(output.glob("shard-*")) and time.monotonic() < deadline:
            assert driver.poll() is None, driver.stderr and driver.stderr.read()
            time.sleep(0.01)
        os.kill(driver.pid, signal.SIGKILL)
    assert not json.loads((output / "manifest.json").read_bytes())["complete"]
    subprocess.run(on_cluster, check=True, capture_output=True)
    assert files_of(output) == files_of(plain)


@needs_ray
def test_errors_of_a_job_arrive(ray_cluster: Any) -> None:
    rows = [JobRow(0, "row 1", {"text": "a"})]
    missing = Cluster(SAMPLED, ModelSpec("no/such/model"), {}, Placement(1, 1))
    with pytest.raises(gpt2c.errors.CheckpointNotFoundError):
        list(missing(iter([rows])))
    with pytest.raises(OptionError, match="no machine of the cluster has 64 CPUs"):
        Cluster(SAMPLED, SPEC, {}, Placement(num_cpus=64))
    assert list(Cluster(SAMPLED, SPEC, {}, Placement(1, 1))(iter([]))) == []


@needs_ray
def test_datasets(ray_cluster: Any, tmp_path: Path) -> None:
    import ray

    given = [{"number": i, "text": text} for i, text in enumerate(texts(60))]
    given[7]["text"] = ""  # a text without tokens is bad
    ds = ray.data.from_items(given, override_num_blocks=5)
    pool = Pool(batch_size=8, num_cpus=1, concurrency=2)
    options = {"max_new_tokens": 8, "temperature": 0.9}
    made = generate(
        ds, SPEC, column="text", number_column="number", seed=3, pool=pool, **options
    ).take_all()
    measured = score(ds, SPEC, pool=pool).take_all()
    with SPEC.load() as model:
        for found, task in ((made, Task("generate", "text", options, seed=3)),
                            (measured, Task("score", "text"))):  # fmt: skip
            found.sort(key=lambda row: row["number"])
            assert [row["number"] for row in found] == list(range(60))
            rows = [JobRow(i, "", dict(row)) for i, row in enumerate(given)]
            for row, result in zip(found, Worker(task, model).run(rows), strict=True):
                assert row["error"] == result.error
                expected = result.rows[0] if result.rows else {}
                for name in ("generated_text", "seed", "total", "perplexity"):
                    if name in expected:
                        assert row[name] == expected[name]
    words = run_task(ds, Task("surprisal", "text"), SPEC, pool=pool).take_all()
    assert len(words) > 4 * 60
    assert {row["number"] for row in words if row["error"] is None} >= set(range(60)) - {7}


@needs_ray
def test_mistakes_with_datasets(ray_cluster: Any) -> None:
    import ray

    ds = ray.data.from_items([{"text": "a", "total": 1.0}])
    pool = Pool(num_cpus=1, concurrency=1)
    with pytest.raises(Exception, match="nothing gives each row a seed"):
        generate(ds, SPEC, column="text", temperature=0.5, pool=pool).take_all()
    with pytest.raises(Exception, match=r"TableError: .* has no column 'prompt'"):
        generate(ds, SPEC, pool=pool).take_all()
    with pytest.raises(Exception, match=r"TableError: .* has a column 'total' already"):
        score(ds, SPEC, pool=pool).take_all()


@needs_ray
def test_processor(ray_cluster: Any) -> None:
    import ray

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        short = row["id"] % 2 == 0
        parameters = {"max_tokens": 3} if short else {"max_tokens": 6, "temperature": 0.8,
                                                      "seed": row["id"]}  # fmt: skip
        return {"prompt": f"The king saw {row['id']}", "sampling_params": parameters}

    def postprocess(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["id"], "text": row["generated_text"], "n": row["num_generated_tokens"]}

    config = GPT2ProcessorConfig(engine_kwargs={"threads": 1}, concurrency=1, num_cpus=1)
    processor = build_processor(config, preprocess=preprocess, postprocess=postprocess)
    rows = sorted(processor(ray.data.range(12)).take_all(), key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(12))
    with SPEC.load() as model:
        alone = model.complete("The king saw 4", max_new_tokens=3)
        assert rows[4] == {"id": 4, "text": alone.text, "n": 3}
    assert rows[5]["n"] > 3
    config = GPT2ProcessorConfig(
        engine_kwargs={"threads": 1}, concurrency=1, num_cpus=1, should_continue_on_error=True
    )
    processor = build_processor(
        config, lambda row: {} if row["id"] == 1 else preprocess(row), postprocess
    )
    found = processor(ray.data.range(3)).take_all()
    assert sorted(bool(row["__inference_error__"]) for row in found) == [False, False, True]
    with pytest.raises(TypeError, match="GPT2ProcessorConfig"):
        build_processor({})  # type: ignore[arg-type]
