"""The tokens that end an answer: in chat, rewriting, evaluation and exports alike."""

from typing import Any

import transformers

from ppjax.base import errors
from ppjax.data import chat

# Templates that print a date have it before the answer.
_ANY_DATE = '2026-01-01'


def stop_ids(
    generation_config: dict[str, Any],
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> frozenset[int]:
    """The tokens that end an answer.

    Chat models often end a turn with a token that is not the tokenizer's end of
    text. `generation_config` should list it; finetunes that took another template,
    and GGUF files, do not always, and would run on into an invented dialogue.

    Args:
        generation_config: with `eos_token_id`, an int or a list, or without.
        tokenizer: its own end-of-text token counts too, and the token with which its
            chat template ends an answer.

    Raises:
        InputError: if `eos_token_id` is neither.
    """
    listed = generation_config.get('eos_token_id')
    ids = listed if isinstance(listed, list) else [listed]
    found = [index for index in (*ids, tokenizer.eos_token_id) if index is not None]
    if not all(type(index) is int for index in found):
        raise errors.InputError(
            f'generation_config: eos_token_id must be an integer or a list of '
            f'integers, got {listed!r}.'
        )
    if tokenizer.chat_template:
        end = chat.ChatRenderer(tokenizer, date=_ANY_DATE).end_of_answer()
        found += [] if end is None else [end]
    return frozenset(found)


def with_stop_ids(
    generation_config: dict[str, Any],
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """A generation_config whose `eos_token_id` lists all that `stop_ids` finds.

    What it listed comes first, as it stood.
    """
    listed = generation_config.get('eos_token_id')
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    more = sorted(stop_ids(generation_config, tokenizer) - set(ids))
    if not more:
        return generation_config
    whole = [*ids, *more]
    return generation_config | {'eos_token_id': whole[0] if len(whole) == 1 else whole}
