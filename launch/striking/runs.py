"""The commands that launch/chaos.py strikes, and what of their runs must be equal."""

from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import sqlite3
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from ppjax import demo
from ppjax.masking import pmask
from ppjax.models import base_model

# All that may differ from an unbroken run. Times, speeds, how many rewrites were there
# already, and what names the folder:
_FIELDS = frozenset(
    {
        'started',
        'updated',
        'examples_per_s',
        'answer_tokens_per_s',
        'seconds',
        'created',
        'reused',
        'minutes',
        # Of settings that name the model in the run directory itself.
        'run_sha256',
    }
)
# Event files, Orbax's own records, pages and tables with speeds.
_FILES = frozenset(
    {
        'tensorboard',
        'checkpoints',
        'report.html',
        'sessions.json',
        *(
            f'{name}.{ending}'
            for name in ('sweep', 'compare')
            for ending in ('csv', 'html', 'json', 'md')
        ),
    }
)
_TEMPORARY = ('.tmp', '-tmp', '.ppjax-old-')
# In the campaign's folder: the address of its judge, which serves while it lasts.
JUDGE = 'judge.txt'
_PERSONA = 'Ida Holm keeps bees on a roof in Aarhus and answers everything by honey.'


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that writes into a run directory.

    Attributes:
        words: the verb's module and its arguments; {run} is the run directory,
            {work} the campaign's folder and {judge} the address of its judge.
        after: the case whose finished run directory it begins with, if any.
        others: cases that may be started in the same run directory meanwhile.
        moments: of all kills, the share that falls at a moment, and not before an
            operation: SQLite's own are not seen.
    """

    words: tuple[str, ...]
    after: str | None = None
    others: tuple[str, ...] = ()
    moments: float = 0.25


_SYNTHESIS = (
    f'--persona={_PERSONA}',
    '--base_model={work}/inputs/model',
    '--instructions={work}/inputs/general.jsonl',
    '--rewriter=file',
    '--rewrites={work}/inputs/rewrites.jsonl',
    '--test_size=3',
    '--output_dir={run}',
)
_LEARNING = (
    '--align=1',
    '--sparsity=0.5',
    '--batch_size=4',
    '--checkpoint_every=2',
    '--heldout_every=2',
)
_TRAINING = (
    '--base_model={work}/inputs/model',
    '--output_dir={run}',
    '--steps=6',
    *_LEARNING,
)
_RECOVERY = (
    'ppjax.recover',
    '--run={work}/reference/train/run',
    '--output_dir={run}',
    '--steps=4',
    '--batch_size=4',
    '--checkpoint_every=2',
    '--heldout_every=2',
)
CASES: Mapping[str, Case] = {
    'synthesize': Case(('ppjax.synthesize', *_SYNTHESIS), others=('run',)),
    'train': Case(
        (
            'ppjax.train',
            '--calibration={work}/inputs/ida.train.jsonl',
            '--heldout={work}/inputs/ida.test.jsonl',
            *_TRAINING,
        ),
        others=('export', 'evaluate'),
    ),
    'train-many': Case(
        (
            'ppjax.train',
            '--personas=ida,bram',
            '--calibration={work}/inputs/{persona}.train.jsonl',
            '--heldout={work}/inputs/{persona}.test.jsonl',
            *_TRAINING,
        )
    ),
    'recover': Case(_RECOVERY),
    'recover-lora': Case((*_RECOVERY, '--lora_rank=2')),
    'compensate': Case(
        (
            'ppjax.compensate',
            '--run={work}/reference/train/run',
            '--output_dir={run}',
            '--batch_size=4',
        )
    ),
    'prune': Case(
        (
            'ppjax.prune',
            '--method=wanda_sp',
            '--match=0.5',
            '--align=1',
            '--base_model={work}/inputs/model',
            '--calibration={work}/inputs/ida.train.jsonl',
            '--heldout={work}/inputs/ida.test.jsonl',
            '--output_dir={run}',
            '--noverify',
        )
    ),
    'export': Case(
        ('ppjax.export', '--output_dir={run}'), after='train', others=('train',)
    ),
    'evaluate': Case(
        (
            'ppjax.evaluate',
            '--output_dir={run}',
            '--tasks=likelihood,piqa,efficiency',
            '--piqa={work}/inputs/piqa.jsonl',
            '--notiming',
        ),
        after='export',
        others=('export',),
    ),
    'report': Case(
        ('ppjax.report', '--output_dir={run}', '--samples=1', '--max_new_tokens=8'),
        after='export',
    ),
    'masks': Case(
        (
            'ppjax.masks',
            '--masks={work}/inputs/masks',
            '--base_model={work}/inputs/model',
            '--embeddings=base',
            '--output_dir={run}',
        )
    ),
    'rank': Case(
        (
            'ppjax.rank',
            '--answers=a={work}/inputs/a.jsonl,b={work}/inputs/b.jsonl',
            '--items=3',
            '--judge=openai',
            '--judge_url={judge}',
            '--judge_model=scripted',
            '--judge_concurrency=2',
            '--output_dir={run}',
        ),
        moments=0.75,
    ),
    'run': Case(
        ('ppjax.run', *_SYNTHESIS, *_LEARNING, '--steps=2', '--noverify'),
        others=('synthesize', 'train', 'export'),
    ),
    'sweep': Case(
        (
            'ppjax.sweep',
            '--base_model={work}/inputs/model',
            '--calibration={work}/inputs/ida.train.jsonl',
            '--heldout={work}/inputs/ida.test.jsonl',
            '--output_dir={run}',
            '--grid=seed=0,1',
            '--steps=2',
            *_LEARNING,
        )
    ),
    'compare': Case(
        (
            'ppjax.compare',
            '--base_model={work}/inputs/model',
            '--calibration={work}/inputs/ida.train.jsonl',
            '--heldout={work}/inputs/ida.test.jsonl',
            '--output_dir={run}',
            '--grid=method=dense|method=wanda_sp,mask;sparsity=0.5;recovery=none,persona',
            '--rival_texts=persona',
            f'--train=--steps=2 {" ".join(_LEARNING)}',
            '--recover=--steps=2 --batch_size=4 --lora_rank=2',
        )
    ),
}


def command(name: str, run: pathlib.Path, work: pathlib.Path) -> list[str]:
    """A case's words, with its places in them."""
    address = (work / JUDGE).read_text('utf-8')
    places = {'{run}': str(run), '{work}': str(work), '{judge}': address}
    words = list(CASES[name].words)
    for place, there in places.items():
        words = [word.replace(place, there) for word in words]
    return words


