"""Options that transformers' own processors carry out, compared with its generate."""

from __future__ import annotations

import numpy as np
import pytest

import gpt2c

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", minversion="5.24")

from test_from_transformers import (  # noqa: E402
    N_VOCAB,
    TOLERANCE,
    converted,  # noqa: F401
    prompts,
    random_model,
    theirs_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

# Each option has an effect on the texts of this model, alone and beside others.
OPTIONS = [
    {"sequence_bias": {(5,): 9.0, (7, 5): -9.0, (11,): 4.0}},
    {"sequence_bias": [[[30], 9.0], [[30, 31], 6.0]]},
    {"forced_eos_token_id": 6, "max_new_tokens": 4},
    {"begin_suppress_tokens": list(range(2, 40))},
    {"exponential_decay_length_penalty": (2, 1.6)},
    {"guidance_scale": 1.8},
    {"guidance_scale": 0.5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"sequence_bias": {(5,): 9.0}, "repetition_penalty": 1.5, "suppress_tokens": [4, 11]},
    {"begin_suppress_tokens": [3, 4], "min_new_tokens": 7, "bad_words_ids": [[5], [24, 31]]},
    {"exponential_decay_length_penalty": (1, 1.5), "min_new_tokens": 4},
    {"prefix_allowed_tokens_fn": lambda row, ids: [2 + row, 9, 12, int(ids[-1]) % 5]},
]


def calls(options):
    model = random_model(3)
    given = prompts(8, 5, 8, 2, seed=4)
    free = model.generate(**given, max_new_tokens=20, pad_token_id=0)[:, 8:].tolist()
    eos = [free[0][6], free[1][3]]
    return model, given, {"max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": eos, **options}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_greedy_options(converted, options):  # noqa: F811
    model, given, options = calls(options)
    expected = theirs_of(model, **given, **options)
    assert converted(model).generate(**given, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_option_has_an_effect(options):
    """Without this test, the others could compare texts that no option changes."""
    model, given, options = calls(options)
    plain = calls({"max_new_tokens": options["max_new_tokens"]})[2]
    ours = gpt2c.from_transformers(model)
    changed = ours.generate(**given, **options).tolist()
    assert changed != ours.generate(**given, **plain).tolist()


@pytest.mark.parametrize("options", [o for o in OPTIONS if "guidance_scale" not in o], ids=str)
def test_beams(converted, options):  # noqa: F811
    """transformers' guidance is wrong with beams: its other cache does not follow the beams."""
    model, given, options = calls(options)
    # transformers treats the padding token 0 as none.
    options = {**options, "num_beams": 3, "num_return_sequences": 2, "pad_token_id": 1}
    expected = model.generate(**given, **options)
    assert converted(model).generate(**given, **options).tolist() == expected.tolist()


def test_forced_bos_after_a_prompt_of_one_token(converted):  # noqa: F811
    model = random_model(5)
    ours = converted(model)
    for ids in (torch.tensor([[1], [9]]), torch.tensor([[1, 9]])):
        for more in ({}, {"begin_suppress_tokens": list(range(20))}):
            options = {"max_new_tokens": 8, "pad_token_id": 0, "forced_bos_token_id": 17, **more}
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            assert ours.generate(ids, **options).tolist() == expected.tolist()
            assert (expected[0, ids.shape[1]] == 17) == (ids.shape[1] == 1)


def test_guidance_by_another_prompt(converted):  # noqa: F811
    model, given, options = calls({"guidance_scale": 1.5})
    negative = torch.randint(2, N_VOCAB, (4, 3), generator=torch.Generator().manual_seed(8))
    ours = converted(model)
    for row in range(4):  # a row alone, because transformers attends to the padding of negatives
        alone = {name: tensor[row : row + 1] for name, tensor in given.items()}
        prompt = {"negative_prompt_ids": negative[row : row + 1]}
        expected = theirs_of(model, **alone, **options, **prompt)
        assert ours.generate(**alone, **options, **prompt).tolist() == expected.tolist()
    together = ours.generate(**given, **options, negative_prompt_ids=negative)
    assert together[0].tolist() != ours.generate(**given, **options)[0].tolist()
    padded = torch.cat([torch.zeros(4, 2).long(), negative], dim=1)
    mask = (torch.arange(5) > 1).long().repeat(4, 1)
    assert together.tolist() == ours.generate(
        **given, **options, negative_prompt_ids=padded, negative_prompt_attention_mask=mask
    ).tolist()  # fmt: skip


@pytest.mark.parametrize("options", [OPTIONS[5], OPTIONS[7], OPTIONS[9]], ids=str)
def test_scores_and_logits(converted, options):  # noqa: F811
    """The rows of transformers and of gpt2c until the row's end."""
    model, given, options = calls(options)
    results = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    theirs = model.generate(**given, **options, **results)
    ours = converted(model).generate(**given, **options, **results)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    ends = set(options["eos_token_id"])
    for row, ids in enumerate(theirs.sequences[:, 8:].tolist()):
        for step, id in enumerate(ids):
            for name in ("scores", "logits"):
                a, b = ours[name][step][row], theirs[name][step][row]
                scale = float(theirs.logits[step][row].abs().max())
                # Guidance and penalties multiply the error of a logit by at most 4 here.
                np.testing.assert_allclose(a, b, rtol=0, atol=4 * TOLERANCE * scale)
            if id in ends:
                break


def test_a_user_processor_beside_penalties(converted):  # noqa: F811
    """transformers applies the penalties first; the processor sees their result."""
    model, given, options = calls({"repetition_penalty": 1.4, "suppress_tokens": [3, 8]})

    def halve(ids, scores):
        return torch.where(scores > 1, scores / 2, scores)

    expected = theirs_of(model, **given, **options, logits_processor=[halve])
    assert converted(model).generate(
        **given, **options, logits_processor=[halve]
    ).tolist() == expected.tolist()  # fmt: skip


@pytest.mark.parametrize("n_layer", [1, 2])
def test_hidden_states(converted, n_layer):  # noqa: F811
    model = random_model(6, n_layer=n_layer)
    given = prompts(7, 4, seed=2)
    options = {"max_new_tokens": 6, "pad_token_id": 0}
    results = {"return_dict_in_generate": True, "output_hidden_states": True}
    theirs = model.generate(**given, **options, **results)
    ours = converted(model).generate(**given, **options, **results)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 6
    for step, layers in enumerate(theirs.hidden_states):
        assert len(ours.hidden_states[step]) == len(layers) == n_layer + 1
        for mine, other in zip(ours.hidden_states[step], layers, strict=True):
            assert mine.shape == other.shape
            assert mine.dtype == torch.float32
            kept = given["attention_mask"].bool() if step == 0 else torch.ones(2, 1).bool()
            scale = float(other.abs().max())
            np.testing.assert_allclose(mine[kept], other[kept], rtol=0, atol=TOLERANCE * scale)
            assert not mine[~kept].any()
    with pytest.raises(gpt2c.OptionError, match="output_hidden_states is True and num_beams is 2"):
        converted(model).generate(**given, **options, **results, num_beams=2)


def test_samples_keep_the_processors_bans(converted):  # noqa: F811
    model, given, options = calls({"begin_suppress_tokens": list(range(2, 50)), "do_sample": True})
    ours = converted(model)
    torch.manual_seed(1)
    found = ours.generate(**given, **options, num_return_sequences=5)
    assert found.shape[0] == 20
    assert set(found[:, 8].tolist()) <= {0, 1, *range(50, N_VOCAB)}
    torch.manual_seed(1)
    assert ours.generate(**given, **options, num_return_sequences=5).tolist() == found.tolist()


def test_callbacks_and_time_limits_by_row(converted):  # noqa: F811
    model, given, options = calls({"sequence_bias": {(5,): 1.0}, "eos_token_id": None})
    seen = []

    def stop(ids, scores):
        seen.append(ids[0].tolist())
        return ids.shape[1] == 8 + 3

    ids = converted(model).generate(**given, **options, stopping_criteria=[stop])
    assert ids.shape == (4, 11)
    assert [row[:8] for row in seen[::3]] == given["input_ids"].tolist()
    ids = converted(model).generate(**given, **options, max_time=0)
    assert ids.shape[1] <= 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_bias": {(N_VOCAB,): 1.0}}, "sequence_bias is .*refuses it"),
        ({"sequence_bias": {}}, "sequence_bias is .*refuses it"),
        ({"sequence_bias": 3}, "sequence_bias is 3"),
        ({"forced_eos_token_id": N_VOCAB}, "forced_eos_token_id is 61"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id is -1"),
        ({"begin_suppress_tokens": ["a"]}, "begin_suppress_tokens is 'a'"),
        ({"exponential_decay_length_penalty": (2, 1.5)}, "without an EOS token"),
        ({"exponential_decay_length_penalty": 4, "eos_token_id": 3}, "decay_length_penalty is 4"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "x"}, "guidance_scale is 'x'"),
        ({"guidance_scale": 2.0, "negative_prompt_ids": [[1]]}, "negative_prompt_ids is "),
        (
            {"guidance_scale": 2.0, "negative_prompt_ids": torch.ones(3, 2).long()},
            r"negative_prompt_ids has the shape \[3, 2\]",
        ),
        (
            {"guidance_scale": 2.0, "negative_prompt_ids": torch.full((1, 2), 99)},
            "an id in negative_prompt_ids is 99",
        ),
    ],
)
def test_errors(options, message):
    ours = gpt2c.from_transformers(random_model())
    with pytest.raises((gpt2c.OptionError, gpt2c.OptionTypeError), match=message):
        ours.generate(torch.tensor([[1, 2]]), **{"eos_token_id": None, **options})
