"""Eight CPU devices, no network, and the models that the tests share."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import http.server
import json
import os
import pathlib
import signal
import threading
from typing import Any

# All are read when the libraries are imported.
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['TRANSFORMERS_OFFLINE'] = '1'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
# Simulated devices wait for each other on threads, of which XLA makes one for each: too
# few where a compiled program from the cache runs two collectives at a time.
os.environ['PJRT_NPROC'] = '32'
# Tiny models compile for longer than they run: code that is not optimised halves the
# suite's time. XLA_FLAGS= tests what users run.
os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
)

import hypothesis
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax import demo
from ppjax.base import memory
from ppjax.data import chat
from ppjax.models import attention, base_model, loading
from ppjax.models import config as config_lib
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
torch.set_num_threads(1)
# Time limits make tests fail on busy machines, and a stored example only here.
hypothesis.settings.register_profile('ppjax', deadline=None, database=None)
hypothesis.settings.load_profile('ppjax')


# Minutes each, in one test or a few. One that came last would run beside an idle worker.
_LONGEST_FILES = (
    'parallel/test_processes.py',
    'planning/test_plan.py',
    'benchmarking/test_costs.py',
    'test_launch.py',
    'benchmarking/test_smoke.py',
    'test_chaos.py',
    'test_sweep_verb.py',
    'recovery/test_loop.py',
    'training/test_mesh.py',
    'test_run.py',
    'training/test_train_verb.py',
    'training/test_loop.py',
    'parallel/test_inference.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(pathlib.Path(__file__).parent).as_posix()
        if path in _LONGEST_FILES:
            return _LONGEST_FILES.index(path)
        return len(_LONGEST_FILES)

    items.sort(key=place)


def pytest_configure(config: pytest.Config) -> None:
    # In a suite started in the background Ctrl-C is ignored, and would be by every
    # program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    if not folder and hasattr(config, 'cache'):
        folder = str(config.cache.mkdir('jax'))
    if folder:
        # Programs that tests start share it.
        os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
        os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
        jax.config.update('jax_compilation_cache_dir', folder)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
        jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)


@pytest.fixture
def serve_json() -> Iterator[Callable[[Callable[[Any], tuple[int, Any]]], str]]:
    """Starts servers on this machine: what answers a body with (status, JSON) -> URL."""
    running = []

    def serve(answer: Callable[[Any], tuple[int, Any]]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers['content-length'])))
                status, value = answer(body)
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header('content-length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f'http://127.0.0.1:{server.server_address[1]}'

    yield serve
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def piqa_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """Five questions in PIQA's form."""
    file = tmp_path / 'piqa.jsonl'
    rows = [
        {
            'goal': f'Cut bread number {number}.',
            'sol1': 'Use a knife.',
            'sol2': 'Use a long, sharp spoon.',
            'label': number % 2,
        }
        for number in range(5)
    ]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return file


