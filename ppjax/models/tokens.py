"""Token ids that a model can look up."""

from collections.abc import Sequence

import transformers

from ppjax.base import errors


def refuse_unembedded(
    ids: Sequence[int],
    vocab_size: int,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
) -> None:
    """Refuses tokens that have no row in the embedding.

    Looking one up would give NaN, and from there a silent nonsense answer.

    Args:
        ids: of one text.
        vocab_size: rows of the embedding.
        tokenizer: to name the token by its text.

    Raises:
        InputError: naming the largest of them.
    """
    if not len(ids) or 0 <= min(ids) <= max(ids) < vocab_size:
        return
    index = max(ids) if max(ids) >= vocab_size else min(ids)
    text = '' if tokenizer is None else tokenizer.convert_ids_to_tokens(index)
    named = f' ({text!r})' if text else ''
    raise errors.InputError(
        f'A text has token {index}{named}, and the model embeds {vocab_size} tokens: '
        'its tokenizer belongs to another model, or was extended without it.'
    )
