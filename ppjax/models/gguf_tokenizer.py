"""The tokenizer that a GGUF file carries in its metadata.

A GGUF file lists a byte-level BPE vocabulary and its merges, and names the text
splitting that goes with them (`tokenizer.ggml.pre`, see `gguf_pre`). transformers' own
GGUF conversion leaves SmolLM's digit splitting and Llama 3's ignore_merges out, so its
token ids differ from the ones these models were trained on.
"""

from typing import Any

import gguf
import tokenizers
from tokenizers import decoders, models, processors
import transformers

from ppjax.base import errors
from ppjax.models import gguf_pre, gguf_reader

# Found whole in a text. Special ones are hidden by `skip_special_tokens`, the
# user-defined are text.
_SPECIAL_TYPES = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
_ADDED_TYPES = (*_SPECIAL_TYPES, gguf.TokenType.USER_DEFINED)

NAMED_TOKENS = {
    'bos_token': 'tokenizer.ggml.bos_token_id',
    'eos_token': 'tokenizer.ggml.eos_token_id',
    'unk_token': 'tokenizer.ggml.unknown_token_id',
    'pad_token': 'tokenizer.ggml.padding_token_id',
}


def tokenizer_from_gguf(
    reader: gguf_reader.GgufReader,
) -> transformers.PreTrainedTokenizerFast:
    """Builds a GGUF file's tokenizer, with the chat template if there is one.

    Ids are the GGUF's. A plain encode adds BOS (and EOS) where the file says so,
    or, if it does not say, where the family's original tokenizer does: Llama 3.
    Saved with `save_pretrained`, the tokenizer loads with AutoTokenizer.

    Args:
        reader: of the file.

    Returns:
        A tokenizer that pads on the right and whose `model_max_length` is the
        model's context length.

    Raises:
        InputError: if the tokenizer is not byte-level BPE of a known family, or
            its metadata are missing or contradict each other.
    """
    try:
        return _built(reader)
    except errors.InputError:
        raise
    except Exception as error:  # tokenizers' Rust core, whatever went wrong.
        raise reader.error(
            'carries a tokenizer that cannot be built '
            f'({" ".join(str(error).split())[:200]}); download it again.'
        ) from error


def _built(reader: gguf_reader.GgufReader) -> transformers.PreTrainedTokenizerFast:
    family = _family(reader)
    tokens = _string_list(reader, 'tokenizer.ggml.tokens')
    types = _token_types(reader, len(tokens))
    named = _named_tokens(reader, tokens)

    backend = tokenizers.Tokenizer(_bpe(reader, tokens, types, family))
    if (normalizer := gguf_pre.normalizer(family)) is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = gguf_pre.pre_tokenizer(family)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = _post_processor(reader, family, tokens)
    backend.add_tokens(
        [
            tokenizers.AddedToken(
                token, normalized=False, special=kind in _SPECIAL_TYPES
            )
            for token, kind in zip(tokens, types, strict=True)
            if kind in _ADDED_TYPES
        ]
    )

    template = reader.metadata('tokenizer.chat_template')
    if template is not None and not isinstance(template, str):
        raise reader.error(
            'has something other than text under tokenizer.chat_template; convert the '
            'original model again.'
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # For messages; saved tokenizers do not carry it.
        name_or_path=str(reader.path),
        chat_template=template,
        model_max_length=reader.hf_config['max_position_embeddings'],
        # Llama and Qwen models take no token_type_ids.
        model_input_names=['input_ids', 'attention_mask'],
        # Cleaning up would alter "a ." on decoding.
        clean_up_tokenization_spaces=False,
        padding_side='right',
        **named,
    )


def _family(reader: gguf_reader.GgufReader) -> str:
    model = reader.metadata('tokenizer.ggml.model')
    if model != 'gpt2':
        raise reader.error(
            f'has a tokenizer of model {model!r}; only gpt2 (byte-level BPE) is '
            f'implemented. Use the original Hugging Face directory.'
        )
    pre = reader.metadata('tokenizer.ggml.pre')
    if pre not in gguf_pre.FAMILIES:
        raise reader.error(
            f'splits text as {pre!r} (tokenizer.ggml.pre); implemented are '
            f'{", ".join(gguf_pre.FAMILIES)}. Use the original Hugging Face directory.'
        )
    return gguf_pre.FAMILIES[pre]


