"""Living: a weak collection without callbacks."""

from __future__ import annotations

import gc
from pathlib import Path

import gpt2c
from gpt2c.living import Living


class Thing:
    pass


def test_objects_are_here_until_they_die_or_are_discarded() -> None:
    living: Living[Thing] = Living()
    first, second = Thing(), Thing()
    assert not living
    living.add(first)
    living.add(second)
    assert list(living) == [first, second]
    living.discard(first)
    living.discard(first)
    assert list(living) == [second]
    del second
    gc.collect()
    assert not living
    assert list(living) == []


def test_dead_references_are_dropped() -> None:
    living: Living[Thing] = Living()
    kept = [Thing() for _ in range(40)]
    for thing in kept:
        living.add(thing)
    for _ in range(10_000):
        living.add(Thing())
    assert len(living._references) <= 2 * len(kept) + 16
    assert list(living)[:40] == kept


def test_objects_may_be_added_while_garbage_is_collected() -> None:
    living: Living[Thing] = Living()
    kept = [Thing() for _ in range(16)]
    for thing in kept:
        living.add(thing)
    added: list[Thing] = []
    pairs = [(i, i) for i in range(10_000)]  # use up the freed tuples that Python keeps

    def add(phase: str, _: dict[str, int]) -> None:
        if phase == "start" and len(added) < 1_000:
            added.append(Thing())
            living.add(added[-1])

    threshold = gc.get_threshold()
    gc.callbacks.append(add)
    gc.set_threshold(1)
    try:
        living.add(kept[0])
        living.discard(kept[0])
        found = list(living)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(add)
    assert len(pairs) == 10_000
    assert kept[0] not in found
    assert set(kept[1:]) < set(found)
    assert set(found) <= {*kept, *added}


def test_no_callback_can_lose_an_interrupt() -> None:
    living: Living[Thing] = Living()
    thing = Thing()
    living.add(thing)
    assert [reference.__callback__ for reference in living._references.values()] == [None]
    for path in Path(gpt2c.__file__).parent.rglob("*.py*"):
        if path.suffix in (".py", ".pyx", ".pxi"):
            text = path.read_text(encoding="utf-8")
            assert "WeakSet" not in text, path
            assert "WeakValueDictionary" not in text, path
            assert "WeakKeyDictionary" not in text, path
            assert "weakref.finalize" not in text, path
