"""The model card of "tales", written from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import tales_corpus
from check_tales import LEAST_DISTINCT, LEAST_KNOWN_WORDS, LONGEST_COPY, Measures


@dataclass(frozen=True)
class Facts:
    """What the card reports."""

    recipe: dict[str, object]
    parameters: int
    training_tokens: int
    corpus: tales_corpus.Corpus
    curve: list[dict[str, float]]  # now and then: step, train_loss, bits per byte of each book
    scores: dict[str, float]  # bits per byte of each held-out book and of "all"
    measures: Measures
    samples: list[str]  # of seeds 1, 2, 3


def model_card(facts: Facts) -> str:
    """The text of MODEL_CARD.md."""
    recipe, measures = facts.recipe, facts.measures
    seen = int(recipe["steps"]) * int(recipe["batch"]) * int(recipe["positions"])
    books = [
        f"- {title}, {author}{' (held out)' if title in tales_corpus.HELD_OUT else ''}"
        for title, author, _, _ in tales_corpus.BOOKS
    ]
    scores = [f"| {book} | {score:.3f} |" for book, score in facts.scores.items()]
    curve = [
        f"| {point['step']:,} | {point['train_loss']:.2f} | {point['all']:.3f} |"
        for point in facts.curve
    ]
    dropped = [f"- {reason}: {count:,}" for reason, count in facts.corpus.dropped.items()]
    settings = ", ".join(f"{name} {value}" for name, value in recipe.items())
    samples = [
        f"Seed {seed}:\n\n{quote(sample)}\n" for seed, sample in enumerate(facts.samples, start=1)
    ]
    return f"""# tales

A small GPT-2 that writes children's prose of a hundred years ago: {facts.parameters:,} parameters
({recipe["layers"]} blocks, width {recipe["width"]}, {recipe["heads"]} heads,
{recipe["positions"]} positions, a byte-level BPE of {recipe["vocab_size"]:,} tokens of its own),
stored in float16. Made for gpt2c, to have something real to run where nothing can be downloaded.

## Terms

The weights and the tokenizer are under the MIT licence, as gpt2c is. The books they were trained
on are in the public domain in the United States.

## Data

Books from Project Gutenberg; its headers were taken off. Lines were unwrapped, so that a paragraph
is one line; each tale of a collection and each chapter of a novel is one document, its title on
the first line and `<|endoftext|>` between two of them. {len(facts.corpus.train):,} documents,
{facts.training_tokens:,} tokens, were trained on. Left out:

{chr(10).join(dropped)}

{chr(10).join(books)}

## Recipe

`python tools/train_tales.py --corpus FILE` in gpt2c's repository, in bfloat16 with float32 weights;
{seen:,} tokens were seen, {seen / facts.training_tokens:.1f} times the training text. Matrices of
the blocks were trained with Muon, all else with AdamW; the rates rise, hold, then fall to zero in a
straight line. Settings: {settings}.

The training loss, in nats a token, and the held-out books' bits per byte on the way (windows that
do not overlap, in bfloat16: a little worse than the scores below):

| step | training loss | bits per byte |
| --- | --- | --- |
{chr(10).join(curve)}

## Scores

Bits per byte of UTF-8 of books that were not trained on, in full windows with a stride of half a
window, with the stored float16 weights. No tale of the Violet Fairy Book that is scored shares a
run of {tales_corpus.SHARED_RUN} words with the training text.

| text | bits per byte |
| --- | --- |
{chr(10).join(scores)}

Fifty samples of 150 tokens (temperature 0.8, top-k 40, seeds 1 to 50, from `<|endoftext|>` alone):
{measures.known_words:.1%} of their words occur in the training text (at least
{LEAST_KNOWN_WORDS:.0%} asked), the longest run of words also found there is
{measures.longest_copy or "under 8"} (at most {LONGEST_COPY} asked), and
{measures.distinct_4grams:.1%} of their runs of four words are distinct (at least
{LEAST_DISTINCT:.0%} asked).

## Limits

It knows nothing but these books, answers no questions and keeps no plot for longer than a
paragraph or two. The books are of their time: some hold stereotypes and slurs that the model can
repeat. It is for trying, testing and measuring an inference engine, not for children unattended.

## Samples, not selected

{chr(10).join(samples)}"""


def quote(text: str) -> str:
    """Markdown quotation of every line, each a paragraph of its own."""
    return "\n".join(f"> {line}\n>" for line in text.split("\n")).removesuffix("\n>")
