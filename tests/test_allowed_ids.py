"""A mask of allowed ids: no backend, option or draft lets a sequence have another token."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from conftest import ISAS, config_of, model_on, needs_engine, random_weights

import gpt2c
from gpt2c import OptionError, OptionTypeError
from gpt2c.engine.protocol import DraftSettings, Plan, Stage
from gpt2c.generate.sampling import Vocabulary, check_sampling
from gpt2c.oracle.sampling import Sampler
from gpt2c.schedule.beams import SearchOptions
from gpt2c.schedule.requests import Request
from gpt2c.schedule.searching import SearchBatch
from gpt2c.text.tokenizer import MissingTokenizer

N_VOCAB = 70  # more than two words of 32 bits
CONFIG = config_of(vocab_size=N_VOCAB, n_positions=90)
PROMPT = [5, 6, 7, 5, 6]
BANNED = 6
EVEN = np.arange(N_VOCAB) % 2 == 0
EVEN[BANNED] = False
ODD = np.arange(N_VOCAB) % 2 == 1
FOR_BANNED = {"logit_bias": {BANNED: 1e4}, "repetition_penalty": 0.01, "frequency_penalty": -50}
OPTIONS = {
    "greedy": {},
    "greedy, penalties": FOR_BANNED,
    "sampled": {"temperature": 0.9},
    "penalties": {"temperature": 0.9, "dry_multiplier": 1.0, **FOR_BANNED},
    "filters": {"temperature": 2.0, "top_k": 9, "top_p": 0.9, "typical_p": 0.95, "min_p": 0.01},
    "filters first": {
        "top_k": 1, "logit_bias": {BANNED: 1e4}, "sampler_order": ["top_k", "logit_bias"],
    },
    # With this eta, mu moves far enough in one step to change the next token.
    "mirostat": {"mirostat_tau": 2.0, "mirostat_eta": 3.0},
}  # fmt: skip


def only(*ids):
    return np.isin(np.arange(N_VOCAB), ids)


def packed(mask):
    """Pack a boolean mask by the definition of the bits."""
    words = [0] * -(-len(mask) // 32)
    for id in np.flatnonzero(mask).tolist():
        words[id // 32] += 1 << id % 32
    return np.array(words, dtype=np.uint32)


def plan_of(options, stop_ids=()):
    vocabulary = Vocabulary(N_VOCAB, frozenset(stop_ids), lambda: MissingTokenizer("a test"))
    return check_sampling(options, vocabulary)


def int32(*ids):
    return np.array(ids, dtype=np.int32)


def job_of(model, plan, n=20, stop_ids=(), n_top=None, drafts=None, prompt=PROMPT):
    return model._engine.job(
        int32(*prompt), n, plan, 3, 0, int32(*stop_ids), n_top, drafts=drafts
    )  # fmt: skip


def finished(model, *jobs):
    """Run the jobs together to their ends; return the first one's ids."""
    while running := [job for job in jobs if job.finish_reason is None]:
        model._engine.run(running, 1)
    return jobs[0].new_ids()


def expected(model, plan, masks, prompt=PROMPT):
    """Choose a token for each mask by the oracle's sampler, from the model's own logits."""
    ids = list(prompt)
    sampler = Sampler(plan, 3, 0, len(prompt))
    for mask in masks:
        sampler.plan = plan if mask is None else plan.with_allowed_ids(mask)
        ids.append(sampler.choose(model.logits(ids)[-1].astype(np.float64), ids))
    return ids[len(prompt) :]


@pytest.fixture
def model(backend):
    return model_on(backend, CONFIG, random_weights(CONFIG))


@pytest.mark.parametrize("options", OPTIONS)
def test_tokens_equal_the_oracles(model, options):
    plan = plan_of(OPTIONS[options])
    ids = finished(model, job_of(model, plan.with_allowed_ids(EVEN)))
    assert ids == expected(model, plan, [EVEN] * 20)
    assert EVEN[ids].all()
    assert ids != finished(model, job_of(model, plan))  # so the mask mattered


@pytest.mark.parametrize("options", OPTIONS)
def test_all_masks_of_one_id(model, options):
    """Of a mask's ids, the first and last of each word are the most likely to be wrong."""
    plan = plan_of(OPTIONS[options])
    for id in (0, 1, 31, 32, 63, 64, N_VOCAB - 1):
        assert finished(model, job_of(model, plan.with_allowed_ids(only(id)), n=3)) == [id] * 3


