"""A Ray cluster as the runner of a job: actors do the windows, whatever happens to machines.

Ray starts the actors and notices when one is lost. The driver gives the lost actor's rows to the
others, and yields all results in the order of the rows. So no row is lost or done twice in the
results, and their bytes are those of one process.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Final

import gpt2c
from gpt2c.checks.options import INT32_MAX, integer
from gpt2c.errors import BackendError, OptionError
from gpt2c.jobs.manifest import Facts
from gpt2c.jobs.model_spec import ModelSpec
from gpt2c.jobs.ray.actors import ModelActor, with_threads
from gpt2c.jobs.ray.package import import_ray
from gpt2c.jobs.rows import JobRow, RowResult
from gpt2c.jobs.task import Task

# Rows that go to an actor at a time: enough to fill passes, and few to do again after a loss.
_PIECE_ROWS: Final = 256
_QUEUED: Final = 2  # pieces that an actor has, so that it need not wait for the driver
_AHEAD: Final = 8  # pieces for each actor that the driver may hold, done or not
_MAX_LOSSES: Final = 4  # of the actors that began a piece
_MAX_ALONE_SECONDS: Final = 600.0  # without a machine
_LOOK_SECONDS: Final = 10.0  # from one look at the cluster's machines to the next


@dataclass(frozen=True)
class Placement:
    """Where the actors run.

    num_cpus
        The CPUs and threads of each actor; None for one actor on each machine, with all its CPUs.
    actors
        The max number of actors; None for as many as the machines have room for.
    """

    num_cpus: int | None = None
    actors: int | None = None

    def __post_init__(self) -> None:
        """Raises OptionError or OptionTypeError."""
        for name in ("num_cpus", "actors"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1, INT32_MAX)


def connect(address: str | None = None) -> None:
    """Connect to a cluster, unless this process is connected to one already.

    Without an address, it is the one of RAY_ADDRESS, or one that runs on this machine, or a new one
    of this machine alone. Raises MissingDependencyError, and OptionError if there is no cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise OptionError(
            f"found no Ray cluster at {address or 'the default address'}: {error}; start one with "
            "ray start --head"
        ) from None


@dataclass(eq=False)
class _Place:
    """Room for an actor on a machine, and the actor there."""

    node: str
    cpus: float
    actor: Any
    loading: Any  # the reference of its call `load`; None when it has loaded
    pieces: deque[int] = field(default_factory=deque)  # that it has, the oldest first


class Cluster:
    """A job's runner: call it with the windows, as Job.run does."""

    def __init__(
        self, task: Task, spec: ModelSpec, facts: Facts, placement: Placement | None = None
    ) -> None:
        """`facts` are those of the driver's model (`manifest.model_facts`); connect first.

        Raises MissingDependencyError, and OptionError if no machine has room for an actor.
        """
        self._ray = import_ray()
        self._task, self._spec = task, spec
        self._facts = {name: value for name, value in facts.items() if name != "name"}
        self._placement = placement or Placement()
        if not self._room():
            wanted = self._placement.num_cpus or 1
            raise OptionError(
                f"no machine of the cluster has {wanted} CPUs; found machines with "
                f"{sorted(cpus for _, cpus in self._machines())}"
            )

    def __call__(self, windows: Iterator[list[JobRow]]) -> Iterator[list[RowResult]]:
        """Yield the results of the rows, in their order."""
        run = _Run(self, windows)
        try:
            yield from run.results()
        finally:
            run.stop()

    def _machines(self) -> list[tuple[str, float]]:
        """Return the id and the CPUs of each machine that is alive."""
        return sorted(
            (node["NodeID"], float(node["Resources"].get("CPU", 0)))
            for node in self._ray.nodes()
            if node["Alive"]
        )

    def _room(self) -> list[tuple[str, float]]:
        """Return the machine and the CPUs of each actor that the cluster has room for."""
        room: list[tuple[str, float]] = []
        for node, cpus in self._machines():
            if self._placement.num_cpus is None:
                room += [(node, cpus)] * (cpus >= 1)
            else:
                n = self._placement.num_cpus
                room += [(node, float(n))] * int(cpus // n)
        return room

    def start_actors(self, present: list[_Place]) -> list[_Place]:
        """Return new actors for the room that those present leave."""
        ray, most = self._ray, self._placement.actors
        taken = Counter((place.node, place.cpus) for place in present)
        started: list[_Place] = []
        for node, cpus in self._room():
            if taken[node, cpus]:
                taken[node, cpus] -= 1
            elif most is None or len(present) + len(started) < most:
                # Bound to its machine: if that is lost, the actor is, and its rows go elsewhere.
                strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    node, soft=False
                )
                spec = with_threads(self._spec, self._placement.num_cpus)
                actor = (
                    ray.remote(ModelActor)
                    .options(num_cpus=cpus, scheduling_strategy=strategy, max_restarts=0)
                    .remote(self._task, spec)
                )
                loading = actor.load.remote(self._facts, gpt2c.__version__)
                started.append(_Place(node, cpus, actor, loading))
        return started


