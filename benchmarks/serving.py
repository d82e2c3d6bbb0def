"""Measures `gpt2c serve` with 1 to 64 clients, next to one offline call and to llama-server.

    python benchmarks/serving.py [PART ...] [--llama-server PATH] [--plot FILE.png] [--repeats 3]

The parts:
- `load`: clients that each send one request after another. Prints tokens per second, the time to a
  first token and the times between tokens; with --llama-server, those of llama-server too;
- `burst`: 32 clients that send one request each, next to one call of `generate` with their prompts;
- `newcomers`: the time to the first token of a short prompt beside 32 running clients, and the
  times between their tokens while prompts of 1,000 tokens keep arriving.

The clients are raw sockets in one process of their own, whose CPU time is shown as a share of the
wall time. All requests are streams, and all servers sample with the same options. The sides of a
ratio alternate, and a server is stopped (SIGSTOP) between its turns; the ratios are medians over
the turns. Prompts are random ids, which no prompt cache knows. The model has random weights, and a
vocabulary in which each token is a text.

gpt2c runs without speculative decoding, which llama-server does not do either; drafts never fit
the texts of random weights. Needs gpt2c[serve], and matplotlib for --plot.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from convert import converted_folder, read_config
from separate_calls import Build, make_checkpoint, names

HERE = Path(__file__).resolve().parent
PARTS = ("load", "burst", "newcomers")
# Nearly uniform draws, because random weights would repeat themselves.
SAMPLING: Final[dict[str, Any]] = {"temperature": 20.0, "top_k": 40}
FIELDS: Final[dict[str, dict[str, Any]]] = {
    "gpt2c": {**SAMPLING, "ignore_eos": True},
    # Only the samplers that the options need, which is faster than llama-server's default list.
    "llama-server": {**SAMPLING, "ignore_eos": True, "samplers": ["top_k", "temperature"]},
}
GGUF = {"float32": "gguf", "int8": "gguf-q8_0"}
BURST_BAR = 0.95  # speed of the clients / speed of one call
PEER_BARS = {("float32", 1): 1.3, ("int8", 1): 1.45, ("float32", 32): 1.5, ("int8", 32): 2.0}
GAP_BAR = 2.5  # p99 between two tokens with arrivals / median without
SLACK = 0.005  # seconds that a newcomer may wait besides its prefill and two passes
CLIENT_BAR = 0.1  # share of one core


class Server:
    """A process that serves one dtype of the model; it runs only inside `with server.turn():`."""

    def __init__(self, name: str, dtype: str, command: list[str], port: int) -> None:
        self.name, self.dtype, self.port = name, dtype, port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, process_group=0
        )
        try:
            while not self._is_up():
                time.sleep(0.1)
                if self._process.poll() is not None:
                    self._log.seek(0)
                    output = self._log.read().decode(errors="replace")
                    raise SystemExit(f"{self} ended: {output[-2000:]}")
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}"

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError):
            connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let the server run during the block."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()


class Clients(Build):
    """The process of serving_client.py."""

    script = "serving_client.py"

    def measure(self, what: str, server: Server, **arguments: Any) -> dict[str, float]:
        """Return a measurement of a server, which runs meanwhile."""
        with server.turn():
            given = {
                "port": server.port,
                "fields": FIELDS[server.name],
                "keeps_connections": server.name == "gpt2c",  # llama-server closes them
            }
            found: dict[str, float] = self.ask(what, server=given, **arguments)
        return found


class Bench:
    """The processes, and the figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.n_vocab: int = read_config(options.checkpoint)["vocab_size"]
        self.clients = Clients("C", None)
        self.offline = Build("A", None)
        self.servers: list[Server] = []
        self.figures: list[dict[str, Any]] = []

    def start(self, dtype: str) -> None:
        """Start the servers of a dtype."""
        o = self.options
        port = free_port()
        self.servers.append(
            Server("gpt2c", dtype, [
                sys.executable, "-m", "gpt2c", "serve", "--model", f"model={o.checkpoint}",
                "--dtype", dtype, "--threads", str(o.threads), "--port", str(port),
                "--draft", "none",
            ], port)
        )  # fmt: skip
        if o.llama_server is not None:
            port = free_port()
            file = converted_folder(o.work_folder, o.checkpoint, GGUF[dtype]) / "model.gguf"
            if not file.exists():
                raise SystemExit(f"{file} is missing: python benchmarks/convert.py {GGUF[dtype]} "
                                 f"{o.checkpoint} {o.work_folder}")  # fmt: skip
            self.servers.append(
                Server("llama-server", dtype, [
                    str(o.llama_server), "-m", str(file), "--port", str(port),
                    "-t", str(o.threads), "-tb", str(o.threads), "-np", str(max(o.clients)),
                    "-c", str(o.context * max(o.clients)), *o.llama_options.split(),
                ], port)
            )  # fmt: skip

    def stop(self) -> None:
        """End the servers, and free the model of the offline calls."""
        while self.servers:
            self.servers.pop().close()
        self.offline.ask("drop")

    def close(self) -> None:
        self.stop()
        self.offline.close()
        self.clients.close()

    def model(self, dtype: str) -> dict[str, Any]:
        """Return the arguments of the offline process that name the model."""
        return {
            "path": str(self.options.checkpoint),
            "dtype": dtype,
            "threads": self.options.threads,
        }

    # ---- load ----

    def load(self, dtype: str) -> None:
        """Print the rates and times for all numbers of clients."""
        o = self.options
        turns: dict[tuple[str, int], list[dict[str, float]]] = {}
        print(f"\nload, {dtype}: medians of {o.repeats} turns of {o.seconds:g} s; times in ms")
        print("                           first token     between tokens   share of the machine's")
        print("             clients  tok/s   p50     p99     p50    p99    bytes/s   mul-adds/s "
              "  client's CPU", flush=True)  # fmt: skip
        limits = []
        for turn in range(o.repeats):
            limits.append(self.offline.ask("limits", **self.model(dtype)))
            for n in o.clients:
                for server in self.servers:
                    found = self.clients.measure(
                        "load", server, seed=f"{turn} {n}", n_vocab=self.n_vocab, clients=n,
                        seconds=o.seconds,
                    )  # fmt: skip
                    all_found = turns.setdefault((server.name, n), [])
                    all_found.append(found)
                    if turn == o.repeats - 1:
                        self.print_load(dtype, server.name, n, all_found, medians(limits))
        if o.llama_server is not None:
            for n in o.clients:
                self.compare_peer(dtype, n, turns)

    def print_load(
        self, dtype: str, name: str, n: int, turns: list[dict[str, float]], limit: dict[str, float]
    ) -> None:
        found = medians(turns)
        self.figures.append({"part": "load", "dtype": dtype, "server": name, "clients": n, **found})
        shares = ""
        if name == "gpt2c":
            # Every pass reads the weights once, for all clients.
            memory = found["rate"] / n * limit["n_bytes"] / limit["stream_rate"]
            compute = found["rate"] * self.flops_per_token() / limit["multiply_add_rate"]
            shares = f"{memory:8.0%} {compute:10.0%}   "
        ms = {key: 1e3 * value for key, value in found.items()}
        print(f"{name:14} {n:4}  {found['rate']:7,.0f} {ms['first p50']:7.1f} "
              f"{ms['first p99']:7.1f} {ms['between p50']:7.2f} {ms['between p99']:6.1f}  "
              f"{shares:22}{found['client']:10.1%}"
              f"{'' if found['client'] <= CLIENT_BAR else '  ABOVE'}", flush=True)  # fmt: skip

    def flops_per_token(self) -> float:
        """Return the float operations of the matrices for one token."""
        config = read_config(self.options.checkpoint)
        width, layers = config["n_embd"], config["n_layer"]
        inner = config.get("n_inner") or 4 * width
        blocks = layers * (4 * width * width + 2 * width * inner)
        return float(2 * (blocks + self.n_vocab * width))

    def compare_peer(
        self, dtype: str, n: int, turns: dict[tuple[str, int], list[dict[str, float]]]
    ) -> None:
        ours, theirs = turns["gpt2c", n], turns["llama-server", n]
        ratio = statistics.median(
            a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True)
        )  # fmt: skip
        bar = PEER_BARS.get((dtype, n))
        print(f"gpt2c / llama-server, {dtype}, {n} clients: {ratio:.2f}{verdict(ratio, bar)}")

    # ---- burst ----

    def burst(self, dtype: str) -> None:
        """Print the speed of 32 clients, divided by that of one call with their prompts."""
        o, server = self.options, self.servers[0]
        rates: list[tuple[float, float]] = []
        shares: list[float] = []
        for turn in range(-1, o.repeats):  # the first turn, -1, is a warm-up
            rng = random.Random(f"burst {turn}")
            prompts = [
                [rng.randrange(self.n_vocab - 1) for _ in range(rng.randint(4, 48))]
                for _ in range(o.burst)
            ]
            seeds = [*range(o.burst)]
            found = self.clients.measure(
                "burst", server, prompts=prompts, seeds=seeds, n_new=o.tokens
            )
            given = {"prompts": prompts, "seeds": seeds,
                     "options": {**SAMPLING, "max_new_tokens": o.tokens}}  # fmt: skip
            whole = self.offline.ask(
                "rate", **self.model(dtype), way="one call", workloads=[given], draft=None
            )
            if turn >= 0:
                rates.append((found["rate"], whole))
                shares.append(found["client"])
        ratio = statistics.median(a / b for a, b in rates)
        ours, whole = (statistics.median(side) for side in zip(*rates, strict=True))
        self.figures.append({"part": "burst", "dtype": dtype, "rates": rates, "ratio": ratio})
        print(f"\n{o.burst} clients / one call, {dtype}, {o.tokens} tokens each: {ours:,.0f} / "
              f"{whole:,.0f} tok/s = {ratio:.3f}{verdict(ratio, BURST_BAR)}; client's CPU "
              f"{statistics.median(shares):.1%}", flush=True)  # fmt: skip

    # ---- newcomers ----

    def newcomers(self, dtype: str) -> None:
        """Print when a newcomer's first token comes, and the times between tokens."""
        o = self.options
        turns = [
            self.clients.measure(
                "newcomers", self.servers[0], seed=turn, n_vocab=self.n_vocab, clients=o.burst,
                seconds=o.seconds,
            )
            for turn in range(o.repeats)
        ]  # fmt: skip
        budget = statistics.median(t["alone"] + 2 * t["quiet p50"] + SLACK for t in turns)
        ratio = statistics.median(t["busy p99"] / t["quiet p50"] for t in turns)
        ms = {key: 1e3 * value for key, value in medians(turns).items()}
        self.figures.append({"part": "newcomers", "dtype": dtype, "turns": turns})
        late = "" if ms["newcomer p50"] <= 1e3 * budget else "  ABOVE"
        print(f"\n{o.burst} clients, {dtype}, ms between two tokens: p50 {ms['quiet p50']:.1f}, "
              f"p99 {ms['quiet p99']:.1f}; while {ms['arrivals'] / 1e3:.1f} long prompts a second "
              f"arrive: p50 {ms['busy p50']:.1f}, p99 {ms['busy p99']:.1f}")  # fmt: skip
        print(f"  p99 with arrivals / p50 without = {ratio:.2f} (bar {GAP_BAR})"
              f"{'' if ratio <= GAP_BAR else '  ABOVE'}")  # fmt: skip
        print(f"  a newcomer's first token: {ms['newcomer p50']:.1f} ms, at most "
              f"{ms['newcomer max']:.1f} ms; alone {ms['alone']:.1f} ms; alone + 2 x p50 + 5 ms = "
              f"{1e3 * budget:.1f} ms{late}", flush=True)  # fmt: skip


