"""Choose the number of threads from the CPUs that this process may use, not all CPUs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

from gpt2c.checks.options import integer
from gpt2c.checks.untrusted import show
from gpt2c.engine.control_groups import folders_v1, folders_v2, read_text
from gpt2c.errors import OptionError

MAX_THREADS: Final = 256
# OpenMP's list has a number for each level of nested parallelism; gpt2c has one level.
_OPENMP_LIST: Final = re.compile(r"\s*\+?\d{1,18}\s*(,\s*\+?\d{1,18}\s*)*", re.ASCII)


def choose_threads(requested: int | None = None, root: Path = Path("/")) -> tuple[int, str]:
    """Return the number of threads, and the reason for it.

    The number is `requested`; or else GPT2C_THREADS from the environment; or else OMP_NUM_THREADS
    (the first number of a list; ignored if OpenMP would ignore it); or else the min of the CPUs
    that this process may run on, the physical cores and the performance cores among them, and the
    quota of its control group or job object (rounded down, but at least 1). Two threads on one core
    would share its arithmetic units, and a thread on an efficiency core or beyond the quota would
    make all threads wait.

    Raises OptionError or OptionTypeError if a number is not from 1 to 256.
    """
    if requested is not None:
        return integer("threads", requested, 1, MAX_THREADS), "asked for by threads="
    if named := os.environ.get("GPT2C_THREADS"):
        if not (named.isascii() and named.isdigit() and len(named) <= 4):
            raise OptionError(f"GPT2C_THREADS is {show(named)}; it must be from 1 to {MAX_THREADS}")
        n = integer("GPT2C_THREADS", int(named), 1, MAX_THREADS)
        return n, "asked for by GPT2C_THREADS"
    if (n_openmp := _openmp_threads()) is not None:
        return min(n_openmp, MAX_THREADS), "asked for by OMP_NUM_THREADS"
    reported = _reported_cpus()
    cpus = _allowed_cpus(reported.cpus)
    limits = [(len(cpus), "CPUs that this process may use")]
    if cores := _physical_cores(cpus, root) or reported.cores:
        limits.append((cores, "physical cores that this process may use"))
    if reported.fast_cores:
        limits.append((reported.fast_cores, "performance cores that this process may use"))
    if quota := _quota(root):
        limits.append((max(1, int(quota)), f"the control group's quota of {quota:g} CPUs"))
    if quota := reported.quota:
        limits.append((max(1, int(quota)), f"the job object's quota of {quota:g} CPUs"))
    n, why = min(limits, key=lambda limit: limit[0])
    return min(n, MAX_THREADS), why


def _openmp_threads() -> int | None:
    """Return the first number in OMP_NUM_THREADS; None if OpenMP would ignore its value."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if not _OPENMP_LIST.fullmatch(named):
        return None
    counts = [int(count) for count in named.split(",")]
    return counts[0] if all(counts) else None


class _ReportedCpus(NamedTuple):
    """What the system says about the CPUs that this process may use; 0 if it does not say."""

    cpus: int
    cores: int
    fast_cores: int  # 0 also if all cores are alike
    quota: float  # in CPUs


def _reported_cpus() -> _ReportedCpus:
    """Ask the system through the engine. Linux says in files instead."""
    if sys.platform != "linux":
        try:
            from gpt2c.engine import _engine
        except ImportError:
            pass
        else:
            return _ReportedCpus(*_engine.reported_cpus())
    return _ReportedCpus(0, 0, 0, 0)


def _allowed_cpus(reported: int) -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        allowed: set[int] = os.sched_getaffinity(0)
        return allowed
    return set(range(reported or os.cpu_count() or 1))


def _physical_cores(cpus: set[int], root: Path) -> int | None:
    """Return the number of cores among these CPUs; None if the system does not report cores."""
    cores = set()
    for cpu in cpus:
        file = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings = read_text(file)
        if not siblings:
            return None
        cores.add(siblings)
    return len(cores)


def _quota(root: Path) -> float | None:
    """Return the min quota, in CPUs, of the control group and its parents; None without one."""
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return min(quotas, default=None)


def _quotas_v2(root: Path) -> list[float]:
    """Read cpu.max: "QUOTA PERIOD" in microseconds, or "max PERIOD"."""
    quotas = []
    for folder in folders_v2(root):
        quota, _, period = read_text(folder / "cpu.max").partition(" ")
        quotas += _ratio(quota, period)
    return quotas


def _quotas_v1(root: Path) -> list[float]:
    """Read cpu.cfs_quota_us, which is -1 without a quota, and cpu.cfs_period_us."""
    quotas = []
    for folder in folders_v1(root, "cpu"):
        quota = read_text(folder / "cpu.cfs_quota_us")
        quotas += _ratio(quota, read_text(folder / "cpu.cfs_period_us"))
    return quotas


def _ratio(quota: str, period: str) -> list[float]:
    """Return the quota in CPUs as a list of one number; [] without a quota."""
    if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
        return [int(quota) / int(period)]
    return []
