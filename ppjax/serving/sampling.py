"""How one request draws its tokens."""

from collections.abc import Mapping
import dataclasses


@dataclasses.dataclass(frozen=True)
class Dry:
    """Don't Repeat Yourself: what would lengthen a repetition is made unlikely.

    A token that would go on with a sequence of n tokens that the text ends with, and
    had before, loses `multiplier * base ** (n - allowed_length)` of its logit.

    Attributes:
        multiplier: 0 is off.
        base: how fast the penalty grows with the length.
        allowed_length: sequences shorter than this cost nothing.
        last_n: how many last tokens of prompt and answer are looked at; None for all.
        breakers: tokens at which a sequence ends.
    """

    multiplier: float = 0.0
    base: float = 1.75
    allowed_length: int = 2
    last_n: int | None = None
    breakers: frozenset[int] = frozenset()


MOST_BIASED = 512


@dataclasses.dataclass(frozen=True)
class Sampling:
    """One request's way from logits to a token, in the order of the attributes.

    Every value is checked by who makes it.

    Attributes:
        bias: added to the logits of tokens, at most `MOST_BIASED`.
        dry: see `Dry`.
        repetition_penalty: positive logits of tokens in prompt or answer are divided
            by it, negative ones multiplied.
        frequency_penalty: times how often the answer has a token, taken off its logit.
        presence_penalty: taken off the logits of tokens that the answer has.
        temperature: logits are divided by it; 0 takes the likeliest token, and what
            follows here has no effect.
        min_p: tokens less likely than this share of the likeliest are left out.
        top_k: only so many likeliest are kept; None for all.
        top_p: of these only the likeliest that together have this probability.
        xtc_probability: with this probability, all but the least likely of the tokens
            that have at least `xtc_threshold` are left out.
        xtc_threshold: see there; above 0.5 it never matters.
        seed: fixes the draws, with the number of the choice (`Job.choice`).
    """

    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    dry: Dry = Dry()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int = 0


GREEDY = Sampling(temperature=0.0)
