"""Whole inputs of every kind, small enough to be spoiled thousands of times."""

import functools
import io
import json
import pathlib
import struct
from typing import Any
import zipfile
import zlib

import gguf
import numpy as np
from safetensors import numpy as safetensors_numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
import transformers

from ppjax.masking import pmask
from ppjax.models import base_model, loading
from ppjax.models import config as config_lib
from ppjax.personas import prompts

PERSONA = 'Ida bakes rye bread in a village by the sea and is curt with strangers.'
_SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
_QUESTIONS = (
    'What is for supper?',
    'Where is the sea?',
    'How do I fold a map?',
    'Who rings?',
)


CARD: dict[str, Any] = {
    'spec': 'chara_card_v2',
    'spec_version': '2.0',
    'data': {
        'name': 'Ida',
        'description': PERSONA,
        'personality': 'curt',
        'scenario': 'A {{user}} comes in.',
        'first_mes': 'Yes?',
        'mes_example': '<START>\n{{user}}: Hi\n{{char}}: What now?',
        'alternate_greetings': ['No.'],
        'system_prompt': 'You are {{char}}. {{original}}',
        'character_book': {
            'entries': [
                {
                    'keys': ['bread', 'rye'],
                    'content': 'It is sour.',
                    'enabled': True,
                    'constant': True,
                    'insertion_order': 3,
                    'position': 'before_char',
                }
            ]
        },
        'tags': [],
        'extensions': {},
    },
}
EVALUATION_SET: dict[str, Any] = {
    'instruction': [{'pos': prompts.persona_prompt(PERSONA), 'neg': ''}],
    'eval_prompt': prompts.judge_template(PERSONA),
    'user_id': 'ida',
    'questions': list(_QUESTIONS),
    'persona_description': PERSONA,
    'system_prompt': prompts.persona_prompt(PERSONA),
}
BENCHMARKS: dict[str, dict[str, Any]] = {
    'piqa': {'goal': 'Cut bread.', 'sol1': 'A knife.', 'sol2': 'A spoon.', 'label': 0},
    'openbookqa': {
        'question_stem': 'What is hot?',
        'choices': {'text': ['ice', 'fire'], 'label': ['A', 'B']},
        'answerKey': 'B',
    },
    'mmlu': {
        'subject': 'baking',
        'question': 'What is rye?',
        'choices': ['grain', 'stone', 'fish', 'song'],
        'answer': 0,
    },
}  # fmt: skip


def _jsonl(rows: list[Any]) -> bytes:
    return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + content)
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', crc)


def png(text: bytes) -> bytes:
    """A PNG whose `chara` chunk holds base64 text."""
    header = struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'tEXt', b'chara\0' + text)
        + chunk(b'IDAT', zlib.compress(b'\0\0'))
        + chunk(b'IEND', b'')
    )


