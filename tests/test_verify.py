"""``gpt2c verify``: published facts, the general checks, and faults that must be reported."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from conftest import BACKENDS, ISAS, TALES, config_of, model_on, random_weights, shared_file

import gpt2c
from gpt2c.cli.main import main
from gpt2c.config import tensor_shapes
from gpt2c.oracle.reference import gpt2
from gpt2c.oracle.scoring import log_probabilities
from gpt2c.published import general
from gpt2c.published.facts import packaged_facts, read_facts
from gpt2c.published.sizes import SIZES, size_of
from gpt2c.published.verify import verify, wikitext_text
from gpt2c.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("no_preferences")

FASTEST = BACKENDS[-1]


@pytest.fixture(scope="module")
def weights(tales):
    return {name: tales.weight(name) for name in tensor_shapes(tales.config)}


def failed(model, facts=None, **options):
    """Return the results of the failed checks."""
    checks = list(verify(model, facts or packaged_facts(), **options))
    assert checks
    return [check for check in checks if check.status == "FAILED"]


def tales_with(backend, tales, weights, changed=(), **config):
    model = model_on(backend, replace(tales.config, **config), {**weights, **dict(changed)})
    model.tokenizer = tales.tokenizer
    return model


def test_what_transformers_computed_for_the_embedded_model(backend, tales, weights):
    model = tales_with(backend, tales, weights)
    checks = list(verify(model, packaged_facts()))
    assert [check.status for check in checks] == ["ok"] * len(checks)
    kinds = {fact.kind for fact in packaged_facts().facts if fact.model == "tales"}
    assert kinds == {"greedy", "logprobs", "logit", "next", "loss"}
    assert sum("transformers" in check.source for check in checks) == 10


def corrupted(weights):
    """One weight with a flipped bit of its exponent."""
    name = "h.2.mlp.c_fc.weight"
    changed = weights[name].copy()
    changed.view(np.uint32)[3, 5] ^= 1 << 27
    return {name: changed}


def swapped(weights):
    first, second = "h.0.mlp.c_proj.weight", "h.1.mlp.c_proj.weight"
    return {first: weights[second], second: weights[first]}


def transposed(weights):
    name = "h.1.attn.c_proj.weight"
    return {name: weights[name].T.copy()}


@pytest.mark.parametrize("backend", ["numpy", FASTEST])
@pytest.mark.parametrize("change", [corrupted, swapped, transposed])
def test_wrong_weights_are_reported(backend, change, tales, weights):
    found = failed(tales_with(backend, tales, weights, change(weights)))
    # Only published results show them: the weights are as good as any others.
    assert found
    assert all("transformers" in check.source for check in found)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", FASTEST])
@pytest.mark.parametrize(
    "wrong",
    [
        {"layer_norm_epsilon": 1e-3},
        {"activation_function": "gelu"},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
)
def test_a_wrong_architecture_is_reported_twice(backend, wrong, tales, weights):
    """By its name, and by the results."""
    first, *others = failed(tales_with(backend, tales, weights, **wrong))
    (name,) = wrong
    assert first.name == "architecture of tales"
    assert name in first.found
    assert name in first.expected
    assert any(check.name.startswith("loss") for check in others)


def test_a_small_wrong_epsilon_is_reported(tales, weights):
    found = failed(tales_with(FASTEST, tales, weights, layer_norm_epsilon=1e-6))
    assert "layer_norm_epsilon" in found[0].found


def test_a_wrong_tokenizer_is_reported(tales, weights):
    model = tales_with(FASTEST, tales, weights)
    words = tales.tokenizer.encode(" said")
    assert len(words) == 1

    class Shifted:
        def __getattr__(self, name):
            return getattr(tales.tokenizer, name)

        def encode(self, text, **options):
            return [id + (id == words[0]) for id in tales.tokenizer.encode(text, **options)]

    model.tokenizer = Shifted()
    assert any("the tokenizer encodes" in check.found for check in failed(model))


def test_nan_weights_are_reported(tales, weights):
    bias = weights["h.3.mlp.c_proj.bias"].copy()
    bias[7] = np.nan
    found = failed(tales_with(FASTEST, tales, weights, {"h.3.mlp.c_proj.bias": bias}))
    assert "h.3.mlp.c_proj.bias" in found[0].found
    assert any("not finite" in check.found for check in found)


def test_an_engine_that_differs_from_the_oracle_is_reported(monkeypatch, tales):
    def wrong(*arguments):
        logits = gpt2(*arguments)
        logits[3, 5] += 0.01
        return logits

    monkeypatch.setattr(general, "gpt2", wrong)
    assert [check.name for check in failed(tales)] == [
        f"logits on {tales.backend} equal the float64 oracle's"
    ]


@pytest.mark.skipif(not ISAS, reason="not compiled")
def test_scores_that_depend_on_the_batch_are_reported(monkeypatch, tales):
    score = gpt2c.GPT2.score

    def changed(self, texts, *arguments, **options):
        found = score(self, texts, *arguments, **options)
        if isinstance(found, list) and len(found) > 1:
            found[1].logprobs[2] = np.nextafter(found[1].logprobs[2], np.float32(0))
        return found

    monkeypatch.setattr(gpt2c.GPT2, "score", changed)
    names = [check.name for check in failed(tales)]
    assert "scores alone and in a batch have the same bits" in names


def test_tokens_that_are_not_the_most_likely_are_reported(monkeypatch, tales):
    session = gpt2c.GPT2.session

    def changed(self):
        made = session(self)
        feed = made.feed

        class Changed:
            def feed(self, ids):
                logits = feed(ids)
                logits[logits.argmax()] = -np.inf
                return logits

        return Changed()

    monkeypatch.setattr(general, "_random_ids", lambda config: [[1, 2, 3, 4]])
    monkeypatch.setattr(gpt2c.GPT2, "session", changed)
    check = general._generated_is_most_likely(tales)
    assert check.status == "FAILED"
    assert check.found == "0 of 8"


def test_a_model_of_no_known_shape_gets_the_general_checks(backend):
    config = config_of(n_embd=48, n_head=3)
    checks = list(verify(model_on(backend, config, random_weights(config)), packaged_facts()))
    assert [check.status for check in checks] == ["ok"] * 5 + ["skipped"]
    assert not any(check.source for check in checks)


def test_a_quantised_model_skips_what_is_of_float32(tales):
    with gpt2c.GPT2.from_pretrained(dtype="int8") as model:
        checks = list(verify(model, packaged_facts()))
    assert not [check for check in checks if check.status == "FAILED"]
    assert sum(check.status == "skipped" for check in checks) == 11


# ---- the packaged facts ----


def test_openais_sizes():
    # Radford et al. 2019, table 2, with the numbers of parameters that OpenAI corrected later.
    n_parameters = {"124M": 124, "355M": 355, "774M": 774, "1558M": 1558}
    for size in SIZES:
        assert round(size.config.n_parameters / 1e6) == n_parameters[size.name]
        assert size_of(size.config) == size.name
    assert size_of(config_of()) is None


def test_packaged_prompts_are_what_gpt2s_tokenizer_makes_of_them():
    tokenizer = Tokenizer.gpt2()
    facts = [fact for fact in packaged_facts().facts if fact.model != "tales"]
    assert {fact.model for fact in facts} == {size.name for size in SIZES}
    for fact in facts:
        assert fact.source
        assert fact.why
        if fact.prompt is not None and fact.prompt_ids is not None:
            assert tokenizer.encode(fact.prompt) == list(fact.prompt_ids)
        if fact.kind == "greedy" and fact.new is not None and not fact.compares_words:
            assert len(tokenizer.encode(fact.new)) == fact.n_new
        if fact.kind == "next":
            assert len(fact.words) == len(fact.expected) == 5
            assert sum(fact.expected) < 100


def test_the_loss_of_llm_c_is_of_the_first_tokens_of_tiny_shakespeare():
    """llm.c puts the EOS token before each paragraph."""
    text = shared_file("eval/tiny-shakespeare.txt").read_text()[:2000]
    tokenizer = Tokenizer.gpt2()
    ids = []
    for paragraph in text.split("\n\n"):
        ids += [50256, *tokenizer.encode(paragraph + "\n\n")]
    (fact,) = [fact for fact in packaged_facts().facts if "llm.c" in fact.source]
    assert [list(row) for row in fact.rows] == [ids[64 * i : 64 * i + 65] for i in range(4)]


def test_wikitext_is_joined_as_transformers_documentation_joins_it():
    joined = shared_file("eval/wikitext-2-raw-test.txt").read_text(encoding="utf-8")
    (count,) = {fact.n_tokens for fact in packaged_facts().facts if fact.kind == "perplexity"}
    assert len(Tokenizer.gpt2().encode(joined)) == count


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", FASTEST])
def test_perplexity_equals_the_oracles(tmp_path, backend, tales, weights):
    path = tmp_path / "wiki.test.raw"
    story = "The old king had three sons , and the youngest of them was called Hans . " * 9
    path.write_text(f" \n = A Story = \n \n {story}\n {story}\n \n")
    text = wikitext_text(path)
    assert text == f"\n\n = A Story = \n\n\n\n\n {story}\n\n\n {story}\n\n\n"
    config = replace(tales.config, n_positions=100)
    shorter = {"wpe.weight": weights["wpe.weight"][:100]}
    model = tales_with(backend, tales, weights, shorter, n_positions=100)
    ids = np.array(tales.tokenizer.encode(text))
    assert len(ids) > 250
    exact = {name: w.astype(np.float64) for name, w in {**weights, **shorter}.items()}
    losses = []
    for begin in range(0, len(ids), 100):
        window = ids[begin : begin + 100]
        log_p = log_probabilities(gpt2(window, exact, config))  # [n, n_vocab]
        losses += (-log_p[np.arange(len(window) - 1), window[1:]]).tolist()
    expected = float(np.exp(np.mean(losses)))
    facts = tmp_path / "facts.toml"
    # float32 logits are about 20, so a loss is right within some 1e-6 of it.
    facts.write_text(
        f"[models.small]\nn_layer = 4\nn_embd = 256\nn_head = 4\nvocab_size = 4096\n"
        f'n_positions = 100\n[[check]]\nmodel = "small"\nkind = "perplexity"\n'
        f'n_tokens = {len(ids)}\nexpected = {expected}\nsource = "the oracle"\n'
        f"tolerance = {1e-5 * expected}\nwhy = 'float32'\n"
    )
    (check,) = [c for c in verify(model, read_facts(facts), path) if c.source]
    assert check.status == "ok", check
    facts.write_text(facts.read_text().replace(f"expected = {expected}", "expected = 1"))
    (check,) = [c for c in verify(model, read_facts(facts), path) if c.source]
    assert check.status == "FAILED"
    path.write_text("another text\n")
    (check,) = [c for c in verify(model, read_facts(facts), path) if c.source]
    assert check.status == "FAILED"
    assert f"{len(ids):,} tokens" in check.expected


# ---- the command ----


def test_exit_statuses(tmp_path, capsys, tales, weights):
    assert main(["verify"]) == 0
    assert "0 failed" in capsys.readouterr().out
    folder = tmp_path / "damaged"
    tales_with(FASTEST, tales, weights, swapped(weights)).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((TALES / name).read_bytes())
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "FAILED   loss" in out
    assert "Only published results differ" in out
    assert main(["verify", str(tmp_path / "absent")]) == 2
    assert main(["verify", "--facts", str(tmp_path / "absent.toml")]) == 2
    assert main(["verify", "--wikitext", str(tmp_path / "absent.raw")]) == 2


def test_json_has_a_line_for_each_check(capsys, tmp_path):
    text = tmp_path / "wiki.test.raw"
    text.write_text(" = A Story =\n")
    assert main(["verify", "--json", "--wikitext", str(text)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    last = lines.pop()  # the embedded model has no published perplexity
    assert (last["name"], last["status"]) == ("perplexity of --wikitext", "skipped")
    assert {line["status"] for line in lines} == {"ok"}
    assert {"name", "found", "expected", "tolerance", "source"} < set(lines[0])


def test_a_model_of_no_known_shape_is_named(capsys, tmp_path):
    config = config_of()
    folder = tmp_path / "other"
    model_on("numpy", config, random_weights(config)).save_pretrained(folder)
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "none of the known models (124M, 355M, 774M, 1558M, tales)" in out


CHECK = 'model = "124M"\nsource = "s"\ntolerance = 1\nwhy = "w"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[check]\n", "is not a TOML file"),
        ("\xff", "is not a TOML file"),
        ("checks = 1", "found the unknown 'checks'"),
        ("check = 1", "check is 1; it must be a list of tables"),
        ("[[check]]\nkind = 'gredy'", "check 1: kind is 'gredy'; it must be one of greedy"),
        (f"[[check]]\nkind = 'loss'\n{CHECK}expected = 1", "text is missing"),
        (f"[[check]]\nkind = 'loss'\n{CHECK}text = 'a'\nexpected = 'b'", "expected is 'b'"),
        (f"[[check]]\nkind = 'logit'\n{CHECK}id = 1\nexpected = 1", "prompt is missing"),
        (f"[[check]]\nkind = 'logit'\n{CHECK}id = -1\nexpected = 1", "id is -1"),
        (f"[[check]]\nkind = 'logit'\n{CHECK}id = 1\nexpected = 1\nx = 2", "the unknown 'x'"),
        (
            f"[[check]]\nkind = 'logit'\n{CHECK}id = 1\nexpected = 1\nprompt_ids = [1.5]",
            "prompt_ids is [1.5]",
        ),
        (
            f"[[check]]\nkind = 'logit'\n{CHECK}id = 1\nexpected = 1\nprompt = 'a'".replace(
                "124M", "125M"
            ),
            "found a check of the model '125M'",
        ),
        ("[models.x]\nn_layer = -1", "n_layer"),
        ("[models.x]\nlayers = 1", "the unknown 'layers'"),
    ],
)
def test_a_wrong_file_of_facts_is_named(tmp_path, text, message):
    path = tmp_path / "facts.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(gpt2c.Error, match=r"facts\.toml") as error:
        read_facts(path)
    assert message in str(error.value)


def test_packaged_files_are_toml_in_the_package():
    folder = TALES.parents[1] / "data" / "published"
    for name in ("gpt2.toml", "tales.toml", "paper_table3.toml"):
        assert tomllib.loads((folder / name).read_text(encoding="utf-8"))