def verdict(ratio: float, bar: float | None) -> str:
    """Say whether a ratio reaches its bar."""
    if bar is None:
        return ""
    return f" (bar {bar})" if ratio >= bar else f" (bar {bar})  BELOW"


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def plot(figures: list[dict[str, Any]], path: Path) -> None:
    """Draw the times for 1 to 64 clients."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    load = [figure for figure in figures if figure["part"] == "load"]
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    titles = ("ms between two tokens (p50, p99 dashed)", "ms to the first token (p50, p99 dashed)",
              "tokens/s of all clients")  # fmt: skip
    for color, (server, dtype) in enumerate(
        dict.fromkeys((one["server"], one["dtype"]) for one in load)
    ):
        ours = [one for one in load if (one["server"], one["dtype"]) == (server, dtype)]
        clients = [one["clients"] for one in ours]
        label, style = f"{server} {dtype}", {"color": f"C{color}", "marker": "o"}
        for axis, key in zip(axes, ("between", "first"), strict=False):
            axis.plot(clients, [1e3 * one[f"{key} p50"] for one in ours], label=label, **style)
            axis.plot(clients, [1e3 * one[f"{key} p99"] for one in ours], ls="--", **style)
        axes[2].plot(clients, [one["rate"] for one in ours], label=label, **style)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="clients", title=title)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(sorted({one["clients"] for one in load}))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    options = arguments()
    make_checkpoint(options.checkpoint)
    options.checkpoint = with_texts(options.checkpoint, options.work_folder)
    bench = Bench(options)
    try:
        print(f"gpt2c {bench.offline.name.removeprefix('A: ')}, {options.threads} threads")
        if options.llama_server is not None:
            version = subprocess.run(
                [str(options.llama_server), "--version"], capture_output=True, text=True, check=True
            )
            print("llama-server", " ".join((version.stdout + version.stderr).split()))
        for dtype in options.dtypes:
            bench.start(dtype)
            for part in options.parts:
                getattr(bench, part)(dtype)
            bench.stop()
        if options.json is not None:
            options.json.write_text(json.dumps(bench.figures, indent=1))
        if options.plot is not None:
            plot(bench.figures, options.plot)
    finally:
        bench.close()


def with_texts(checkpoint: Path, work: Path) -> Path:
    """Return a folder with the weights, and a vocabulary that gives each token a text."""
    folder = work / "serving" / checkpoint.name
    folder.mkdir(parents=True, exist_ok=True)
    config = read_config(checkpoint) | {"eos_token_id": None, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    vocab = {f"t{i}": i for i in range(config["vocab_size"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    weights = folder / "model.safetensors"
    weights.unlink(missing_ok=True)
    weights.symlink_to(checkpoint.resolve() / "model.safetensors")
    return folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    work = Path(tempfile.gettempdir()) / "gpt2c-benchmarks"
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"from {', '.join(PARTS)}; default: all")
    add("--checkpoint", type=Path, help="default: random weights with the shapes of 124M",
        default=work / "124M")  # fmt: skip
    add("--work-folder", type=Path, default=work, help="for converted files")
    add("--dtypes", type=names, default=["float32", "int8"])
    add("--clients", type=lambda text: [*map(int, names(text))], default=[1, 2, 4, 8, 16, 32, 64],
        help="the numbers of clients in `load`")  # fmt: skip
    add("--burst", type=int, default=32, help="the clients in `burst` and `newcomers`")
    add("--tokens", type=int, default=96, help="of each text in `burst`")
    add("--seconds", type=float, default=2, help="the length of each measurement")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2, help="threads of the engine")
    add("--llama-server", type=Path, metavar="PATH")
    add("--llama-options", default="-fa on", help="further options of llama-server")
    add("--context", type=int, default=1024, help="the context of each of llama-server's slots")
    add("--plot", type=Path, metavar="FILE", help="draw the times of `load`")
    add("--json", type=Path, metavar="FILE", help="write all figures to a file")
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS)
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
