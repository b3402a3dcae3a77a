"""What is fed in-process: every reader, and the settings of every verb.

A target takes a source of chance, a fresh folder for its bad input and the whole inputs,
writes the input, and returns what reads it.
"""

import base64
from collections.abc import Callable
import contextlib
import dataclasses
import gzip
import importlib
import json
import pathlib
import random
import shutil
from typing import Any

import jax.numpy as jnp

from fuzzing import damage
from fuzzing import material as material_lib
from ppjax import demo
from ppjax.base import flags
from ppjax.benchmarking import costs
from ppjax.data import chat, mixture, stop_tokens
from ppjax.evaluation.multiple_choice import benchmark_sources
from ppjax.masking import keep_indices, pmask
from ppjax.models import base_model, loading
from ppjax.parallel import sharding
from ppjax.personas import evaluation_set, sources
from ppjax.planning import topology
from ppjax.ranking import answer_files, questionnaire
from ppjax.recovery import lora
from ppjax.synthesis import rewrite_file, rewrite_log, rewriting, sensitivity

Read = Callable[[], object]
Target = Callable[[random.Random, pathlib.Path, material_lib.Material], Read]

# A verb's module, its settings and the flags that it does not go without.
VERBS: dict[str, tuple[str, tuple[str, ...]]] = {
    'synthesize': ('ppjax.synthesis.config:SynthesizeConfig', ('output_dir',)),
    'train': ('ppjax.training.config:TrainConfig', ('output_dir',)),
    'recover': ('ppjax.recovery.config:RecoverConfig', ('output_dir',)),
    'compensate': ('ppjax.compensation.config:CompensateConfig', ('output_dir',)),
    'run': ('ppjax.recipes.config:RunConfig', ('output_dir',)),
    'evaluate': ('ppjax.evaluation.config:EvaluateConfig', ('output_dir',)),
    'rank': ('ppjax.ranking.config:RankConfig', ('output_dir',)),
    'serve': ('ppjax.serving.config:ServeConfig', ('base_model', 'personas')),
    'compare': ('ppjax.comparing.config:CompareConfig', ('output_dir',)),
    'sweep': ('ppjax.sweeping.config:SweepConfig', ('output_dir',)),
    'export': ('ppjax.exporting.config:ExportConfig', ('output_dir',)),
    'report': ('ppjax.evaluation.reporting:ReportConfig', ('output_dir',)),
    'prune': ('ppjax.baselines.config:PruneConfig', ('output_dir',)),
    'masks': ('ppjax.analysis.config:MasksConfig', ('output_dir',)),
    'plan': ('ppjax.planning.config:PlanConfig', ()),
    'bench': ('ppjax.benchmarking.config:BenchConfig', ()),
    'chat': ('ppjax.chatting.config:ChatConfig', ()),
}


def settings_of(verb: str) -> Any:
    """The dataclass of a verb's flags."""
    module, _, name = VERBS[verb][0].partition(':')
    return getattr(importlib.import_module(module), name)


