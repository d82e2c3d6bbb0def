"""Writes the model card of "tales" from the measurements of its training."""

from __future__ import annotations

from dataclasses import dataclass

import tales_corpus
from check_tales import MAX_COPY, MIN_DISTINCT, MIN_KNOWN_WORDS, Measures


@dataclass(frozen=True)
class Facts:
    """What the card reports."""

    recipe: dict[str, object]
    parameters: int
    training_tokens: int
    corpus: tales_corpus.Corpus
    curve: list[dict[str, float]]  # step, train_loss, bits per byte of each book
    scores: dict[str, float]  # bits per byte of each held-out book and of "all"
    measures: Measures
    samples: list[str]  # for the seeds 1, 2, 3


def model_card(facts: Facts) -> str:
    """Return the text of MODEL_CARD.md."""
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

A small GPT-2 that writes children's prose in the style of a hundred years ago. It has
{facts.parameters:,} parameters
({recipe["layers"]} blocks, width {recipe["width"]}, {recipe["heads"]} heads,
{recipe["positions"]} positions, and its own
byte-level BPE of {recipe["vocab_size"]:,} tokens),
stored in float16. It was made for gpt2c, so that users can run a trained model without a download.

## Terms

The weights and the tokenizer are under the MIT licence, like gpt2c. The books they were trained
on are in the public domain in the United States.

## Data

The data are books from Project Gutenberg, without its headers. Lines were unwrapped, so each
paragraph is one line. Each tale of a collection and each chapter of a novel is one document, with
its title on the first line. `<|endoftext|>` separates documents. The training text has
{len(facts.corpus.train):,} documents and
{facts.training_tokens:,} tokens. These were left out:

{chr(10).join(dropped)}

These are the books:

{chr(10).join(books)}

## Recipe

`python tools/train_tales.py --corpus FILE` in gpt2c's repository trains the model, in bfloat16 with
float32 weights. Training used {seen:,} tokens, {seen / facts.training_tokens:.1f} times the
training text. Muon trained the matrices of the blocks, and AdamW trained everything else. The
learning rates rise, stay constant, then fall linearly to zero. These were the settings: {settings}.

The table shows the training loss, in nats per token, and the bits per byte of the held-out books
during training. These were computed in bfloat16 and in windows without overlap, so they are
slightly worse than the scores below.

| step | training loss | bits per byte |
| --- | --- | --- |
{chr(10).join(curve)}

## Scores

The table shows the bits per byte of UTF-8 of the held-out books, computed with the stored float16
weights, in full windows with a stride of half a window. No scored tale of the Violet
Fairy Book shares a run of {tales_corpus.SHARED_RUN} words with the training text.

| text | bits per byte |
| --- | --- |
{chr(10).join(scores)}

Fifty samples of 150 tokens were generated from `<|endoftext|>` alone (temperature 0.8, top-k 40,
seeds 1 to 50). In these samples:

- {measures.known_words:.1%} of the words occur in the training text (required:
  at least {MIN_KNOWN_WORDS:.0%});
- the longest run of words that also occurs in the training text has
  {measures.longest_copy or "under 8"} words (required: at most {MAX_COPY});
- {measures.distinct_4grams:.1%} of the runs of four words are distinct (required:
  at least {MIN_DISTINCT:.0%}).

## Limits

The model knows only these books. It cannot answer questions, and it loses the plot after a
paragraph or two. The books are of their time: some contain stereotypes and slurs, which the model
can repeat. Use it to try, test and measure an inference engine, not for children unattended.

## Unselected samples

{chr(10).join(samples)}"""


def quote(text: str) -> str:
    """Quote a text in Markdown, each line as a paragraph of its own."""
    return "\n".join(f"> {line}\n>" for line in text.split("\n")).removesuffix("\n>")
