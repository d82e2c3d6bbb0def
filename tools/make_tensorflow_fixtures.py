"""Makes tests/fixtures/formats/tensorflow*: a small model as OpenAI's scripts save one.

Needs tensorflow and safetensors; run from the repository's root:

    python tools/make_tensorflow_fixtures.py

The weights come from tests/fixtures/transformers/tiny, whose logits are in its expected.json. They
have the names and shapes of OpenAI's model.py, and tf.train.Saver saves them.
"""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf
from fixtures import FIXTURES, new_folder
from safetensors.numpy import load_file

TINY = FIXTURES / "transformers" / "tiny"
OUT = FIXTURES / "formats"


def openai_name(name: str) -> str:
    name = name.removeprefix("transformer.")
    name = name.replace("h.", "h", 1) if name.startswith("h.") else name
    if name in ("wte.weight", "wpe.weight"):
        return f"model/{name[:3]}"
    leaf = {"weight": "g" if "ln_" in name else "w", "bias": "b"}[name.rpartition(".")[2]]
    return "model/" + name.rpartition(".")[0].replace(".", "/") + "/" + leaf


def save(name: str, prefix: str, *, training: bool) -> None:
    folder = new_folder(OUT / name)
    config = json.loads((TINY / "config.json").read_text())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for stored, array in load_file(TINY / "model.safetensors").items():
            is_kernel = array.ndim == 2 and ".h." in f".{stored}"
            values = array[None] if is_kernel else array
            tf.compat.v1.get_variable(openai_name(stored), initializer=values.astype(np.float32))
        if training:
            tf.compat.v1.train.get_or_create_global_step()
            variables = tf.compat.v1.trainable_variables()
            loss = tf.add_n([tf.reduce_sum(variable) for variable in variables])
            tf.compat.v1.train.AdamOptimizer().minimize(loss)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / prefix), write_meta_graph=False)
    hparams = {
        "n_vocab": config["vocab_size"], "n_ctx": config["n_positions"],
        "n_embd": config["n_embd"], "n_head": config["n_head"], "n_layer": config["n_layer"],
    }  # fmt: skip
    (folder / "hparams.json").write_text(json.dumps(hparams))
    (folder / "made_with.json").write_text(json.dumps({"tensorflow": tf.__version__}) + "\n")


def main() -> None:
    save("tensorflow", "model.ckpt", training=False)
    save("tensorflow_training", "model-1000", training=True)


if __name__ == "__main__":
    main()
