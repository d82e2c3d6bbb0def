"""gpt2c.from_transformers compared with transformers' generate on the same model.

Greedy results can differ only where the two largest logits are equal within float32's error.
theirs_of checks that they are not.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import TALES, on_backend

import gpt2c

torch = pytest.importorskip("torch", reason="torch is not installed")
# Older versions ignore scale_attn_weights in their default attention, and penalise padding as
# repetition.
transformers = pytest.importorskip("transformers", minversion="5.24")

# transformers warns about its own defaults and about deprecated features.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

N_VOCAB = 61
SMALL = {
    "vocab_size": N_VOCAB, "n_positions": 48, "n_embd": 24, "n_head": 3, "n_layer": 2,
    "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
MODELS = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "inverse": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "unscaled": {"scale_attn_weights": False, "activation_function": "silu", "n_inner": 37},
    "relu": {"activation_function": "relu", "n_head": 1, "layer_norm_epsilon": 1e-3},
}
# Two logits that differ by less than this share of the largest logit may change their order. Each
# may have 16 rounding errors of the largest logit, the tolerance of assert_logits_close.
TOLERANCE = 2 * 16 * float(np.finfo(np.float32).eps)


def random_model(seed=0, dtype="float32", **changes):
    """Return a model whose weights are larger than GPT-2's initial ones, so that logits differ."""
    generator = torch.Generator().manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "ln_" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.3 * noise)
    return model.to(getattr(torch, dtype))