def test_a_mask_equals_a_list_of_banned_ids(model):
    for options in OPTIONS.values():
        banned = {"suppress_tokens": np.flatnonzero(~ODD).tolist()}
        if "sampler_order" in options:
            banned["sampler_order"] = ["suppress_tokens", *options["sampler_order"]]
        ids = finished(model, job_of(model, plan_of({**options, **banned})))
        assert ids == finished(model, job_of(model, plan_of(options).with_allowed_ids(ODD)))


def test_log_probabilities_are_the_models(model):
    """As with other stages, a token's score comes from the logits before the mask."""
    job = job_of(model, plan_of(OPTIONS["filters"]).with_allowed_ids(EVEN), n_top=2)
    ids = finished(model, job)
    scores, top = job.scores()
    logits = model.logits([*PROMPT, *ids]).astype(np.float64)[len(PROMPT) - 1 : -1]
    exact = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    # float32 rounding: log-probabilities of about 3 have a step of 2e-7.
    np.testing.assert_allclose(scores["log_prob"], exact[range(20), ids], atol=1e-5)
    np.testing.assert_array_equal(top["id"], np.argsort(-exact)[:, :2])


def test_a_batch_with_other_jobs(model):
    """Masks of jobs that run together do not mix."""
    sampled = plan_of(OPTIONS["sampled"])
    plans = [
        Plan().with_allowed_ids(EVEN), Plan(), sampled.with_allowed_ids(ODD), sampled,
        sampled.with_allowed_ids(only(3, 4)),
    ]  # fmt: skip
    alone = [finished(model, job_of(model, plan)) for plan in plans]
    jobs = [job_of(model, plan) for plan in plans]
    finished(model, *jobs)
    assert [job.new_ids() for job in jobs] == alone


# ---- ends ----


def test_a_stop_id_must_be_allowed(model):
    plan = plan_of({"logit_bias": {9: 1e4}}, [9])
    for mask, reason, n in ((only(2, 9), "stop", 0), (only(2), "length", 5)):
        job = job_of(model, plan.with_allowed_ids(mask), n=5, stop_ids=[9])
        assert finished(model, job) == [2] * n
        assert job.finish_reason == reason


def test_min_new_tokens_bans_an_allowed_stop_id(model):
    plan = plan_of({"logit_bias": {9: 1e4}, "min_new_tokens": 4}, [9])
    job = job_of(model, plan.with_allowed_ids(only(2, 9)), stop_ids=[9])
    assert finished(model, job) == [2] * 4
    assert (job.finish_reason, job.end_id) == ("stop", 9)
    # plan.after makes the plan for the rest of a sequence, which keeps the mask.
    rest = plan.with_allowed_ids(only(2, 9)).after(3)
    assert finished(model, job_of(model, rest, stop_ids=[9])) == [2]


def test_no_id_may_be_left(model):
    for options in ({"suppress_tokens": [2, 9]}, {"temperature": 1.0, "suppress_tokens": [9, 2]}):
        job = job_of(model, plan_of(options).with_allowed_ids(only(2, 9)))
        assert finished(model, job) == []
        assert job.finish_reason == "nothing"
    # A plan's mask comes first; the engine must be safe even if a filter left no allowed id.
    ((mask,), temperature) = Plan().with_allowed_ids(only(2)).stages, Stage("temperature", value=2)
    ban, best = Stage("suppress_tokens", ids=int32(2)), Stage("top_k", count=1)
    for stages in ((ban, best, mask), (ban, best, mask, temperature, best)):
        job = job_of(model, Plan(stages, draws=True))
        assert finished(model, job) == []
        assert job.finish_reason == "nothing"
    late = plan_of({"min_new_tokens": 1}, [9]).with_allowed_ids(only(9))
    job = job_of(model, late, stop_ids=[9])
    assert finished(model, job) == []
    assert job.finish_reason == "nothing"


# ---- a mask that changes ----


@pytest.mark.parametrize("options", OPTIONS)
def test_the_mask_changes_between_steps(model, options):
    """The first token has no mask. Mirostat's state must survive a change."""
    plan = plan_of(OPTIONS[options])
    masks = [None, EVEN, ODD, packed(EVEN), only(3), ODD, *[packed(ODD)] * 3, EVEN, EVEN]
    job = job_of(model, plan, n=len(masks))
    for mask in masks:
        if mask is not None:
            job.set_allowed_ids(mask)
        model._engine.run([job], 1)
    assert job.new_ids() == expected(model, plan, masks)


