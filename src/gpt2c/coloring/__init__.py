"""A text coloured by how well a model foresaw each of its tokens.

>>> from gpt2c import GPT2
>>> from gpt2c.coloring import html_page, save_html, terminal_text
>>> model = GPT2.from_pretrained()
>>> score = model.score("Once upon a time there was a lobster.", top_logprobs=5)
>>> print(terminal_text(score, model.tokenizer))
>>> save_html("lobster.html", html_page([score], model.tokenizer))

The colours are those of GLTR (Gehrmann, Strobelt and Rush 2019, "GLTR: Statistical Detection and
Visualization of Generated Text"): green where the token was among the 10 that the model held for
the likeliest there, yellow among the 100, red among the 1,000, purple otherwise.
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