def prompts(*lengths, seed=0, pad=0):
    """Return input_ids and attention_mask of random prompts, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), pad)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        ids[row, width - n :] = torch.randint(2, N_VOCAB, (n,), generator=generator)
        mask[row, width - n :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def theirs_of(model, **options):
    """Generate with transformers; check that float32 errors cannot change any choice."""
    wide = copy.deepcopy(model).float()
    output = wide.generate(
        **options, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    n_prompt = output.sequences.shape[1] - len(output.scores)
    eos = options.get("eos_token_id")
    eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
    for row, ids in enumerate(output.sequences[:, n_prompt:].tolist()):
        for id, scores, logits in zip(ids, output.scores, output.logits, strict=True):
            best = scores[row].topk(2).values
            assert best[0] - best[1] > TOLERANCE * logits[row].abs().max()
            if id in eos:
                break
    return output.sequences


@pytest.fixture
def converted(backend):
    """gpt2c.from_transformers on each backend in turn."""
    return lambda model, **options: on_backend(
        backend, lambda b: gpt2c.from_transformers(model, backend=b, **options)
    )


# ---- greedy ----


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_batches_left_padded(converted, name, dtype):
    model = random_model(dtype=dtype, **MODELS[name])
    given = prompts(9, 3, 1, 6)
    expected = theirs_of(model, **given, max_new_tokens=20, pad_token_id=0)
    ids = converted(model).generate(**given, max_new_tokens=20, pad_token_id=0)
    assert ids.dtype == torch.int64
    assert ids.tolist() == expected.tolist()
    # Padding on the left does not change the result.
    alone = converted(model).generate(given["input_ids"][2:3, -1:], max_new_tokens=20)
    assert alone[0].tolist() == expected[2, 8:].tolist()


GREEDY = [
    {"min_new_tokens": 9},
    {"min_length": 17},
    {"min_length": 17, "min_new_tokens": 2},
    {"max_length": 15, "max_new_tokens": None},
    {"max_length": 10, "max_new_tokens": 12},
    {"max_new_tokens": None},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [33, 7], [17], [24, 31], [40]]},
    {"suppress_tokens": [4, 11, 57, 60, 2, 3]},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3, "suppress_tokens": [30]},
    {"use_cache": False, "temperature": 0.3, "top_k": 2, "num_beams": 1},
    {"pad_token_id": 7},
    {"pad_token_id": None},
    {"bad_words_ids": [[44, 45], [46]], "renormalize_logits": True},
]


@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_greedy_options(converted, options):
    model = random_model(3)
    given = prompts(8, 5, 8, 2, seed=4)
    free = model.generate(**given, max_new_tokens=20, pad_token_id=0)[:, 8:].tolist()
    # EOS ids that the first two rows generate, so that rows end at different steps.
    eos = [free[0][6], free[1][3]]
    options = {"max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": eos, **options}
    options = {name: value for name, value in options.items() if value is not None}
    expected = theirs_of(model, **given, **options)
    assert converted(model).generate(**given, **options).tolist() == expected.tolist()


def test_a_row_ends_with_eos_and_padding(converted):
    model = random_model(3)
    given = prompts(8, 5, seed=4)
    free = model.generate(**given, max_new_tokens=20, pad_token_id=0)[:, 8:].tolist()
    eos = free[0][6]
    n = free[0].index(eos)
    ids = converted(model).generate(**given, max_new_tokens=20, eos_token_id=eos, pad_token_id=59)
    assert ids[0, 8:].tolist()[: n + 2] == [*free[0][:n], eos, 59]
    # The same id may have other types; ids outside the vocabulary have no effect.
    for same in ([eos], torch.tensor([eos]), torch.tensor(eos), np.int64(eos), [eos, -1, 999]):
        again = converted(model).generate(
            **given, max_new_tokens=20, eos_token_id=same, pad_token_id=59
        )
        assert again.tolist() == ids.tolist()


def test_without_a_mask_padding_is_masked(converted):
    model = random_model(5)
    ids = prompts(7, 4, pad=59)["input_ids"]
    options = {"max_new_tokens": 9, "pad_token_id": 59}
    expected = theirs_of(model, input_ids=ids, **options).tolist()
    ours = converted(model)
    assert ours.generate(ids, **options).tolist() == expected
    # Padding that is also EOS may be part of the prompt, so it is not masked.
    ends = {**options, "eos_token_id": 59}
    as_tokens = theirs_of(model, input_ids=ids, **ends).tolist()
    assert ours.generate(ids, **ends).tolist() == as_tokens != expected


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.7}])
def test_an_empty_row_starts_from_bos(converted, options):
    """An empty row gives what transformers' generate() gives without a prompt.

    Given an empty row, transformers computes on the padding.
    """
    model = random_model(5)
    given = prompts(7, 1, 4, pad=59)
    given["attention_mask"][1, -1] = 0
    given["input_ids"][1, -1] = 59
    options = {"max_new_tokens": 9, "pad_token_id": 59, **options}
    alone = theirs_of(model, **options)
    assert alone[0, 0] == 1  # bos_token_id
    ours = converted(model)
    for names in (("input_ids", "attention_mask"), ("input_ids",)):
        others = {name: given[name][[0, 2]] for name in names}
        expected = theirs_of(model, **others, **options)
        ids = ours.generate(**{name: given[name] for name in names}, **options)
        assert ids[[0, 2]].tolist() == expected.tolist()
        assert ids[1].tolist() == [59] * 7 + alone[0, 1:].tolist()
    only = {name: tensor[[1]] for name, tensor in given.items()}
    assert ours.generate(**only, **options)[0, 7:].tolist() == alone[0, 1:].tolist()
    with pytest.raises(gpt2c.OptionError, match="bos_token_id is None"):
        ours.generate(**given, **options, bos_token_id=None)


def test_an_empty_row_where_padding_is_eos(converted):
    model = random_model(5)
    ids = torch.tensor([[59, 59, 59], [4, 5, 6]])
    options = {"max_new_tokens": 5, "pad_token_id": 59, "eos_token_id": 59}
    mask = torch.tensor([[0, 0, 0], [1, 1, 1]])
    expected = theirs_of(model, **options)[0, 1:].tolist()
    found = converted(model).generate(ids, attention_mask=mask, **options)[0].tolist()
    assert found == [59, 59, 59, *expected]


def test_masked_tokens_inside_a_prompt(converted):
    model = random_model(6)
    given = prompts(9, 9)
    given["attention_mask"][0, 3:5] = 0
    expected = theirs_of(model, **given, max_new_tokens=8, pad_token_id=0).tolist()
    assert converted(model).generate(**given, max_new_tokens=8, pad_token_id=0).tolist() == expected


# ---- which options apply ----


def test_unset_options_come_from_the_model_and_then_from_transformers(converted):
    model = random_model(7)
    given = prompts(4)
    assert converted(model).generate(**given).shape[1] == 4 + 20  # transformers' default
    # A row ends with the context.
    assert (
        converted(model).generate(**prompts(40)).tolist()
        == theirs_of(model, **prompts(40)).tolist()
    )
    model.generation_config.max_new_tokens = 7
    model.generation_config.repetition_penalty = 1.5
    expected = theirs_of(model, **given).tolist()
    ours = converted(model)
    assert ours.generate(**given).tolist() == expected
    assert ours.generate(given["input_ids"], max_new_tokens=5)[0].tolist() == expected[0][:9]
    config = transformers.GenerationConfig(max_new_tokens=6, repetition_penalty=1.0)
    for call in ({"generation_config": config}, {"max_new_tokens": 6, "repetition_penalty": None}):
        expected = theirs_of(model, **given, **call).tolist()
        assert ours.generate(**given, **call).tolist() == expected
    # Our generation_config is a copy: changes to it apply, later changes to transformers' do not.
    model.generation_config.max_new_tokens = 1
    assert ours.generate(**given).shape[1] == 4 + 7
    ours.generation_config.max_new_tokens = 3
    assert ours.generate(**given).shape[1] == 4 + 3


def test_positional_arguments_and_a_call_without_a_prompt(converted):
    model = random_model(8)
    config = transformers.GenerationConfig(max_new_tokens=5)
    expected = theirs_of(model, inputs=torch.tensor([[1]]), max_new_tokens=5).tolist()
    ours = converted(model)
    assert ours.generate(torch.tensor([[1]], dtype=torch.int32), config).tolist() == expected
    assert ours.generate(max_new_tokens=5).tolist() == expected  # bos_token_id is 1
    with pytest.raises(gpt2c.OptionError, match="bos_token_id is None"):
        ours.generate(max_new_tokens=5, bos_token_id=None)


# ---- sampling ----


def test_samples_are_reproducible_with_torchs_seed(converted):
    ours = converted(random_model(9))
    given = {**prompts(5, 3), "max_new_tokens": 12, "do_sample": True, "pad_token_id": 0}
    torch.manual_seed(1)
    first, second = ours.generate(**given), ours.generate(**given)
    torch.manual_seed(1)
    assert ours.generate(**given).tolist() == first.tolist() != second.tolist()
    many = ours.generate(**given, num_return_sequences=3)
    assert len({tuple(row) for row in many.tolist()}) == 6
    assert many[:, :5].tolist() == given["input_ids"].repeat_interleave(3, dim=0).tolist()
    # Greedy decoding does not advance torch's generator.
    before = torch.get_rng_state()
    ours.generate(**{**given, "do_sample": False})
    assert torch.equal(before, torch.get_rng_state())


def test_samples_follow_transformers_distribution(converted):
    model = random_model(10)
    given = prompts(3)
    options = {"do_sample": True, "temperature": 1.3, "top_p": 0.9, "max_new_tokens": 1}
    torch.manual_seed(0)
    ids = converted(model).generate(
        given["input_ids"].repeat(20, 1), num_return_sequences=100, **options
    )[:, -1]
    # These scores come after transformers' own processors, including its default of top_k=50.
    output = model.generate(**given, **options, return_dict_in_generate=True, output_scores=True)
    expected = output.scores[0][0].softmax(-1).numpy()
    counts = np.bincount(ids.numpy(), minlength=N_VOCAB)
    assert not counts[expected == 0].any()
    # 2000 draws: about one count in 10^6 is more than five standard deviations off.
    deviation = np.sqrt(2000 * expected * (1 - expected))
    assert (np.abs(counts - 2000 * expected) <= 5 * deviation + 1).all()


def test_top_k_is_transformers_default(converted):
    model = random_model(10, initializer_range=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # makes all tokens equally likely
    torch.manual_seed(0)
    ids = torch.full((60, 1), 3)
    ours = converted(model)
    drawn = ours.generate(ids, do_sample=True, max_new_tokens=30)[:, 1:]
    k = transformers.GenerationConfig._get_default_generation_params()["top_k"]
    assert drawn.unique().numel() == k
    drawn = ours.generate(ids, do_sample=True, max_new_tokens=30, top_k=None)[:, 1:]
    assert drawn.unique().numel() == N_VOCAB


# ---- beams ----


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "length_penalty": -1.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
        {"num_beams": 5, "no_repeat_ngram_size": 2, "num_return_sequences": 5},
        {"num_beams": 3, "repetition_penalty": 1.3, "min_new_tokens": 4},
    ],
    ids=str,
)
def test_beams(converted, options):
    model = random_model(11)
    given = prompts(8, 5, 8, 2, seed=4)
    free = model.generate(**given, max_new_tokens=12, pad_token_id=0)[:, 8:].tolist()
    options = {
        # transformers 5.24's beam search treats pad_token_id=0 as missing and pads with EOS.
        "max_new_tokens": 12, "pad_token_id": 59, "eos_token_id": [free[0][4], free[1][2]],
        "return_dict_in_generate": True, "output_scores": True, **options,
    }  # fmt: skip
    expected = model.generate(**given, **options)
    output = converted(model).generate(**given, **options)
    assert output.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(output.sequences_scores, expected.sequences_scores)


# ---- stopping, streamers, processors and kept outputs ----


@pytest.fixture(scope="module")
def hf_tales():
    """The embedded model in transformers, its tokenizer there, and the model converted to gpt2c."""
    vocabulary = json.loads((TALES / "vocab.json").read_text(encoding="utf-8"))
    lines = (TALES / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    tokenizer = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.pad_token = tokenizer.eos_token
    model = transformers.GPT2LMHeadModel.from_pretrained(TALES).eval()
    return model, tokenizer, gpt2c.from_transformers(model, tokenizer)


@pytest.mark.parametrize("stops", ["e King wa", ["zzz", "ligh", "King was so de"], ["time, a"]])
def test_stop_strings_are_kept_in_the_output(hf_tales, stops):
    model, tokenizer, ours = hf_tales
    given = tokenizer("Once upon a time", return_tensors="pt")
    options = {"max_new_tokens": 40, "stop_strings": stops}
    expected = model.generate(**given, **options, tokenizer=tokenizer)
    assert expected.shape[1] < 20
    ids = ours.generate(**given, **options)
    assert ids.tolist() == expected.tolist()
    no_tokenizer = gpt2c.from_transformers(model)
    assert no_tokenizer.generate(**given, **options, tokenizer=tokenizer).tolist() == ids.tolist()
    with pytest.raises(gpt2c.OptionError, match="stop_strings is given without a tokenizer"):
        no_tokenizer.generate(**given, **options)


def test_stopping_criteria_and_streamers(hf_tales):
    model, tokenizer, ours = hf_tales
    given = tokenizer("The old king", return_tensors="pt")
    n = given["input_ids"].shape[1]

    class Recorder(transformers.generation.streamers.BaseStreamer):
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.ended = True

    class After(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return torch.tensor([row.shape[0] >= n + 5 for row in input_ids])

    recorders = Recorder(), Recorder()
    criteria = transformers.StoppingCriteriaList([After()])
    both = [
        model_.generate(**given, max_new_tokens=9, stopping_criteria=criteria, streamer=recorder)
        for model_, recorder in zip((model, ours), recorders, strict=True)
    ]
    assert both[1].tolist() == both[0].tolist()
    assert both[1].shape[1] == n + 5
    assert recorders[1].values == recorders[0].values
    assert recorders[1].ended
    # EOS is streamed too.
    eos = both[0][0, n + 3].item()
    recorders = Recorder(), Recorder()
    for model_, recorder in zip((model, ours), recorders, strict=True):
        model_.generate(**given, max_new_tokens=9, eos_token_id=eos, streamer=recorder)
    assert recorders[1].values == recorders[0].values
    assert recorders[1].values[-1] == [eos]


def test_text_is_streamed_to_another_thread(hf_tales):
    _, tokenizer, ours = hf_tales
    given = tokenizer("The old king", return_tensors="pt")
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {**given, "max_new_tokens": 12, "streamer": streamer}
    thread = threading.Thread(target=ours.generate, kwargs=options)
    thread.start()
    pieces = list(streamer)
    thread.join()
    ids = ours.generate(**given, max_new_tokens=12)[0, given["input_ids"].shape[1] :]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert len(pieces) > 3


def test_logits_processors(converted):
    model = random_model(12)
    given = prompts(6, 4)

    class Odd(transformers.LogitsProcessor):
        """Allow only odd ids, each once."""

        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, ::2] = -torch.inf
            return scores.scatter(1, input_ids, -torch.inf)

    options = {"max_new_tokens": 8, "pad_token_id": 0}
    processors = transformers.LogitsProcessorList([Odd()])
    expected = theirs_of(model, **given, **options, logits_processor=processors).tolist()
    ours = converted(model)
    assert ours.generate(**given, **options, logits_processor=processors).tolist() == expected


@pytest.mark.parametrize("do_sample", [False, True])
def test_output_logits_and_scores(converted, do_sample):
    model = random_model(13)
    given = prompts(7, 4)
    kept = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    options = {
        "max_new_tokens": 6, "pad_token_id": 0, "repetition_penalty": 1.4, "top_p": 0.8,
        "do_sample": do_sample, **kept,
    }  # fmt: skip
    output = converted(model).generate(**given, **options)
    assert type(output) is type(model.generate(**given, **options))
    assert len(output.scores) == len(output.logits) == 6
    # Compare each step with transformers on our own tokens so far.
    for step in range(6):
        prompt = {
            "input_ids": output.sequences[:, : 7 + step],
            "attention_mask": torch.cat([given["attention_mask"], torch.ones(2, step).long()], 1),
        }
        theirs = model.generate(**prompt, **{**options, "max_new_tokens": 1})
        for ours_, theirs_ in ((output.logits, theirs.logits), (output.scores, theirs.scores)):
            atol = TOLERANCE * float(theirs.logits[0].abs().max())
            torch.testing.assert_close(ours_[step], theirs_[0], rtol=0, atol=2 * atol)


def test_max_time_0_gives_no_logits():
    ours = gpt2c.from_transformers(random_model())
    kept = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    output = ours.generate(torch.tensor([[1, 2]]), max_time=0, max_new_tokens=3, **kept)
    assert (output.sequences.tolist(), output.logits, output.scores) == ([[1, 2]], (), ())


def test_logits_of_finished_rows_are_zero(converted):
    model = random_model(3)
    given = prompts(8, 5, seed=4)
    free = model.generate(**given, max_new_tokens=9, pad_token_id=0)[:, 8:].tolist()
    output = converted(model).generate(
        **given, max_new_tokens=9, eos_token_id=free[0][2], pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    n = free[0].index(free[0][2]) + 1
    assert free[0][2] not in free[1]
    assert [bool(step[0].any()) for step in output.logits] == [i < n for i in range(9)]
    assert all(step[1].any() for step in output.logits)
    assert output.scores is None


# ---- pipelines ----


def test_pipeline(hf_tales):
    model, tokenizer, ours = hf_tales
    pipes = [
        transformers.pipeline(
            "text-generation", model=m, tokenizer=copy.deepcopy(tokenizer), device="cpu"
        )
        for m in (model, ours)
    ]
    texts = ["Once upon a time", "The old king"]
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    for call in (
        {}, {"batch_size": 2}, {"return_full_text": False}, {"stop_sequence": "the"},
        {"return_tensors": True},
    ):  # fmt: skip
        theirs, mine = (pipe(texts, **options, **call) for pipe in pipes)
        assert mine == theirs
    torch.manual_seed(3)
    one = pipes[1]("Once", max_new_tokens=20, do_sample=True, num_return_sequences=2)
    assert len({each["generated_text"] for each in one}) == 2
    torch.manual_seed(3)
    assert pipes[1]("Once", max_new_tokens=20, do_sample=True, num_return_sequences=2) == one
    assert "GPT2LMHeadModel" in repr(pipes[1])


def test_a_pipeline_logs_no_warnings(hf_tales, caplog):
    _, tokenizer, ours = hf_tales
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        transformers.pipeline("text-generation", model=ours, tokenizer=tokenizer, device="cpu")
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty_alpha": 0.6}, "penalty_alpha is .*not support"),
        ({"generation_config": {"max_new_tokens": 3}}, "generation_config is of type dict"),
        ({"input_ids": [[1, 2]]}, "input_ids is of type list"),
        ({"input_ids": transformers.BatchEncoding({})}, r"BatchEncoding; .*generate\(\*\*inputs"),
        ({"input_ids": torch.ones(2, 2)}, "input_ids is a tensor of torch.float32"),
        ({"input_ids": torch.ones(2).long()}, r"shape \[2\]; it must be integers"),
        ({"input_ids": torch.ones(1, 0).long()}, r"input_ids has the shape \[1, 0\]"),
        ({"input_ids": torch.full((1, 2), 99)}, "prompt 0: token 0 is 99"),
        ({"input_ids": torch.ones(1, 49).long()}, "row 0 of input_ids has 49 tokens"),
        ({"inputs": torch.ones(1, 2).long()}, "inputs and input_ids are both given"),
        ({"attention_mask": torch.ones(1, 2)}, r"attention_mask has the shape \[1, 2\]"),
        ({"attention_mask": [[1, 1, 1]]}, "attention_mask is "),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "row 0 of input_ids ends in padding"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2"),
        ({"do_sample": True, "top_p": 2.0}, "top_p is 2"),
        ({"streamer": 1, "num_return_sequences": 2, "do_sample": True}, "streamer is given for"),
        (
            {"num_beams": 2, "stopping_criteria": [lambda ids, scores: True]},
            "cannot be combined with beam",
        ),
        ({"max_new_tokns": 2}, "did you mean max_new_tokens"),
        ({"input_ids": torch.ones(1, 2) * 1j}, "input_ids is a tensor of torch.complex64"),
        ({"input_ids": torch.ones(1, 2).long().to_sparse()}, "input_ids is .*torch.sparse_coo"),
        ({"input_ids": torch.ones(1, 2, device="meta").long()}, "input_ids is .* on meta"),
        ({"attention_mask": torch.ones(1, 3).to_sparse()}, "attention_mask is .*torch.sparse_coo"),
        ({"logits_processor": 3}, "logits_processor is 3; it must be a list"),
        ({"logits_processor": lambda ids, scores: scores}, "logits_processor is .* list"),
        ({"logits_processor": [3]}, "logits_processor has 3"),
        ({"logits_processor": [lambda ids, scores: None]}, "logits_processor returned None"),
        ({"logits_processor": [lambda ids, scores: scores[0]]}, rf"shape \[1, {N_VOCAB}\]"),
        ({"stopping_criteria": 3}, "stopping_criteria is 3"),
        ({"stopping_criteria": [3]}, "stopping_criteria has 3"),
        ({"stopping_criteria": [lambda ids, scores: None]}, "stopping_criteria returned None"),
        ({"streamer": 3}, "streamer is 3; it must have the methods"),
    ],
)
def test_errors_name_the_invalid_argument(options, message):
    ours = gpt2c.from_transformers(random_model(14))
    given = {"input_ids": torch.tensor([[1, 2, 3]]), "max_new_tokens": 2, **options}
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        ours.generate(**given)
    assert isinstance(caught.value, gpt2c.Error)


def test_rows_of_different_lengths_need_padding(converted):
    model = random_model(3)
    given = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "max_new_tokens": 9}
    ours = converted(model)

    def ends(ids, scores):
        return ids[0, 0] == 1 and ids.shape[1] == 5

    with pytest.raises(gpt2c.OptionError, match="pad_token_id and eos_token_id are None"):
        ours.generate(**given, stopping_criteria=[ends])
    padded = ours.generate(**given, stopping_criteria=[ends], pad_token_id=60)
    assert padded[0, 5:].tolist() == [60] * 6


def test_a_full_context_ends_a_row(converted):
    model = random_model(15)
    given = prompts(46, 10)
    ids = converted(model).generate(**given, max_new_tokens=9, pad_token_id=60)
    # 48 positions give 49 tokens, since the last one is not fed.
    assert ids[0, 49:].tolist() == [60] * 6
    assert ids[:, :49].tolist() == theirs_of(
        model, **given, max_new_tokens=3, pad_token_id=60
    ).tolist()  # fmt: skip


def test_other_models_are_refused():
    with pytest.raises(gpt2c.OptionTypeError, match="it must be a transformers GPT2LMHeadModel"):
        gpt2c.from_transformers(random_model().transformer)
    for ours in (gpt2c.GPT2.from_pretrained(), gpt2c.from_transformers(random_model())):
        with pytest.raises(gpt2c.OptionTypeError, match="is already a gpt2c model"):
            gpt2c.from_transformers(ours)
    model = random_model()
    model.transformer.h[0].attn.lora = torch.nn.Linear(3, 3)
    with pytest.raises(gpt2c.CheckpointError, match=r"unexpected tensors.*h\.0\.attn\.lora"):
        gpt2c.from_transformers(model)
    with pytest.raises(gpt2c.CheckpointError, match="on the device 'meta'"):
        gpt2c.from_transformers(random_model().to("meta"))
    model = random_model()
    model.transformer.wte.weight = torch.nn.Parameter(
        torch.ones(N_VOCAB, 24, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(gpt2c.CheckpointError, match=r"found dtype torch\.int8"):
        gpt2c.from_transformers(model)


def test_weights_are_copied(converted):
    model = random_model(16)
    given = prompts(4)
    ours = converted(model)
    before = ours.generate(**given, max_new_tokens=9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert ours.generate(**given, max_new_tokens=9).tolist() == before.tolist()


def test_a_head_is_tied_only_if_it_is_the_embedding(converted):
    model = random_model(17)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
    assert model.config.tie_word_embeddings
    given = prompts(4)
    expected = theirs_of(model, **given, max_new_tokens=9).tolist()
    assert converted(model).generate(**given, max_new_tokens=9).tolist() == expected


def test_missing_features_point_to_transformers_model():
    ours = gpt2c.from_transformers(random_model())
    with pytest.raises(gpt2c.OptionTypeError, match=r"cannot be called.*keep transformers' model"):
        ours(torch.tensor([[1]]))
    with pytest.raises(AttributeError, match=r"has no 'parameters': .*keep transformers' model"):
        ours.parameters()
    assert not hasattr(ours, "hf_device_map")
    assert copy.copy(ours).config is ours.config


def test_device_dtype_and_eval():
    ours = gpt2c.from_transformers(random_model())
    assert ours.eval() is ours.to("cpu") is ours.to(torch.device("cpu"), torch.float32) is ours
    assert (ours.device.type, ours.dtype, ours.can_generate()) == ("cpu", torch.float32, True)
    assert ours.to(None) is ours
    for place in ("cuda", torch.bfloat16, "nowhere", 0, object()):
        with pytest.raises(gpt2c.OptionError, match="the model cannot be moved to"):
            ours.to(place)
    with ours:
        pass
    with pytest.raises(gpt2c.ClosedError):
        ours.generate(torch.tensor([[1]]))


def test_int8():
    model = random_model(18)
    with gpt2c.from_transformers(model, dtype="int8") as ours:
        assert "int8" in repr(ours)
        assert ours.generate(torch.tensor([[1, 2]]), max_new_tokens=3).shape == (1, 5)


def test_gpt2c_by_itself_imports_no_torch():
    code = "import gpt2c, sys; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