def test_a_mask_is_copied(model):
    """A program may reuse its array: the change shows in no job."""
    for mask in (only(3), packed(only(3))):
        plan = Plan().with_allowed_ids(mask)
        job, other = job_of(model, plan, n=2), job_of(model, Plan(), n=2)
        other.set_allowed_ids(mask)
        mask[:] = packed(only(4)) if mask.dtype == np.uint32 else only(4)
        assert finished(model, job) == finished(model, other) == [3, 3]


@needs_engine
def test_the_mask_of_a_job_that_runs_cannot_change():
    """C reads the mask without the GIL, so it must not be freed under it."""
    config = config_of(n_positions=20000)
    model = model_on(ISAS[-1], config, random_weights(config))
    job = model._engine.job(int32(1), 19000, Plan(), 0, 0, int32())
    job.set_allowed_ids(np.ones(config.vocab_size, dtype=bool))
    thread = threading.Thread(target=lambda: model._engine.run([job], 10**6))
    thread.start()
    try:
        while not job.n_tokens:
            pass
        with pytest.raises(OptionError, match="in use by another thread"):
            job.set_allowed_ids(np.ones(config.vocab_size, dtype=bool))
    finally:
        job.cancel()
        thread.join()
    job.set_allowed_ids(np.arange(config.vocab_size) == 7)  # it rests now


# ---- speculative decoding ----


def drafting_model(isa, **options):
    config = config_of(vocab_size=N_VOCAB, n_positions=200, n_embd=64, n_head=2, **options)
    weights = random_weights(config, 3)
    weights["wte.weight"] *= 3  # so that a 4-bit copy mostly chooses the same tokens
    if config.n_layer == 0:
        weights["wpe.weight"][:] = 0
    return model_on(isa, config, weights)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("n_tokens", [0, 4])