@pytest.fixture(scope='module', autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Kept for all of a run, programs take several GB a worker."""
    yield
    jax.clear_caches()
    memory.give_back()


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


@pytest.fixture(scope='session')
def equations() -> Callable[..., list[Any]]:
    """All equations of a function's program, inner ones too, from (function, *args)."""

    def of(function: Callable[..., Any], *args: Any) -> list[Any]:
        return list(_equations(jax.make_jaxpr(function)(*args).jaxpr))

    return of


# No value is a default of any config class, and no two axes have the same length.
_TINY: dict[str, Any] = {
    'vocab_size': 97,
    'hidden_size': 24,
    'intermediate_size': 52,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 10,
    'rms_norm_eps': 1e-3,
    'max_position_embeddings': 160,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0},
    'tie_word_embeddings': False,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 0,
}
_CLASSES = {
    'llama': (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    'qwen2': (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    'qwen3': (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
# Of the wavelengths 6, 24, 90, 341 and 1290 two are kept, one is blended and two
# are stretched.
_LLAMA3_ROPE = {
    'rope_type': 'llama3',
    'rope_theta': 777.0,
    'factor': 3.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 128,
}
_TIED = {'tie_word_embeddings': True}
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    'llama': ('llama', {}),
    'llama-tied': ('llama', _TIED),
    'llama-scaled': ('llama', {'rope_parameters': _LLAMA3_ROPE}),
    'llama-biased': ('llama', {'attention_bias': True, 'mlp_bias': True}),
    'llama-one-kv-head': ('llama', {'num_key_value_heads': 1}),
    'qwen2': ('qwen2', {}),
    'qwen2-tied': ('qwen2', _TIED),
    'qwen3': ('qwen3', {}),
    'qwen3-tied': ('qwen3', _TIED),
    'qwen3-biased': ('qwen3', {'attention_bias': True}),
}


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A random model in both frameworks, float32.

    Attributes:
        path: its directory, as transformers saved it.
        hf: transformers' model.
        base: ours, opened from `path`.
        decoder: ours, loaded.
    """

    path: pathlib.Path
    hf: transformers.PreTrainedModel
    base: base_model.BaseModel
    decoder: decoder_lib.Decoder

    @property
    def config(self) -> config_lib.ModelConfig:
        return self.base.config

    def hf_logits(
        self,
        tokens: np.ndarray,
        positions: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """transformers' logits [B, T, V]; without a mask every token is real."""
        # Given positions and no mask, transformers guesses at packed sequences.
        if attention_mask is None:
            attention_mask = np.ones_like(tokens)
        with torch.no_grad():
            return self.hf(
                torch.tensor(tokens),
                position_ids=None if positions is None else torch.tensor(positions),
                attention_mask=torch.tensor(attention_mask),
            ).logits.numpy()

    def logits(
        self,
        tokens: np.ndarray,
        positions: np.ndarray | None = None,
        channels: np.ndarray | None = None,
        masks: masks_lib.Masks = masks_lib.DENSE,
    ) -> np.ndarray:
        """Our logits [B, T, V] under plain causal attention."""
        if positions is None:
            positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        if channels is not None:
            masks = masks._replace(channels=channels)
        masks = masks.as_float32()
        return np.asarray(_logits(self.decoder, tokens, positions, masks))

    def pruned_hf(self, mask: np.ndarray) -> transformers.PreTrainedModel:
        """transformers' model of the channels that a bool mask [L, F] keeps."""
        return _sliced(self.hf, mask)


@jax.jit
def _logits(
    model: decoder_lib.Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    masks: masks_lib.Masks,
) -> jax.Array:
    attend = attention.causal(*tokens.shape)
    return model.unembed(model(tokens, positions, masks, attend)[0])


def _sliced(
    hf: transformers.PreTrainedModel, mask: np.ndarray
) -> transformers.PreTrainedModel:
    kept = [torch.tensor(np.nonzero(row)[0]) for row in mask]
    config = hf.config.to_dict() | {'intermediate_size': len(kept[0])}
    small = type(hf)(type(hf.config)(**config)).eval()
    small.set_attn_implementation('eager')
    state = dict(hf.state_dict())
    for layer, index in enumerate(kept):
        for name, axis in (('gate_proj', 0), ('up_proj', 0), ('down_proj', 1)):
            key = f'model.layers.{layer}.mlp.{name}'
            state[f'{key}.weight'] = state[f'{key}.weight'].index_select(axis, index)
            if axis == 0 and f'{key}.bias' in state:
                state[f'{key}.bias'] = state[f'{key}.bias'].index_select(0, index)
    small.load_state_dict(state, strict=True)
    return small


def _randomise(model: transformers.PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0.0, 0.2, generator=generator)
            # Around 0, norms would shrink every activation and hide mistakes
            # below the tolerances.
            if 'norm' in name:
                value.add_(1.0)


@pytest.fixture(scope='session')
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], TinyModel]:
    """Makes the variant of a name in `_VARIANTS`, once a session."""

    @functools.cache
    def make(name: str) -> TinyModel:
        family, overrides = _VARIANTS[name]
        config_class, model_class = _CLASSES[family]
        config = config_class(**(_TINY | overrides))
        hf = model_class(config).eval()
        hf.set_attn_implementation('eager')
        _randomise(hf, seed=5)
        path = tmp_path_factory.mktemp(name)
        hf.save_pretrained(path)
        base = base_model.open_base_model(str(path))
        decoder = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
        return TinyModel(path, hf, base, decoder)

    return make


@pytest.fixture(scope='session', params=sorted(_VARIANTS))
def any_tiny(
    request: pytest.FixtureRequest, tiny_models: Callable[[str], TinyModel]
) -> TinyModel:
    """Every variant in turn."""
    return tiny_models(request.param)


@dataclasses.dataclass(frozen=True)
class SmolLM2:
    """The real model: its reader, our float32 decoder, its tokenizer."""

    base: base_model.BaseModel
    decoder: decoder_lib.Decoder
    tokenizer: transformers.PreTrainedTokenizerBase


@pytest.fixture(scope='session')
def smollm2_base() -> base_model.BaseModel:
    """The real model, its weights unread."""
    return base_model.open_base_model(base_model.SMOLLM2)


@pytest.fixture(scope='session')
def smollm2_tokenizer(
    smollm2_base: base_model.BaseModel,
) -> transformers.PreTrainedTokenizerBase:
    return smollm2_base.tokenizer()


@pytest.fixture(scope='session')
def smollm2(
    smollm2_base: base_model.BaseModel,
    smollm2_tokenizer: transformers.PreTrainedTokenizerBase,
) -> SmolLM2:
    decoder = loading.load_decoder(
        smollm2_base.reader, smollm2_base.config, dtype=jnp.float32
    )
    return SmolLM2(smollm2_base, decoder, smollm2_tokenizer)


@pytest.fixture(scope='session')
def smollm2_hf(
    smollm2_base: base_model.BaseModel,
) -> transformers.PreTrainedModel:
    """The real model in transformers, float32, from the same tensors."""
    reader = smollm2_base.reader
    state = {name: torch.tensor(reader.read(name)) for name in reader.names()}
    state.setdefault('lm_head.weight', state['model.embed_tokens.weight'])
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**reader.hf_config))
    hf.load_state_dict(state, strict=True)
    return hf.eval()


