"""docs/compatibility.md agrees with the package about what is public and supported."""

from __future__ import annotations

import importlib
import re
import tomllib

import pytest
from conftest import ROOT

import gpt2c

PAGE = ROOT / "docs" / "compatibility.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a source tree")


def test_the_lower_bounds_are_those_of_the_package():
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Za-z]+)[^|]*\| (\d[\d.]*) and later", page, flags=re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]["transformers"]
    required = [*project["dependencies"], *optional, f"cpython{project['requires-python']}"]
    bounds = dict(requirement.split(">=") for requirement in required if "torch" not in requirement)
    assert {name.lower(): bound for name, bound in rows} == bounds


def test_the_public_modules_exist_and_are_reached_from_the_package():
    (listed,) = re.findall(r"^- the modules (.*?), with", PAGE.read_text(), flags=re.MULTILINE)
    names = re.findall(r"`gpt2c\.(\w+)`", listed)
    assert names
    for name in names:
        assert importlib.import_module(f"gpt2c.{name}") is getattr(gpt2c, name)
