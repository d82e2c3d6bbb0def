"""Encode texts and prompts to checked ids, and decode single ids to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2c.config import GPT2_VOCAB_SIZE, GPT2Config
from gpt2c.errors import OptionError, OptionTypeError, TokenizerError
from gpt2c.generate.prompts import Prompt, check_ids, is_single
from gpt2c.text.tokenizer import MissingTokenizer, Tokenizer


class Encoder:
    """Encodes prompts and texts to checked ids, int32 [n], and returns the bytes of ids."""

    def __init__(self, config: GPT2Config, tokenizer: Tokenizer | MissingTokenizer | None) -> None:
        """Make an encoder. A tokenizer of None means GPT-2's own, which is made lazily."""
        self._config = config
        # None until the lazy tokenizer is made.
        self.loaded_tokenizer = tokenizer
        self._word_ends: tuple[object, NDArray[np.intp]] | None = None  # and their tokenizer

    @property
    def tokenizer(self) -> Tokenizer | MissingTokenizer:
        """The tokenizer. GPT-2's own takes 0.15 s to make, and calls with ids do not need it."""
        if self.loaded_tokenizer is None:
            self.loaded_tokenizer = Tokenizer.gpt2()
        return self.loaded_tokenizer

    @property
    def n_padding(self) -> int:
        """The number of padding ids, which the model has and its tokenizer lacks.

        Without a tokenizer it is 0, because it is unknown.
        """
        given = self.loaded_tokenizer
        if isinstance(given, MissingTokenizer):
            return 0
        known = GPT2_VOCAB_SIZE if given is None else given.n_vocab
        return max(self._config.vocab_size - known, 0)

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes of a token; b"" if the tokenizer lacks the token."""
        tokenizer = self.tokenizer
        return tokenizer.token_bytes(id) if id < getattr(tokenizer, "n_vocab", id + 1) else b""

    def encode(self, prompt: Prompt, where: str) -> NDArray[np.int32]:
        """Return the ids of a prompt, int32 [n]; a special token's name in a text becomes its id.

        Raises OptionError, OptionTypeError or TokenizerError, with a message that begins with
        `where`.
        """
        ids = self._text_ids(prompt, where, special=True) if isinstance(prompt, str) else prompt
        return check_ids(ids, self._config.vocab_size, where)

    def encode_for_scoring(
        self, text: Any, index: int | str, special: bool, start: int | None
    ) -> NDArray[np.int32]:
        """Return the ids of a text to score, int32 [n].

        `index` is the text's place among the call's texts, for messages, or a str with which they
        begin. If `special`, the name of a special token becomes its id; otherwise it is encoded as
        plain characters. `start` is the id that the caller feeds before these ids, or None. Raises
        the errors of `encode`.
        """
        where = index if isinstance(index, str) else f"text {index}"
        if not is_single(text) and len(text):
            raise OptionTypeError(f"{where} is a list of texts; it must be one text, or token ids")
        ids = text
        if isinstance(text, str):
            ids = self._text_ids(text, where, special)
            # If the tokenizer also adds this BOS token, drop one: the token must not come twice.
            if start is not None and getattr(self.tokenizer, "prefix_ids", ())[:1] == (start,):
                ids = ids[1:]
        return check_ids(ids, self._config.vocab_size, where)

    def encode_continuation(self, text: Any, index: int, special: bool) -> NDArray[np.int32]:
        """Return the ids of a text that follows a context, int32 [n].

        The tokens that the tokenizer puts before every text are left out; otherwise this is
        `encode_for_scoring`.
        """
        ids = self.encode_for_scoring(text, index, special, None)
        prefix = getattr(self.tokenizer, "prefix_ids", ()) if isinstance(text, str) else ()
        return ids[len(prefix) :]

    def start_id(self, where: str) -> int:
        """Return the id to feed before anything else: BOS, or else EOS.

        Raises OptionError if the model has neither, with a message that begins with `where`.
        """
        if self._config.bos_token_id is not None:
            return self._config.bos_token_id
        for id in [self.tokenizer.eot_id, *sorted(self._config.eos_token_ids)]:
            if id is not None and id < self._config.vocab_size:
                return id
        raise OptionError(f"{where}: this model has no BOS token and no EOS token to start from")

    def word_ends(self) -> NDArray[np.intp]:
        """Return the ids that may follow a whole word: the tokens that do not continue it.

        These are the EOS tokens, and the tokens whose text begins with anything but a letter, a
        digit or part of a character. Without a tokenizer they are all ids.
        """
        tokenizer, n_vocab = self.tokenizer, self._config.vocab_size
        if isinstance(tokenizer, MissingTokenizer):
            return np.arange(n_vocab)
        if self._word_ends is None or self._word_ends[0] is not tokenizer:
            ends = {id for id in range(n_vocab) if _ends_word(self.token_bytes(id))}
            found = np.array(sorted(ends | set(self._config.eos_token_ids)), dtype=np.intp)
            self._word_ends = tokenizer, found
        return self._word_ends[1]

    def _text_ids(self, text: str, where: str, special: bool) -> list[int]:
        try:
            return self.tokenizer.encode(text, special=special)
        except TokenizerError as error:
            raise TokenizerError(f"{where}: {error}") from None


def _ends_word(token: bytes) -> bool:
    """Return whether a word is whole if this token follows it."""
    for n in range(1, min(len(token), 4) + 1):  # a character has 1 to 4 bytes
        try:
            first = token[:n].decode()
        except UnicodeDecodeError:
            continue
        return not first.isalnum()
    return False
