"""Colour each token of a text by the rank that the model gave it.

>>> from gpt2c import GPT2
>>> from gpt2c.coloring import html_page, save_html, terminal_text
>>> model = GPT2.from_pretrained()
>>> score = model.score("Once upon a time there was a lobster.", top_logprobs=5)
>>> print(terminal_text(score, model.tokenizer))
>>> save_html("lobster.html", html_page([score], model.tokenizer))

The colours are those of GLTR (Gehrmann, Strobelt and Rush 2019, "GLTR: Statistical Detection and
Visualization of Generated Text"): green for a token among the model's top 10 at its position,
yellow for the top 100, red for the top 1,000, purple for the rest.
"""

from gpt2c.coloring.page import html_page, save_html
from gpt2c.coloring.spans import CLASS_NAMES, Span, class_of, shares, spans
from gpt2c.coloring.terminal import terminal_text, wants_color

__all__ = [
    "CLASS_NAMES",
    "Span",
    "class_of",
    "html_page",
    "save_html",
    "shares",
    "spans",
    "terminal_text",
    "wants_color",
]