class _Run:
    """One run of the windows: which actor has which rows, and which results are there."""

    def __init__(self, cluster: Cluster, windows: Iterator[list[JobRow]]) -> None:
        self._cluster, self._ray = cluster, import_ray()
        self._pieces = (
            window[begin : begin + _PIECE_ROWS]
            for window in windows
            for begin in range(0, len(window), _PIECE_ROWS)
        )
        self._places = cluster.start_actors([])
        self._looked = self._alone_since = monotonic()
        self._rows: dict[int, list[JobRow]] = {}  # of pieces that are not done
        self._again: list[int] = []  # pieces whose actor was lost, the oldest last
        self._losses: Counter[int] = Counter()  # of a piece's actors
        self._failed_loads = 0  # since the last piece was done
        self._done: dict[int, list[RowResult]] = {}  # that an older piece keeps waiting
        self._calls: dict[Any, tuple[_Place, int | None]] = {}  # by reference; None for `load`
        self._n_read = self._n_yielded = 0
        self._calls.update({place.loading: (place, None) for place in self._places})

    def results(self) -> Iterator[list[RowResult]]:
        """Yield the results of each piece."""
        while True:
            self._give_pieces()
            while self._n_yielded in self._done:
                yield self._done.pop(self._n_yielded)
                self._n_yielded += 1
                self._give_pieces()
            if not self._rows:
                return
            self._wait()
            if monotonic() - self._looked > _LOOK_SECONDS:
                self._look()

    def _wait(self) -> None:
        """Wait for a call to end. Raises BackendError if there is no machine for ten minutes."""
        if self._calls:
            self._alone_since = monotonic()
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_LOOK_SECONDS)
            for reference in ready:
                self._finish(reference)
        elif monotonic() - self._alone_since > _MAX_ALONE_SECONDS:
            raise BackendError(
                "the cluster has lost all machines that had an actor, and no other has joined for "
                f"{_MAX_ALONE_SECONDS:.0f} s; the same command goes on where the job is"
            )
        else:
            sleep(1.0)

    def stop(self) -> None:
        """End the actors."""
        for place in self._places:
            self._ray.kill(place.actor)

    def _give_pieces(self) -> None:
        """Give each actor that has loaded, and has room for it, a piece."""
        for n_pieces in range(_QUEUED):  # all actors have one before the first has two
            for place in self._places:
                if place.loading is None and len(place.pieces) == n_pieces:
                    piece = self._next_piece()
                    if piece is None and n_pieces == 0:
                        piece = self._slowest_piece()
                    if piece is None:
                        break
                    reference = place.actor.run.remote(self._rows[piece])
                    self._calls[reference] = place, piece
                    place.pieces.append(piece)
        if not self._rows:  # no actor has loaded yet; is there a row at all?
            piece = self._next_piece()
            if piece is not None:
                self._again.append(piece)

    def _next_piece(self) -> int | None:
        if self._again:
            return self._again.pop()
        if self._n_read - self._n_yielded >= _AHEAD * max(1, len(self._places)):
            return None
        rows = next(self._pieces, None)
        if rows is None:
            return None
        self._rows[self._n_read] = rows
        self._n_read += 1
        return self._n_read - 1

    def _slowest_piece(self) -> int | None:
        """Return the oldest piece that one actor has alone, for an actor that would be idle.

        So a machine that is slow, or stands still, delays nobody: the first results count, and the
        others are the same. These are the backup tasks of Dean and Ghemawat (2004), "MapReduce".
        """
        holders = Counter(piece for place in self._places for piece in place.pieces)
        return min((piece for piece in self._rows if holders[piece] == 1), default=None)

    def _finish(self, reference: Any) -> None:
        """Take the results of a call that ended, or give its rows to another actor."""
        if reference not in self._calls:
            return  # of an actor that was lost meanwhile
        place, piece = self._calls.pop(reference)
        exceptions = self._ray.exceptions
        try:
            found = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, exceptions.RayError):
                self._lose(place, piece, error)
                return
            raise error.cause from None
        except exceptions.RayError as error:
            self._lose(place, piece, error)
            return
        if piece is None:
            place.loading = None
            return
        place.pieces.remove(piece)
        if self._rows.pop(piece, None) is not None:  # if no other actor was faster
            self._done[piece] = found
        self._failed_loads = 0

    def _lose(self, place: _Place, piece: int | None, error: Exception) -> None:
        """Take back the rows of an actor that was lost. Raises BackendError if that goes on."""
        if piece is None:
            self._failed_loads += 1
            if self._failed_loads > _MAX_LOSSES + len(self._places):
                raise BackendError(f"no actor loads the model: {_line(error)}")
        elif place.pieces and place.pieces[0] in self._rows:
            self._losses[place.pieces[0]] += 1  # the others wait behind it
            if self._losses[place.pieces[0]] > _MAX_LOSSES:
                rows = self._rows[place.pieces[0]]
                raise BackendError(
                    f"the rows from {rows[0].place} to {rows[-1].place} lost their actor "
                    f"{_MAX_LOSSES + 1} times: {_line(error)}"
                )
        self._ray.kill(place.actor)
        held = {piece for other in self._places if other is not place for piece in other.pieces}
        lost = [piece for piece in place.pieces if piece in self._rows and piece not in held]
        self._again = sorted([*self._again, *lost], reverse=True)
        self._calls = {key: call for key, call in self._calls.items() if call[0] is not place}
        self._places.remove(place)
        self._looked = -_LOOK_SECONDS  # look soon: there may be room on the same machine

    def _look(self) -> None:
        """Start actors on machines that have joined, or that have lost theirs."""
        self._looked = monotonic()
        started = self._cluster.start_actors(self._places)
        self._places += started
        self._calls.update({place.loading: (place, None) for place in started})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
