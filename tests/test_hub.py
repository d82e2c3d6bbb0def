"""Names on the hub, with a local stand-in for it; paths, which are never sent to the hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES
from hub_stand_in import COMMIT, TOKEN, Hub

import gpt2c
from gpt2c.weights import hub

pytest.importorskip("huggingface_hub")

# huggingface_hub reads its environment when it is imported, so each case has its own process.
PROGRAM = """
import sys, gpt2c
options = eval(sys.argv[2])
try:
    model = gpt2c.GPT2.from_pretrained(sys.argv[1], **options)
except gpt2c.Error as error:
    print(type(error).__name__, error)
else:
    print("ids", model.generate([1, 2], max_new_tokens=4))
"""


OTHER_FILES = ("generation_config.json", "tokenizer_config.json", "added_tokens.json")


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(FIXTURES / "transformers" / "plain", folder)
    (folder / "pytorch_model.bin").write_bytes(b"another format of the same weights")
    (folder / "README.md").write_text("a model card")
    for name in OTHER_FILES:
        # The contents must differ, because the hub's cache fetches equal files only once.
        (folder / name).write_text(f'{{"{name}": 0}}')
    return folder


def load(name: str, home: Path, endpoint: str, options: str = "{}", **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, options], capture_output=True, text=True, check=False,
        env={**clean, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1",
             "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def expected(repository: Path) -> str:
    model = gpt2c.GPT2.from_pretrained(repository)
    return f"ids {model.generate([1, 2], max_new_tokens=4)}"


def test_only_the_needed_files_are_downloaded(repository, tmp_path):
    home = tmp_path / "home"
    with Hub({"user/model": repository}) as server:
        assert load("user/model", home, server.url) == expected(repository)
        assert server.downloads() == {"config.json", "model.safetensors", *OTHER_FILES}
        server.requests.clear()
        assert load("user/model", home, server.url) == expected(repository)
        assert server.downloads() == set()  # the cache has all files
    assert (home / "hub" / "models--user--model" / "snapshots" / COMMIT).is_dir()
    # Without the server the cache is used, with or without an option that asks for it.
    assert load("user/model", home, server.url) == expected(repository)
    assert load("user/model", home, server.url, HF_HUB_OFFLINE="1") == expected(repository)
    local = "{'local_files_only': True}"
    assert load("user/model", home, server.url, local) == expected(repository)


def test_torch_weights_are_downloaded_without_safetensors(tmp_path):
    folder = shutil.copytree(FIXTURES / "formats" / "torch_zip", tmp_path / "older")
    with Hub({"user/model": folder}) as server:
        assert load("user/model", tmp_path / "home", server.url) == expected(folder)
        assert server.downloads() == {"config.json", "pytorch_model.bin"}
        server.requests.clear()
        assert load("user/model", tmp_path / "home", server.url) == expected(folder)
        assert server.downloads() == set()
    assert load("user/model", tmp_path / "home", server.url) == expected(folder)


def test_shards_are_downloaded(tmp_path):
    folder = shutil.copytree(FIXTURES / "formats" / "safetensors_sharded", tmp_path / "shards")
    with Hub({"user/model": folder}) as server:
        assert load("user/model", tmp_path / "home", server.url) == expected(folder)


def test_revisions(repository, tmp_path):
    with Hub({"user/model": repository}) as server:
        for revision in ("v1", COMMIT):
            options = str({"revision": revision})
            assert load("user/model", tmp_path, server.url, options) == expected(repository)
        answer = load("user/model", tmp_path, server.url, "{'revision': 'v9'}")
    assert answer.startswith("CheckpointNotFoundError user/model at revision v9: ")
    assert "not this revision" in answer


def test_tokens(repository, tmp_path):
    with Hub({"user/model": repository}, gated=frozenset({"user/model"})) as server:
        answer = load("user/model", tmp_path, server.url)
        assert answer.startswith("CheckpointNotFoundError user/model: access")
        options = str({"token": TOKEN})
        assert load("user/model", tmp_path, server.url, options) == expected(repository)
        environment = {"HF_TOKEN": TOKEN}
        again = load("user/model", tmp_path / "other", server.url, **environment)
        assert again == expected(repository)


def test_missing_models_and_unreachable_hubs_are_one_clear_error(repository, tmp_path):
    with Hub({"user/model": repository}) as server:
        answer = load("user/other", tmp_path, server.url)
        assert answer.startswith("CheckpointNotFoundError user/other: there is no such folder")
        assert "no such model on the hub" in answer
    answer = load("user/model", tmp_path, server.url)
    assert "the hub cannot be reached" in answer
    answer = load("user/model", tmp_path, server.url, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE=1" in answer
    answer = load("user/model", tmp_path, server.url, "{'local_files_only': True}")
    assert "local_files_only=True" in answer
    assert answer.count("\n") == 0


def test_a_repository_without_weights_is_an_error(repository, tmp_path):
    (repository / "model.safetensors").unlink()
    (repository / "pytorch_model.bin").unlink()
    with Hub({"user/model": repository}) as server:
        answer = load("user/model", tmp_path, server.url)
    assert answer.startswith("CheckpointNotFoundError")
    assert "model.safetensors" in answer


@pytest.mark.parametrize(
    "name",
    ["./model", "../model", "/model", "~/model", "a/b/c", ".", "", "user//model", "a b", "user/"],
)
def test_paths_are_never_treated_as_hub_names(name, monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("the hub was asked"))
    assert not hub.is_hub_name(name)
    if name != ".":
        with pytest.raises(gpt2c.CheckpointNotFoundError):
            gpt2c.GPT2.from_pretrained(name)


def test_hub_names(monkeypatch):
    for name in ("gpt2", "openai-community/gpt2", "user_1/model.v2-small"):
        assert hub.is_hub_name(name)


def test_an_existing_path_takes_precedence(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("the hub was asked"))
    (tmp_path / "user").mkdir()
    shutil.copytree(repository, tmp_path / "user" / "model")
    assert gpt2c.GPT2.from_pretrained("user/model").generate([1, 2], max_new_tokens=1)
    shutil.copytree(repository, tmp_path / "tales")
    assert gpt2c.GPT2.from_pretrained("tales").config.vocab_size == 97
    assert gpt2c.GPT2.from_pretrained(Path("user/model")).generate([1], max_new_tokens=1)
    with pytest.raises(gpt2c.CheckpointNotFoundError):
        gpt2c.GPT2.from_pretrained(Path("user/nothing"))  # a Path is never a hub name


def test_without_huggingface_hub_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(gpt2c.MissingDependencyError, match="pip install huggingface_hub"):
        gpt2c.GPT2.from_pretrained("openai-community/gpt2")
    assert issubclass(gpt2c.MissingDependencyError, ImportError)


@pytest.mark.parametrize("name", ["plain", "torch"])
def test_an_adapter_on_the_hub(name, tmp_path):
    adapters = FIXTURES / "adapters"
    with Hub({"user/model": adapters / "base", "user/lora": adapters / name}) as server:
        found = load("user/model", tmp_path, server.url, "{'adapter': [('user/lora', 2)]}")
        weights = "adapter_model." + ("bin" if name == "torch" else "safetensors")
        assert {"adapter_config.json", weights} <= server.downloads()
        missing = load("user/model", tmp_path, server.url, "{'adapter': 'user/none'}")
    model = gpt2c.GPT2.from_pretrained(adapters / "base", adapter=[(adapters / name, 2)])
    assert found == f"ids {model.generate([1, 2], max_new_tokens=4)}"
    assert missing.startswith("CheckpointNotFoundError user/none")
