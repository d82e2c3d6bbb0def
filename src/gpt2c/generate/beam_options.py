"""Check the options of beam search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

from gpt2c.checks.options import integer, number
from gpt2c.checks.untrusted import show
from gpt2c.errors import OptionError, OptionTypeError
from gpt2c.forks import IMPORTING

if TYPE_CHECKING:
    from gpt2c.schedule.beams import SearchOptions

_MAX_BEAMS: Final = 1024
_MAX_LENGTH_PENALTY: Final = 50.0  # larger powers of a length could overflow a float
_MAX_DIVERSITY: Final = 1e4  # the same limit as logit_bias has


class BeamOptions(TypedDict, total=False):
    """Keyword arguments of beam search; GPT2.complete describes them."""

    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | str | None
    num_beam_groups: int | None
    diversity_penalty: float | None


# The values with which the options have no effect; transformers has the same.
NEUTRAL: Final[Mapping[str, object]] = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}


def check_beams(given: Mapping[str, Any]) -> SearchOptions | None:
    """Return the checked options of beam search, or None if num_beams is 1.

    `given` holds BeamOptions; a value of None means not given. Raises OptionError or
    OptionTypeError, naming the option, its value and its range.
    """
    options = {**NEUTRAL, **{name: value for name, value in given.items() if value is not None}}
    n_beams = integer("num_beams", options["num_beams"], 1, _MAX_BEAMS)
    rest = (
        number(
            "length_penalty",
            options["length_penalty"],
            -_MAX_LENGTH_PENALTY,
            _MAX_LENGTH_PENALTY,
        ),
        _early_stopping(options["early_stopping"]),
        integer("num_beam_groups", options["num_beam_groups"], 1, _MAX_BEAMS),
        number("diversity_penalty", options["diversity_penalty"], 0, _MAX_DIVERSITY),
    )
    if n_beams == 1:
        for name, neutral in NEUTRAL.items():
            if options[name] != neutral:
                raise OptionError(f"{name} is given without num_beams, which turns on beam search")
        return None
    with IMPORTING:
        from gpt2c.schedule.beams import SearchOptions  # lazily: most calls have no beams

    search = SearchOptions(n_beams, *rest)
    if n_beams % search.n_groups:
        raise OptionError(
            f"num_beam_groups is {search.n_groups}; it must divide num_beams, which is {n_beams}"
        )
    if search.n_groups > 1 and not search.diversity_penalty:
        raise OptionError(
            "num_beam_groups is given without a diversity_penalty above 0; without one, all groups "
            "would find the same texts"
        )
    if search.n_groups == 1 and search.diversity_penalty:
        raise OptionError(
            "diversity_penalty is given without num_beam_groups; it acts only between groups"
        )
    return search


def _early_stopping(value: object) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value == "never"):
        return value
    error_type = OptionError if isinstance(value, str) else OptionTypeError
    raise error_type(f"early_stopping is {show(value)}; it must be True, False or 'never'")