def whole_flags(
    verb: str, whole: material_lib.Material, output: pathlib.Path
) -> dict[str, str]:
    """Flags with which a verb would run, briefly, were nothing spoilt."""
    named = {'base_model': str(whole.model), 'output_dir': str(output)}
    learning = named | {'steps': '1', 'batch_size': '2', 'align': '1'}
    rows = {'calibration': str(whole.calibration), 'heldout': str(whole.heldout)}
    making = {
        'persona': material_lib.PERSONA,
        'instructions': str(whole.instructions),
        'rewriter': 'file',
        'rewrites': str(whole.rewrites),
        'test_size': '1',
        'keep_fraction': '1.0',
    }
    masked = {'base_model': str(whole.model), 'mask': str(whole.mask)}
    return {
        'synthesize': making
        | {'base_model': str(whole.model), 'output_dir': str(output)},
        'train': learning | rows,
        'recover': {k: v for k, v in learning.items() if k != 'align'}
        | rows
        | {'mask': str(whole.mask)},
        'compensate': masked | rows | {'output_dir': str(output), 'verify': 'false'},
        'run': learning | making,
        'evaluate': masked
        | {
            'heldout': str(whole.heldout),
            'tasks': 'likelihood',
            'output_dir': str(output),
        },
        'rank': {
            'answers': f'a={whole.answers},b={whole.answers}',
            'output_dir': str(output),
            # Serving does not end by itself, and a judge is asked elsewhere.
            'summary': 'true',
        },
        'serve': {'base_model': str(whole.model), 'personas': str(whole.folder)},
        'sweep': learning | rows | {'grid': 'sparsity=0.5'},
        'compare': rows
        | named
        | {'grid': 'method=mask', 'train': '--steps=1 --batch_size=2 --align=1'},
        'export': masked | {'materialize': 'true', 'output_dir': str(output)},
        'report': {'output_dir': str(output)},
        'prune': {
            'base_model': str(whole.model),
            'method': 'wanda_sp',
            'match': '0.5',
            'align': '1',
            'calibration': str(whole.calibration),
            'output_dir': str(output),
            'verify': 'false',
        },
        'masks': {
            'masks': f'{whole.mask},{whole.other_mask}',
            'base_model': str(whole.model),
            'embeddings': 'base',
            'output_dir': str(output),
        },
        'plan': {
            'base_model': str(whole.model / 'config.json'),
            'batch_size': '2',
            'result': str(output / 'plan.json'),
        },
        'bench': {'base_model': str(whole.model), 'result': str(output / 'b.json')},
        'chat': masked | {'prompt': 'Hi', 'max_new_tokens': '2'},
    }[verb]


# --- Models -------------------------------------------------------------------


def _copied(whole: material_lib.Material, folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole.model, folder / 'model'))


def _opened(path: pathlib.Path) -> Read:
    def read() -> None:
        base = base_model.open_base_model(str(path))
        base.fingerprint()
        loading.check_tensors(base.reader, base.config)
        loading.load_decoder(base.reader, base.config, dtype=jnp.float32)

    return read


def _tensors(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = _copied(whole, folder)
    file = path / 'model.safetensors'
    data = file.read_bytes()
    size = int.from_bytes(data[:8], 'little')
    if rng.random() < 0.5:
        header = damage.json_value(rng, json.loads(data[8 : 8 + size]))
        text = damage.dumped(rng, header)
        file.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + size :])
    else:
        damage.binary_file(rng, file)
    if rng.random() < 0.1:
        weights = {'weight_map': damage.value(rng)}
        index = path / 'model.safetensors.index.json'
        index.write_bytes(damage.dumped(rng, weights))
    return _opened(path)


