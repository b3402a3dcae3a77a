"""Default peak learning rates of recovery.

By what is trained and by the size of what is left of the model. Those of small models
were found on rows for choosing, of SmolLM2-135M (RESULTS.md, "Ways to a small model");
those of larger ones are the paper's (A.1), and of gains nobody has others.
"""

# Parameters, from which on a model counts as large.
SMALL = 10**9
# Of a small model, of a large one. Of adapters larger than of weights: they start from
# nothing. A gain moves all of its channel by its share, and there are few.
_RATES = {'full': (1e-4, 5e-5), 'lora': (2e-3, 1e-4), 'gains': (1e-2, 1e-2)}
# Each block is LoRA.
_RATES['neeko'] = _RATES['lora']


def usual(method: str, parameters: int) -> float:
    """The peak rate where none is given.

    Args:
        method: full, lora, neeko or gains.
        parameters: of the model that is recovered.
    """
    return _RATES[method][parameters >= SMALL]


def text() -> str:
    """All of them, for people."""
    (full, full_large), (lora, lora_large), (gains, _) = (
        _RATES[name] for name in ('full', 'lora', 'gains')
    )
    return (
        f'{full:g} below {SMALL:,} parameters and {full_large:g} from there on, '
        f'{lora:g} and {lora_large:g} with LoRA (of --neeko too), {gains:g} with --gains'
    )
