"""How families of byte-level BPE split text, and what GGUF calls that.

A GGUF file names its splitting (`tokenizer.ggml.pre`); a tokenizer.json spells it out.
What a name stands for is written here as the original model's tokenizer.json has it,
for reading and for writing alike.
"""

import json
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Llama 3's but for digits, which stand alone.
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r'\p{N}{1,3}', r'\p{N}')

# `tokenizer.ggml.pre` -> the family whose tokenizer.json it was recognised from; a
# family's first name is the one that is written. Converters write "default" when they
# recognised none; it is read as GPT-2's.
FAMILIES = {
    'gpt-2': 'gpt2',
    'llama-bpe': 'llama3',
    'llama-v3': 'llama3',
    'llama3': 'llama3',
    'qwen2': 'qwen2',
    'smollm': 'smollm',
}


def ignores_merges(family: str) -> bool:
    """Whether a whole word that is a token is one, whatever merges lead to."""
    return family == 'llama3'


def normalizer(family: str) -> normalizers.Normalizer | None:
    return normalizers.NFC() if family == 'qwen2' else None


def pre_tokenizer(family: str) -> pre_tokenizers.PreTokenizer:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if family == 'gpt2':
        return gpt2
    if family == 'smollm':
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, gpt2])
    pattern = _LLAMA3_SPLIT if family == 'llama3' else _QWEN2_SPLIT
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def name_of(rules: dict[str, Any]) -> str | None:
    """What GGUF calls the splitting of a tokenizer; None if that is not known.

    Args:
        rules: the parsed tokenizer.json.
    """
    named = dict.fromkeys(FAMILIES.values())
    for family in named:
        backend = tokenizers.Tokenizer(
            models.BPE(vocab={}, merges=[], ignore_merges=ignores_merges(family))
        )
        if (own := normalizer(family)) is not None:
            backend.normalizer = own
        backend.pre_tokenizer = pre_tokenizer(family)
        if _splitting(json.loads(backend.to_str())) == _splitting(rules):
            return next(pre for pre, of in FAMILIES.items() if of == family)
    return None


def _splitting(rules: dict[str, Any]) -> tuple[Any, ...]:
    """What of a tokenizer.json decides into which pieces a text falls."""
    model = rules['model']
    return (
        model.get('type'),
        bool(model.get('ignore_merges')),
        bool(model.get('byte_fallback')),
        _steps(rules.get('normalizer'), 'normalizers'),
        _steps(rules.get('pre_tokenizer'), 'pretokenizers'),
    )


def _steps(rule: Any, inner: str) -> list[Any]:
    """Steps one after the other, without what changes only reported offsets."""
    if not isinstance(rule, dict):
        return []
    if rule.get('type') == 'Sequence':
        return [step for part in rule.get(inner, ()) for step in _steps(part, inner)]
    return [{key: value for key, value in rule.items() if key != 'trim_offsets'}]
