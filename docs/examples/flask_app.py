"""A web app on Flask: GET or POST /complete returns the completion of a prompt.

    pip install flask
    python docs/examples/flask_app.py
    curl 'http://127.0.0.1:5000/complete?prompt=Once+upon+a+time'

Flask runs each request in a thread of its own. Requests that overlap share the model's forward
passes (docs/scheduler.md). The app does nothing for this.
"""

from __future__ import annotations

from flask import Flask, request

from gpt2c import GPT2

app = Flask(__name__)
model = GPT2.from_pretrained()


@app.route("/complete", methods=["GET", "POST"])
def complete() -> dict[str, str]:
    """Return the completion of `prompt`. Equal seeds give equal completions."""
    given = request.values
    n_new, seed = int(given.get("max_new_tokens", 40)), int(given.get("seed", 0))
    text = model.generate(given["prompt"], max_new_tokens=n_new, temperature=0.8, seed=seed)
    return {"text": text}


@app.errorhandler(ValueError)  # gpt2c.OptionError and gpt2c.ContextError are ValueErrors
def refuse(error: ValueError) -> tuple[dict[str, str], int]:
    """Tell the client what is wrong with its request."""
    return {"error": str(error)}, 400


if __name__ == "__main__":
    app.run()
