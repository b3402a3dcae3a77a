"""The prompts of many queries under several personas, as tokens.

All prompts of one persona start with the same tokens, and a query's own tokens
are the same under every persona, so each is rendered and tokenised once.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from ppjax.base import errors
from ppjax.data import calibration, chat
from ppjax.models import shared_prefix

# Queries on which it is checked that personas differ in the prefix alone.
_PROBES = 8


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """Prompts as prefix (of the persona) + suffix (of the query).

    Attributes:
        prefixes: token ids, one tuple a persona.
        suffixes: int32 token ids of each query that was rendered; none is empty.
        rendered: which of the queries those are, ascending.
        too_long: how many queries were left out for their length.
        refused: how many were left out because they hold the model's own markup.
    """

    prefixes: tuple[tuple[int, ...], ...]
    suffixes: tuple[np.ndarray, ...]
    rendered: tuple[int, ...]
    too_long: int
    refused: int


def render(
    renderer: chat.ChatRenderer,
    system_prompts: Sequence[str],
    queries: Sequence[str],
    *,
    max_length: int,
) -> PromptTokens:
    """Renders every query under every persona, up to where the answer starts.

    Args:
        renderer: the model's chat template.
        system_prompts: the persona prompts; the target's first.
        queries: what users ask.
        max_length: longer prompts, in tokens and under any persona, are left out.

    Raises:
        InputError: if no query is left, or the template writes a query differently
            under different personas.
    """
    target = system_prompts[0]
    prompts: list[list[int]] = []
    rendered: list[int] = []
    refused, reason = 0, ''
    for index, query in enumerate(queries):
        try:
            tokens = renderer.prompt(calibration.conversation(target, query))
        except errors.InputError as error:
            refused, reason = refused + 1, str(error)
            continue
        prompts.append(tokens)
        rendered.append(index)
    if not prompts:
        raise errors.InputError(
            f'None of {len(queries)} queries can be rendered; the last: {reason}'
        )
    cut = shared_prefix.shared_length(prompts)
    suffixes = [np.asarray(prompt[cut:], np.int32) for prompt in prompts]
    prefixes = [tuple(prompts[0][:cut])]
    probes = np.linspace(0, len(prompts) - 1, min(_PROBES, len(prompts))).astype(int)
    for system in system_prompts[1:]:
        heads = set()
        for probe in probes:
            tokens = renderer.prompt(
                calibration.conversation(system, queries[rendered[probe]])
            )
            own = len(suffixes[probe])
            if tokens[-own:] != suffixes[probe].tolist():
                raise errors.InputError(
                    'The chat template writes a question differently under different '
                    'system messages; sensitivity cannot be compared across them.'
                )
            heads.add(tuple(tokens[:-own]))
        if len(heads) > 1:
            raise errors.InputError(
                'The chat template writes a system message differently before '
                'different questions; sensitivity cannot be compared across them.'
            )
        prefixes.append(heads.pop())
    room = max_length - max(len(prefix) for prefix in prefixes)
    short = [number for number, own in enumerate(suffixes) if len(own) <= room]
    if not short:
        raise errors.InputError(
            f'None of {len(queries)} queries fits --max_length={max_length} behind '
            f'the persona prompts, which take up to {max_length - room} tokens.'
        )
    return PromptTokens(
        prefixes=tuple(prefixes),
        suffixes=tuple(suffixes[number] for number in short),
        rendered=tuple(rendered[number] for number in short),
        too_long=len(suffixes) - len(short),
        refused=refused,
    )