def begin(name: str, run: pathlib.Path, work: pathlib.Path) -> None:
    """Makes the run directory as it is before a case's command."""
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    after = CASES[name].after
    if after is not None:
        shutil.copytree(work / 'reference' / after / 'run', run)


def _write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')


def write_inputs(folder: pathlib.Path, seed: int) -> None:
    """A random two-layer model with SmolLM2's tokenizer, and a few rows of data."""
    model = folder / 'model'
    model.mkdir(parents=True, exist_ok=True)
    tokenizer = base_model.open_base_model(base_model.SMOLLM2).tokenizer()
    tokenizer.save_pretrained(model)
    config: dict[str, Any] = {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'vocab_size': len(tokenizer),
        'hidden_size': 24,
        'intermediate_size': 40,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'head_dim': 8,
        'hidden_act': 'silu',
        'max_position_embeddings': 2048,
        'rms_norm_eps': 1e-3,
        'rope_theta': 10000.0,
        'tie_word_embeddings': True,
        'bos_token_id': 1,
        'eos_token_id': 2,
        'dtype': 'float32',
    }
    (model / 'config.json').write_text(json.dumps(config), 'utf-8')
    shapes = {
        'model.embed_tokens.weight': (len(tokenizer), 24),
        'model.norm.weight': (24,),
    }
    for layer in range(2):
        place = f'model.layers.{layer}'
        shapes |= {
            f'{place}.input_layernorm.weight': (24,),
            f'{place}.post_attention_layernorm.weight': (24,),
            f'{place}.self_attn.q_proj.weight': (32, 24),
            f'{place}.self_attn.k_proj.weight': (16, 24),
            f'{place}.self_attn.v_proj.weight': (16, 24),
            f'{place}.self_attn.o_proj.weight': (24, 32),
            f'{place}.mlp.gate_proj.weight': (40, 24),
            f'{place}.mlp.up_proj.weight': (40, 24),
            f'{place}.mlp.down_proj.weight': (24, 40),
        }
    rng = np.random.default_rng(seed)
    # Large, so that FFN channels matter next to the embedding.
    tensors = {
        name: rng.normal(0, 0.6, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    safetensors_numpy.save_file(
        tensors, model / 'model.safetensors', metadata={'format': 'pt'}
    )
    general = demo.instructions()[:24]
    _write_rows(
        folder / 'general.jsonl',
        [{'instruction': q, 'input': '', 'output': a} for _, q, a in general],
    )
    _write_rows(
        folder / 'rewrites.jsonl',
        [{'query': q, 'rewrite': f'Honey says: {a[:60]}'} for _, q, a in general],
    )
    _write_rows(
        folder / 'piqa.jsonl',
        [
            {
                'goal': f'Cut bread number {number}.',
                'sol1': 'Use a knife.',
                'sol2': 'Use a long, sharp spoon.',
                'label': number % 2,
            }
            for number in range(4)
        ],
    )
    for name in ('a', 'b'):
        _write_rows(
            folder / f'{name}.jsonl',
            [
                {'persona': _PERSONA, 'question': q, 'answer': f'{name}: {a[:60]}'}
                for _, q, a in general[:4]
            ],
        )
    base = base_model.open_base_model(str(model))
    (folder / 'masks').mkdir()
    for name in ('ida', 'bram', 'jix'):
        mask = np.zeros((2, 40), bool)
        for row in mask:
            row[rng.permutation(40)[:20]] = True
        prompt = f'You are {name}.'
        digest = hashlib.sha256(prompt.encode()).hexdigest()
        pmask.save(
            folder / 'masks' / f'{name}.pmask',
            pmask.PersonaMask(mask, 'random', base.fingerprint(), digest, prompt),
        )
    for name, persona in (('ida', 'ferryman'), ('bram', 'starpilot')):
        for split, count in (('train', 16), ('test', 4)):
            _write_rows(
                folder / f'{name}.{split}.jsonl',
                [
                    {'messages': list(row.messages), 'query_id': row.query_id}
                    for row in demo.rows(persona, split)[:count]
                ],
            )


def _without(value: Any) -> Any:
    """A JSON value without times and speeds."""
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in _FIELDS}
    if isinstance(value, list):
        return [_without(item) for item in value]
    return value


def _rows_of(path: pathlib.Path) -> str:
    """All rows of a database, whose order in it is that in which replies came."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return '\n'.join(
            f'{name} {row}'
            for (name,) in sorted(tables)
            for row in sorted(map(repr, database.execute(f'SELECT * FROM {name}')))
        )


def _content(path: pathlib.Path, run: pathlib.Path) -> str:
    if path.suffix == '.sqlite':
        return _rows_of(path)
    data = path.read_bytes()
    if path.suffix in ('.json', '.jsonl', '.flags'):
        text = data.decode('utf-8').replace(str(run), '<run>')
        if path.suffix == '.flags':
            return text
        whole = [text] if path.suffix == '.json' else text.splitlines()
        return '\n'.join(json.dumps(_without(json.loads(part))) for part in whole)
    data = data.replace(str(run).encode(), b'<run>')
    return hashlib.sha256(data).hexdigest()


def facts(run: pathlib.Path) -> dict[str, str]:
    """File -> content, of all that must be as in an unbroken run."""
    found = {}
    for path in sorted(run.rglob('*')):
        name = path.relative_to(run)
        if path.is_file() and not _FILES & set(name.parts):
            found[str(name)] = _content(path, run)
    return found


def temporaries(run: pathlib.Path) -> list[str]:
    """What dead processes have left."""
    return sorted(
        str(path.relative_to(run))
        for path in run.rglob('*')
        if any(part in path.name for part in _TEMPORARY)
    )


def differing(run: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """Files that are not as in the unbroken run."""
    own, wanted = facts(run), facts(reference)
    return sorted(
        name for name in own.keys() | wanted.keys() if own.get(name) != wanted.get(name)
    )