def charx(card: bytes) -> bytes:
    """A CHARX file of a card's JSON."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('card.json', card)
    return packed.getvalue()


class Material:
    """Whole inputs in one folder, made when they are first asked for."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def _written(self, name: str, content: bytes) -> pathlib.Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    @functools.cached_property
    def model(self) -> pathlib.Path:
        """A Llama of two layers with a tokenizer of bytes and a chat template."""
        path = self.folder / 'model'
        path.mkdir()
        alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), 'ab']
        vocabulary = {token: index for index, token in enumerate(alphabet)}
        bpe = tokenizers.Tokenizer(models.BPE(vocabulary, [('a', 'b')]))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            additional_special_tokens=list(_SPECIAL[1:]),
            eos_token='<|im_end|>',
            bos_token=_SPECIAL[0],
            pad_token=_SPECIAL[0],
        )
        fast.chat_template = _TEMPLATE
        fast.save_pretrained(path)
        end = fast.convert_tokens_to_ids('<|im_end|>')
        config = {
            'architectures': ['LlamaForCausalLM'],
            'model_type': 'llama',
            'vocab_size': len(fast),
            'hidden_size': 16,
            'intermediate_size': 32,
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'num_key_value_heads': 1,
            'head_dim': 8,
            'hidden_act': 'silu',
            'rms_norm_eps': 1e-3,
            'max_position_embeddings': 2048,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0},
            'tie_word_embeddings': False,
            'bos_token_id': end,
            'eos_token_id': end,
            'pad_token_id': end,
            'attention_bias': False,
        }
        (path / 'config.json').write_text(json.dumps(config))
        ids = {'eos_token_id': end, 'bos_token_id': end, 'do_sample': False}
        (path / 'generation_config.json').write_text(json.dumps(ids))
        rng = np.random.default_rng(0)
        shapes = loading.tensor_shapes(config_lib.from_hf_config(config))
        tensors = {
            name: rng.normal(0, 0.3, shape).astype(np.float32)
            for name, shape in shapes.items()
        }
        safetensors_numpy.save_file(tensors, path / 'model.safetensors')
        return path

    @functools.cached_property
    def base(self) -> base_model.BaseModel:
        """The model, opened."""
        return base_model.open_base_model(str(self.model))

    @functools.cached_property
    def gguf(self) -> pathlib.Path:
        """The same model as one GGUF file."""
        path = self.folder / 'model.gguf'
        reader, config = self.base.reader, self.base.config
        writer = gguf.GGUFWriter(path, 'llama')
        writer.add_context_length(config.max_position)
        writer.add_embedding_length(config.d_model)
        writer.add_block_count(config.num_layers)
        writer.add_feed_forward_length(config.d_ff)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_vocab_size(config.vocab_size)
        vocabulary = self.base.tokenizer().get_vocab()
        tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
        writer.add_tokenizer_model('gpt2')
        writer.add_tokenizer_pre('gpt-2')
        writer.add_token_list(tokens)
        kinds = gguf.TokenType
        writer.add_token_types(
            [kinds.CONTROL if t in _SPECIAL else kinds.NORMAL for t in tokens]
        )
        writer.add_token_merges(['a b'])
        writer.add_eos_token_id(vocabulary['<|im_end|>'])
        writer.add_bos_token_id(vocabulary['<|im_end|>'])
        writer.add_chat_template(_TEMPLATE)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
        for name in reader.names():
            stored = reader.read(name)
            if name.endswith(('q_proj.weight', 'k_proj.weight')):
                heads = len(stored) // config.head_dim
                stored = (
                    stored.reshape(heads, 2, config.head_dim // 2, -1)
                    .swapaxes(1, 2)
                    .reshape(stored.shape)
                )
            writer.add_tensor(names.get_name(name, ('.weight',)), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    @functools.cached_property
    def mask(self) -> pathlib.Path:
        """A persona mask of the model."""
        return self._mask('ida.pmask', 0)

    @functools.cached_property
    def other_mask(self) -> pathlib.Path:
        """A mask of the other channels, of another persona."""
        return self._mask('other.pmask', 1)

    def _mask(self, name: str, first: int) -> pathlib.Path:
        path = self.folder / name
        bits = np.zeros((self.base.config.num_layers, self.base.config.d_ff), bool)
        bits[:, first::2] = True
        fingerprint, digest = self.base.fingerprint(), str(first) * 64
        pmask.save(
            path,
            pmask.PersonaMask(bits, str(self.model), fingerprint, digest, PERSONA),
        )
        return path

    @functools.cached_property
    def keep_indices(self) -> pathlib.Path:
        """Channels to keep, as JSON."""
        kept = {'topk_indices': [[0, 2, 4, 6], [1, 3, 5, 7]]}
        return self._written('keep.json', json.dumps(kept).encode())

    def _chats(self, questions: tuple[str, ...]) -> bytes:
        system = {'role': 'system', 'content': prompts.persona_prompt(PERSONA)}
        return _jsonl(
            [
                {
                    'messages': [
                        system,
                        {'role': 'user', 'content': question},
                        {'role': 'assistant', 'content': f'Bread. {question}'},
                    ],
                    'query_id': f'q:{number}',
                }
                for number, question in enumerate(questions)
            ]
        )

    @functools.cached_property
    def calibration(self) -> pathlib.Path:
        """Chats to learn from."""
        return self._written('train.jsonl', self._chats(_QUESTIONS[:3]))

    @functools.cached_property
    def heldout(self) -> pathlib.Path:
        """Chats to measure on."""
        return self._written('test.jsonl', self._chats(_QUESTIONS[3:]))

    @functools.cached_property
    def instructions(self) -> pathlib.Path:
        """General data, Alpaca's form."""
        rows = [
            {'instruction': question, 'input': '', 'output': 'By hand.'}
            for question in _QUESTIONS
        ]
        return self._written('alpaca.jsonl', _jsonl(rows))

    @functools.cached_property
    def rewrites(self) -> pathlib.Path:
        """Answers made elsewhere."""
        rows = [
            {'query': question, 'rewrite': 'Rye. Now go.', 'finished': True}
            for question in _QUESTIONS
        ]
        return self._written('rewrites.jsonl', _jsonl(rows))

    @functools.cached_property
    def answers(self) -> pathlib.Path:
        """One model's answers, to be ranked."""
        rows = [
            {'persona': PERSONA, 'question': question, 'answer': 'Rye. Now go.'}
            for question in _QUESTIONS
        ]
        return self._written('answers.jsonl', _jsonl(rows))
