"""CITATION.cff names this version and its date. tools/ci/citation.sh checks the schema."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

import gpt2c

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.skipif(
    not (ROOT / "CITATION.cff").exists(), reason="not in a source tree"
)  # fmt: skip


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gpt2c.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dates = dict(re.findall(r"^## \[([0-9.]+)\] - (\S+)$", changelog, flags=re.MULTILINE))
    assert str(citation["date-released"]) == dates[gpt2c.__version__]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith(citation["license"])
    assert [author["name"].lower() in licence for author in citation["authors"]] == [True]
