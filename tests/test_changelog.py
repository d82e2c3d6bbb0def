"""CHANGELOG.md has the form of Keep a Changelog 1.1.0 and names this version."""

from __future__ import annotations

import re
from datetime import date

import pytest
from conftest import ROOT

import gpt2c

CHANGELOG = ROOT / "CHANGELOG.md"
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")

pytestmark = pytest.mark.skipif(not CHANGELOG.exists(), reason="not in a source tree")


def check(text: str, version: str) -> None:
    """Raise AssertionError or ValueError if a changelog has another form or newest version."""
    assert text.startswith("# Changelog\n")
    assert "https://keepachangelog.com/en/1.1.0/" in text
    assert "https://semver.org/" in text
    first, *releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert first.startswith("[Unreleased]\n")
    versions, dates = [], []
    for part in (first, *releases):
        kinds = re.findall(r"^### (.*)$", part, flags=re.MULTILINE)
        assert set(kinds) <= set(KINDS)
        assert kinds == sorted(set(kinds), key=KINDS.index), "each kind once, in the usual order"
    for release in releases:
        found = re.match(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d{2}-\d{2})\n", release)
        assert found, release.splitlines()[0]
        versions.append(tuple(map(int, found.groups()[:3])))
        dates.append(date.fromisoformat(found[4]))
        assert "\n### " in release
    assert versions == sorted(set(versions), reverse=True)
    assert dates == sorted(dates, reverse=True)
    assert ".".join(map(str, versions[0])) == version


def test_the_changelog_has_the_form_and_the_version():
    check(CHANGELOG.read_text(encoding="utf-8"), gpt2c.__version__)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" - 20", " - 9"),
        ("### Added", "### New"),
        ("### Added", "### Fixed"),
        ("## [Unreleased]\n", ""),
        (f"[{gpt2c.__version__}]", "[999.0.0]"),
        (f"[{gpt2c.__version__}]", gpt2c.__version__),
    ],
)
def test_another_form_is_found(old, new):
    text = CHANGELOG.read_text(encoding="utf-8")
    assert old in text
    with pytest.raises((AssertionError, ValueError)):
        check(text.replace(old, new), gpt2c.__version__)
