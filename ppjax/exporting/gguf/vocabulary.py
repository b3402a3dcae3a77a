"""A tokenizer as GGUF metadata.

Sources: the GGUF specification (ggml, docs/gguf.md), llama.cpp's convert_hf_to_gguf.
"""

import json
from typing import Any

import gguf
import transformers

from ppjax.base import errors
from ppjax.data import chat
from ppjax.models import gguf_pre, gguf_tokenizer

_ANY_DATE = '2026-01-01'


def metadata(
    tokenizer: transformers.PreTrainedTokenizerBase, vocab_size: int
) -> dict[str, Any]:
    """The keys that say what a tokenizer does.

    Ids that the model embeds and no token has are filled with unused ones. Where the
    chat template ends a turn with another token than the end of text, it is named too.

    Args:
        tokenizer: byte-level BPE of a family that GGUF has a name for.
        vocab_size: tokens that the model embeds.

    Raises:
        InputError: if it is another kind, has more tokens than the model, or does
            something to its tokens that GGUF cannot say.
    """
    rules = _rules(tokenizer)
    pre = gguf_pre.name_of(rules)
    if pre is None:
        raise errors.InputError(
            f'The tokenizer splits text as none of the families does whose name in '
            f'GGUF (tokenizer.ggml.pre) is known: {", ".join(gguf_pre.FAMILIES)}. '
            'llama.cpp would make other tokens of the same text, so no file is written.'
        )
    added = _added(tokenizer)
    tokens, kinds = _listed(tokenizer, added, vocab_size)
    found: dict[str, Any] = {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': pre,
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': kinds,
        'tokenizer.ggml.merges': [
            merge if isinstance(merge, str) else ' '.join(merge)
            for merge in rules['model']['merges']
        ],
    }
    for name, key in gguf_tokenizer.NAMED_TOKENS.items():
        index = getattr(tokenizer, f'{name}_id')
        if index is not None:
            found[key] = index
    plain = tokenizer.encode('a')
    for side, place in (('bos', 0), ('eos', -1)):
        own = found.get(f'tokenizer.ggml.{side}_token_id')
        found[f'tokenizer.ggml.add_{side}_token'] = own is not None and (
            plain[place] == own
        )
    if tokenizer.chat_template:
        # Of several the one that is used where none is named.
        renderer = chat.ChatRenderer(tokenizer, date=_ANY_DATE)
        renderer.prompt([{'role': 'user', 'content': 'a'}])  # Can it be read at all?
        found['tokenizer.chat_template'] = tokenizer.get_chat_template()
        end = renderer.end_of_answer()
        if end not in (None, found.get('tokenizer.ggml.eos_token_id')):
            found['tokenizer.ggml.eot_token_id'] = end
    return found


def _rules(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, 'backend_tokenizer', None)
    rules = {} if backend is None else json.loads(backend.to_str())
    if rules.get('model', {}).get('type') != 'BPE':
        kind = rules.get('model', {}).get('type') or type(tokenizer).__name__
        raise errors.InputError(
            f'The tokenizer is a {kind} model; GGUF files are written of byte-level '
            'BPE alone.'
        )
    return rules


def _added(
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> dict[int, gguf.TokenType]:
    found = {}
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.lstrip or token.rstrip or token.single_word:
            raise errors.InputError(
                f'The added token {token.content!r} takes or needs something of the '
                'text around it (lstrip, rstrip, single_word), which GGUF cannot say.'
            )
        found[index] = (
            gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
        )
    return found


def _listed(
    tokenizer: transformers.PreTrainedTokenizerBase,
    added: dict[int, gguf.TokenType],
    vocab_size: int,
) -> tuple[list[str], list[int]]:
    """Token and type of every id that the model embeds."""
    vocab = tokenizer.get_vocab()
    beyond = [token for token, index in vocab.items() if index >= vocab_size]
    if beyond:
        raise errors.InputError(
            f'The tokenizer has {len(beyond)} tokens beyond the {vocab_size} that the '
            f'model embeds ({min(beyond)!r} among them): it is of another model, or '
            'was extended without it.'
        )
    of_id = {index: token for token, index in vocab.items()}
    tokens, kinds = [], []
    for index in range(vocab_size):
        if index in of_id:
            tokens.append(of_id[index])
            kinds.append(int(added.get(index, gguf.TokenType.NORMAL)))
            continue
        filler = f'[PAD{index}]'
        while filler in vocab:
            filler += '_'
        tokens.append(filler)
        kinds.append(int(gguf.TokenType.UNUSED))
    return tokens, kinds