def _string_list(reader: gguf_reader.GgufReader, key: str) -> list[str]:
    value = reader.metadata(key)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise reader.error(
            f'has no list of strings under {key}; convert the original model again.'
        )
    return value


def _token_types(reader: gguf_reader.GgufReader, num_tokens: int) -> list[int]:
    key = 'tokenizer.ggml.token_type'
    types = reader.metadata(key)
    if not isinstance(types, list) or len(types) != num_tokens:
        raise reader.error(
            f'has no {key} for each of its {num_tokens} tokens; convert the original '
            f'model again.'
        )
    if unknown := sorted(set(types) - set(gguf.TokenType)):
        raise reader.error(
            f'has unknown token types {unknown} under {key}; download it again.'
        )
    vocab_size = reader.hf_config['vocab_size']
    if num_tokens > vocab_size:
        raise reader.error(
            f'lists {num_tokens} tokens but embeds {vocab_size}; download it again.'
        )
    return types


def _token_at(
    reader: gguf_reader.GgufReader, key: str, tokens: list[str]
) -> str | None:
    index = reader.metadata(key)
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < len(tokens):
        raise reader.error(
            f'has {index!r} under {key}, which is none of its {len(tokens)} tokens; '
            f'convert the original model again.'
        )
    return tokens[index]


def _named_tokens(reader: gguf_reader.GgufReader, tokens: list[str]) -> dict[str, Any]:
    named = {}
    for name, key in NAMED_TOKENS.items():
        token = _token_at(reader, key, tokens)
        if token is not None:
            named[name] = tokenizers.AddedToken(token, normalized=False, special=True)
    return named


def _bpe(
    reader: gguf_reader.GgufReader, tokens: list[str], types: list[int], family: str
) -> models.BPE:
    # Unused tokens pad the embedding to a round size; the original has none.
    vocab = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != gguf.TokenType.UNUSED
    }
    if len(vocab) != len(tokens) - types.count(gguf.TokenType.UNUSED):
        raise reader.error('lists a token twice; convert the original model again.')
    merges = []
    for merge in _string_list(reader, 'tokenizer.ggml.merges'):
        left, _, right = merge.partition(' ')
        # Checked here, since tokenizers' own message does not name the merge.
        if not {left, right, left + right} <= vocab.keys():
            raise reader.error(
                f'has the merge {merge!r}, whose parts or result are no tokens; '
                f'download it again.'
            )
        merges.append((left, right))
    return models.BPE(
        vocab=vocab, merges=merges, ignore_merges=gguf_pre.ignores_merges(family)
    )


def _post_processor(
    reader: gguf_reader.GgufReader, family: str, tokens: list[str]
) -> processors.PostProcessor:
    """Offsets that keep a token's leading space, and BOS or EOS where wanted."""
    byte_level = processors.ByteLevel(trim_offsets=False)
    before: list[str] = []
    after: list[str] = []
    ids: list[tuple[str, int]] = []
    for name, default, side in (
        ('bos', family == 'llama3', before),
        ('eos', False, after),
    ):
        if not reader.metadata(f'tokenizer.ggml.add_{name}_token', default):
            continue
        key = f'tokenizer.ggml.{name}_token_id'
        token = _token_at(reader, key, tokens)
        if token is None:
            raise reader.error(
                f'wants {name.upper()} added to every text but has no {key}; '
                f'convert the original model again.'
            )
        side.append(token)
        ids.append((token, reader.metadata(key)))
    if not ids:
        return byte_level

    def around(sequence: str, type_id: int) -> list[str]:
        return [f'{part}:{type_id}' for part in (*before, sequence, *after)]

    template = processors.TemplateProcessing(
        single=around('$A', 0),
        pair=around('$A', 0) + around('$B', 1),
        special_tokens=ids,
    )
    return processors.Sequence([byte_level, template])