@pytest.fixture(scope='session')
def make_examples() -> Callable[..., list[chat.Example]]:
    """Random examples with one prefix, as a chat template would give."""

    def make(
        count: int, *, prefix: int, seed: int = 0, longest: int = 20, vocab: int = 97
    ) -> list[chat.Example]:
        rng = np.random.default_rng(seed)
        shared = rng.integers(3, vocab, prefix)
        examples = []
        for number in range(count):
            # The first token after the prefix differs, so it ends there exactly.
            own = np.append(
                3 + number % 2, rng.integers(3, vocab, rng.integers(longest))
            )
            answer = rng.integers(3, vocab, rng.integers(1, longest))
            tokens = np.concatenate([shared, own, answer]).astype(np.int32)
            examples.append(chat.Example(tokens, prefix + len(own), f'row {number}'))
        return examples

    return make


@pytest.fixture(scope='session')
def hf_answer_nll() -> Callable[..., torch.Tensor]:
    """PyTorch's -log p of all answer tokens of a plain right-padded batch, [M]."""

    def nll(
        model: transformers.PreTrainedModel, examples: Sequence[chat.Example]
    ) -> torch.Tensor:
        width = max(len(example.tokens) for example in examples)
        tokens = torch.zeros((len(examples), width), dtype=torch.long)
        real = torch.zeros_like(tokens)
        labels = torch.full_like(tokens, -100)
        for row, example in enumerate(examples):
            length = len(example.tokens)
            tokens[row, :length] = torch.tensor(example.tokens)
            real[row, :length] = 1
            labels[row, example.answer_start : length] = tokens[
                row, example.answer_start : length
            ]
        logits = model(tokens, attention_mask=real).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction='none'
        )
        return losses[labels[:, 1:].flatten() != -100]

    return nll


@pytest.fixture(scope='session')
def chatty_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A two-layer Llama with SmolLM2's tokenizer and chat template."""
    path = tmp_path_factory.mktemp('chatty')
    tokenizer = base_model.open_base_model(base_model.SMOLLM2).tokenizer()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for parameter in model.parameters():
        # Large, so that FFN channels matter next to the embedding.
        parameter.data.normal_(0, 0.6)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope='session')
def calibration_files(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, pathlib.Path]:
    """(calibration, held-out) JSONL files of a few demo rows."""
    folder = tmp_path_factory.mktemp('calibration')
    paths = []
    for split, count in (('train', 20), ('test', 6)):
        rows = demo.rows('ferryman', split)[:count]
        path = folder / f'{split}.jsonl'
        path.write_text(
            ''.join(
                json.dumps({'messages': list(row.messages), 'query_id': row.query_id})
                + '\n'
                for row in rows
            )
        )
        paths.append(path)
    return paths[0], paths[1]