def _config(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = _copied(whole, folder)
    damage.json_file(rng, path / 'config.json')
    return _opened(path)


def _tokenizer(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = _copied(whole, folder)
    names = ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json']
    if rng.random() < 0.2:
        file = path / 'chat_template.jinja'
        file.write_bytes(
            rng.choice(
                [
                    damage.data(rng, file.read_bytes()),
                    b'{% for a in messages %}{{ a.b.c }}{% endfor %}',
                    b'{{ raise_exception("two\nlines") }}',
                    damage.text(rng).encode('utf-8', 'surrogatepass'),
                ]
            )
        )
    else:
        damage.json_file(rng, path / rng.choice(names))
    rows = demo.read_rows(str(whole.calibration), split='train')

    def read() -> None:
        base = base_model.open_base_model(str(path))
        tokenizer = base.tokenizer()
        renderer = chat.ChatRenderer(tokenizer, date='2026-01-01')
        chat.render_rows(renderer, rows, 1024)
        stop_tokens.stop_ids(base.generation_config(), tokenizer)

    return read


def _gguf(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = folder / rng.choice(['model.gguf', 'MODEL.GGUF'])
    shutil.copy(whole.gguf, path)
    damage.binary_file(rng, path)

    def read() -> None:
        _opened(path)()
        base_model.open_base_model(str(path)).tokenizer()

    return read


# --- Masks --------------------------------------------------------------------


def _mask(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = folder / 'any.pmask'
    shutil.copy(whole.mask, path)
    damage.binary_file(rng, path)
    config = whole.base.config
    fingerprint = whole.base.fingerprint()
    return lambda: pmask.load(path).check_base(
        fingerprint, config.num_layers, config.d_ff
    )


def _kept(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = folder / 'keep.json'
    shutil.copy(whole.keep_indices, path)
    damage.json_file(rng, path)
    return lambda: keep_indices.load(path, 2, 32)


# --- Rows ---------------------------------------------------------------------


def _calibration(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = folder / 'rows.jsonl'
    shutil.copy(whole.calibration, path)
    damage.lines_file(rng, path)

    def read() -> None:
        rows = demo.read_rows(str(path), split='train')
        renderer = chat.ChatRenderer(whole.base.tokenizer(), date='2026-01-01')
        chat.render_rows(renderer, rows, 1024)

    return read


_FORMS: tuple[Any, ...] = (
    {'instruction': 'Cut bread.', 'input': 'rye', 'output': 'With a knife.'},
    {'instruction': 'Cut bread.', 'context': '', 'response': 'With a knife.'},
    {'system_prompt': '', 'question': 'Cut bread.', 'response': 'With a knife.'},
    {'prompt': 'Cut bread.', 'completion': 'With a knife.'},
    {'messages': [{'role': 'user', 'content': 'Hi'},
                  {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Yes'}]}]},
    {'conversations': [{'from': 'human', 'value': 'Hi'},
                       {'from': 'gpt', 'value': 'Yes'}]},
)  # fmt: skip


def _instructions(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    form = rng.randrange(6)
    rows = [rng.choice(_FORMS) for _ in range(3)]
    if form == 0:
        path = folder / 'rows.json'
        listed = rng.choice([rows, {'data': rows}])
        path.write_text(json.dumps(listed, indent=rng.choice([None, 2])))
        damage.json_file(rng, path)
    elif form == 1:
        path = folder / 'rows.csv'
        path.write_text('instruction,input,output\nCut bread.,"rye, dark",Yes.\n')
        damage.binary_file(rng, path)
    elif form == 2:
        path = folder / 'rows.jsonl.gz'
        packed = gzip.compress(''.join(json.dumps(r) + '\n' for r in rows).encode())
        path.write_bytes(packed)
        damage.binary_file(rng, path)
    elif form == 3:
        path = folder / rng.choice(['rows.parquet', 'n' * 300, 'a\nb.jsonl', 'rows'])
        with contextlib.suppress(OSError):
            path.write_bytes(rng.randbytes(50))
    else:
        path = folder / 'rows.jsonl'
        path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
        damage.lines_file(rng, path)
    count = rng.choice(
        ['', '', ':2', ':0', ':-1', ':99999999999999999999', ',', ':x[1']
    )
    return lambda: mixture.mix(f'{path}{count}')


def _rewrites(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = folder / 'rewrites.jsonl'
    shutil.copy(whole.rewrites, path)
    damage.lines_file(rng, path)
    message = ({'role': 'user', 'content': 'What is for supper?'},)
    request = rewriting.Request('a:1', 'What is for supper?', message)
    if rng.random() < 0.5:
        return lambda: list(rewrite_file.FileRewriter(path).rewrite([request]))
    # The same lines as a log of an earlier run.
    whole_file = rewrite_file.FileRewriter(whole.rewrites)
    return lambda: rewrite_log.rewrite_all(whole_file, [request], path)


def _benchmark(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    task = rng.choice(list(material_lib.BENCHMARKS))
    path = folder / 'rows.jsonl'
    path.write_text((json.dumps(material_lib.BENCHMARKS[task]) + '\n') * 2)
    damage.lines_file(rng, path)
    shots = rng.choice([0, 0, 1])
    return lambda: benchmark_sources.questions(
        task, str(path), dev=str(path), num_shots=shots if task == 'mmlu' else 0
    )


def _answers(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = folder / 'answers.jsonl'
    shutil.copy(whole.answers, path)
    damage.lines_file(rng, path)

    def read() -> None:
        given = answer_files.read(f'a={whole.answers},b={path}')
        questionnaire.draw(given, count=3, seed=0)

    return read


# --- Personas -----------------------------------------------------------------


def _persona(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    card = damage.json_value(rng, material_lib.CARD)
    kind = rng.randrange(7)
    if kind == 0:
        text = damage.text(rng)
        return lambda: sources.read_personas(text)
    if kind == 1:
        path = folder / rng.choice(['card.png', 'card.webp', 'card.txt', 'card'])
        path.write_bytes(
            damage.data(rng, material_lib.png(base64.b64encode(json.dumps(material_lib.CARD).encode())))
        )  # fmt: skip
    elif kind == 2:
        path = folder / 'card.png'
        path.write_bytes(material_lib.png(base64.b64encode(damage.dumped(rng, card))))
    elif kind == 3:
        path = folder / rng.choice(['card.charx', 'card.jpg'])
        packed = material_lib.charx(damage.dumped(rng, card))
        path.write_bytes(damage.data(rng, packed) if rng.random() < 0.7 else packed)
    elif kind == 4:
        path = folder / rng.choice(['card.yaml', 'card.yml'])
        path.write_bytes(
            damage.data(rng, f'name: Ida\ncontext: |\n  {material_lib.PERSONA}\n'.encode())
        )  # fmt: skip
    else:
        path = folder / rng.choice(['card.json', 'personas.jsonl', 'any.txt'])
        path.write_bytes(damage.dumped(rng, card))
        if rng.random() < 0.2:
            damage.file(rng, path)
    return lambda: sources.read_personas(str(path), with_scenario=True)


def _evaluation_set(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    path = folder / 'set.json'
    path.write_text(json.dumps(material_lib.EVALUATION_SET))
    damage.json_file(rng, path)
    return lambda: evaluation_set.all_questions([path])


# --- Flags --------------------------------------------------------------------


def _value_of_flag(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return str(damage.number(rng))
    return damage.text(rng)


def _flags(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    verb = rng.choice(list(VERBS))
    settings = settings_of(verb)
    given = whole_flags(verb, whole, folder / 'out')
    names = [field.name for field in dataclasses.fields(settings)]
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(names)
        if rng.random() < 0.1:
            name += rng.choice(['x', '\n', ' ', '\ud800', 'x' * 100_000])
        given[name] = _value_of_flag(rng)
    argv = [f'--{name}={value}' for name, value in given.items()]
    if rng.random() < 0.1:
        argv.append(damage.text(rng))
    return lambda: flags.parse(settings, argv)


def _flagfile(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    verb = rng.choice(list(VERBS))
    settings = settings_of(verb)
    given = whole_flags(verb, whole, folder / 'out')
    path = folder / 'any.flags'
    lines = [f'--{name}={value}' for name, value in given.items()]
    lines.insert(
        rng.randrange(len(lines)),
        rng.choice(
            [
                f'--flagfile={path}',
                '--flagfile',
                '--flagfile=/dev/zero',
                f'--flagfile={folder}',
                '--flagfile=' + 'n' * 300,
                f'--{damage.text(rng)}',
                damage.text(rng),
                f'--seed={_value_of_flag(rng)}',
            ]
        ),
    )
    path.write_bytes('\n'.join(lines).encode('utf-8', 'surrogatepass'))
    if rng.random() < 0.4:
        damage.binary_file(rng, path)
    if rng.random() < 0.5:
        return lambda: flags.parse(settings, [f'--flagfile={path}'])
    return lambda: flags.from_flagfile(settings, path)


def _small_texts(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> Read:
    readers: tuple[tuple[Callable[[str], object], str], ...] = (
        (lambda text: costs.read_curves(text, 4), 'persona=32,128;answer=16'),
        (lambda text: sensitivity.parse_layers(text, 4), '1:3'),
        (lora.parse_targets, 'all'),
        (sharding.default_mesh, 'data:1,fsdp:1'),
        (topology.devices, 'local'),
    )
    read, text = rng.choice(readers)
    if rng.random() < 0.7:
        spoilt = damage.data(rng, text.encode()).decode('utf-8', 'replace')
    else:
        spoilt = damage.text(rng)
    return lambda: read(spoilt)


# How many of a thousand cases are each's.
TARGETS: dict[str, tuple[Target, int]] = {
    'safetensors': (_tensors, 110),
    'config.json': (_config, 110),
    'tokenizer': (_tokenizer, 80),
    'gguf': (_gguf, 90),
    'pmask': (_mask, 60),
    'keep indices': (_kept, 50),
    'calibration': (_calibration, 80),
    'instructions': (_instructions, 80),
    'rewrites': (_rewrites, 50),
    'benchmark': (_benchmark, 50),
    'answers': (_answers, 30),
    'persona': (_persona, 80),
    'evaluation set': (_evaluation_set, 40),
    'flags': (_flags, 50),
    'flagfile': (_flagfile, 30),
    'small texts': (_small_texts, 10),
}