def test_drafts_do_not_change_a_masked_text(isa, options, n_tokens):
    model = drafting_model(isa)
    plan = plan_of(OPTIONS[options]).with_allowed_ids(EVEN)
    plain_job = job_of(model, plan, n=80, n_top=1)
    plain = finished(model, plain_job)
    for drafts in (
        DraftSettings(lookup=True, n_tokens=n_tokens),
        DraftSettings(packing=True, n_tokens=n_tokens),
        DraftSettings(lookup=True, packing=True, n_tokens=n_tokens),
        DraftSettings(model=model._engine, n_tokens=n_tokens),
    ):
        job = job_of(model, plan, n=80, n_top=1, drafts=drafts)
        assert finished(model, job) == plain
        for ours, theirs in zip(job.scores(), plain_job.scores(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("options", ["greedy", "sampled", "penalties"])
def test_drafts_follow_the_mask(isa, options):
    """A model that drafts for itself drafts what it chooses, if both have the mask."""
    model = drafting_model(isa)
    plan = plan_of(OPTIONS[options]).with_allowed_ids(ODD)
    job = job_of(model, plan, n=80, drafts=DraftSettings(model=model._engine, n_tokens=4))
    finished(model, job)
    _, n_drafted, n_accepted = job.draft_counts
    assert n_accepted == n_drafted >= 60
    packing = job_of(model, plan, n=80, drafts=DraftSettings(packing=True, n_tokens=4))
    finished(model, packing)
    assert packing.draft_counts[2] > 30


def test_lookup_drafts_are_accepted(isa):
    """Without layers and positions, a token depends on the one before only: the text repeats."""
    model = drafting_model(isa, n_layer=0)
    plan = Plan().with_allowed_ids(EVEN)
    job = job_of(model, plan, n=150, drafts=DraftSettings(lookup=True, n_tokens=8))
    assert finished(model, job) == finished(model, job_of(model, plan, n=150))
    assert job.draft_counts[2] > 60


@pytest.mark.parametrize("options", ["greedy", "sampled", "mirostat"])
def test_the_mask_changes_between_steps_with_drafts(isa, options):
    """A step chooses all its tokens under one mask, whatever was drafted before the change."""
    model = drafting_model(isa)
    plan = plan_of(OPTIONS[options])
    for drafts in (
        DraftSettings(packing=True, n_tokens=3),
        DraftSettings(lookup=True, n_tokens=3),
        DraftSettings(model=model._engine, n_tokens=3),
    ):
        job, masks = job_of(model, plan, n=60, drafts=drafts), []
        for mask in itertools.cycle([EVEN, ODD, only(3, 4, 5)]):
            job.set_allowed_ids(mask)
            model._engine.run([job], 1)
            masks += [mask] * (job.n_tokens - len(masks))
            if job.finish_reason:
                break
        assert job.new_ids() == expected(model, plan, masks)
        if not drafts.lookup:
            assert job.draft_counts[2] > 10


# ---- beam search ----


def test_beam_search_honours_the_mask(model):
    def best(plan):
        batch = SearchBatch(model._engine, model._prefixes, 1, SearchOptions(n_beams=3))
        request = Request(
            0, False, False, int32(*PROMPT), 12, plan, None, 0, int32(9), n_best=3
        )  # fmt: skip
        batch.add(request)
        while not batch.results:
            batch.run()
        return [(r.ids, r.end_id) for r in batch.results[0]]

    for mask in (EVEN, ODD):
        banned = Stage("suppress_tokens", ids=np.flatnonzero(~mask).astype(np.int32))
        found = best(Plan().with_allowed_ids(mask))
        assert found == best(Plan((banned,)))
        assert all(mask[ids].all() for ids, _ in found)


# ---- checks ----


def test_both_forms_of_a_mask():
    """Bits have the order of the definition; a plan has one mask, before its other stages."""
    rng = np.random.default_rng(0)
    for n in (1, 31, 32, 33, 64, 70):
        for mask in (rng.random(n) < 0.5, np.ones(n, dtype=bool), np.arange(n) == n - 1):
            words = packed(mask)
            for given in (mask, words, words.view(np.int32), np.repeat(words, 2)[::2]):
                (stage,) = Plan().with_allowed_ids(given).stages
                assert stage.ids.dtype == np.int32
                np.testing.assert_array_equal(stage.ids.view(np.uint32), words)
    plan = plan_of(OPTIONS["filters"])
    twice = plan.with_allowed_ids(EVEN).with_allowed_ids(ODD)
    assert [stage.name for stage in twice.stages][1:] == [stage.name for stage in plan.stages]
    assert twice.draws
    np.testing.assert_array_equal(twice.stages[0].ids.view(np.uint32), packed(ODD))


def test_invalid_masks(model):
    words = packed(EVEN)
    for mask in (EVEN.astype(np.float32), EVEN.astype(np.int64), [1.5], None, "x"):
        with pytest.raises(OptionTypeError, match="it must be bool"):
            Plan().with_allowed_ids(mask)
    for mask in (EVEN[None], np.bool_(True)):
        with pytest.raises(OptionError, match="it must have one dimension"):
            Plan().with_allowed_ids(mask)
    beyond = np.array([0, 0, 1 << N_VOCAB % 32], dtype=np.uint32)
    for mask, message in (
        (words[:2], r"has 2 words of 32 bits; 70 ids take 3 words"),
        (np.append(words, words[:1]), r"has 4 words of 32 bits; 70 ids take 3 words"),
        (words[:0], r"has 0 words"),
        (np.ones(64, dtype=bool), r"has 2 words"),
        (0 * words, r"leaves no token: set the bit of at least one id from 0 to 69"),
        (beyond, r"leaves no token"),
    ):
        plan = Plan().with_allowed_ids(mask)
        job = job_of(model, Plan().with_allowed_ids(only(3)), n=2)
        for use in (
            lambda plan=plan: job_of(model, plan),
            lambda plan=plan: model._engine.apply_stages(
                plan, np.zeros(N_VOCAB, dtype=np.float32), int32(1), int32()
            ),
            lambda job=job, mask=mask: job.set_allowed_ids(mask),
        ):
            with pytest.raises(OptionError, match=message):
                use()
        assert finished(model, job) == [3, 3]  # an invalid mask changes nothing


def test_bits_beyond_the_vocabulary_are_ignored(model):
    beyond = packed(only(2, N_VOCAB - 1)) | np.array([0, 0, 0xFFFFFFC0], dtype=np.uint32)
    logits = np.arange(N_VOCAB, dtype=np.float32)
    plan = Plan().with_allowed_ids(beyond)
    kept = model._engine.apply_stages(plan, logits, int32(1), int32())
    assert np.flatnonzero(kept > -np.inf).tolist() == [2, N_VOCAB - 1]
    job = job_of(model, plan, n=2)
    job.next_logits()
    job.advance(logits - 1000, logits)  # beyond the logits, memory probably holds larger numbers
    assert job.new_ids() == [N_VOCAB - 1]


def test_users_have_no_such_option(model):
    assert "allowed_ids" not in gpt2c.SAMPLER_ORDER
    with pytest.raises(OptionError, match="the stages are logit_bias"):
        model.generate(PROMPT, sampler_order=["allowed_ids"], max_new_tokens=1)
