"""`python -m ppjax.bench WHAT`: ppjax against the plain way, side by side.

python -m ppjax.bench scoring --base_model=smollm2-135m --instructions=alpaca.jsonl:64
python -m ppjax.bench rewriting --base_model=smollm2-135m --instructions=demo:16
python -m ppjax.bench benchmarks --piqa=piqa.jsonl:200 --mmlu=mmlu.jsonl:100 \\
    --mmlu_dev=mmlu_dev.jsonl --mmlu_shots=0,5
python -m ppjax.bench personas --names=jack,walt --calibration='{persona}.jsonl'
python -m ppjax.bench mask_step --calibration=jack.jsonl --batch_size=16 --steps=6
python -m ppjax.bench generate --batches=1,8,64
python -m ppjax.bench infer --mask=jack.pmask
python -m ppjax.bench load
python -m ppjax.bench load --base_model=config.json --mesh=fsdp:8 --dtype=bfloat16
python -m ppjax.bench costs --page=costs.html

Both sides do the same work, and their results are compared. `costs` has another side
with --reference alone, and `load --mesh` none; that of `personas` is one run after the
other; all others need PyTorch. Machines are noisy: believe the ratio, and rather that
of a longer run.
"""

import dataclasses
import json
from typing import Any

import numpy as np

from ppjax import demo
from ppjax.base import atomic, compile_cache, errors, flags, ranges, settings, versions
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import (
    costs,
    costs_page,
    decoding,
    load,
    many_personas,
    mask_step,
    multiple_choice,
    sharded_load,
)
from ppjax.benchmarking import rewriting as rewriting_bench
from ppjax.benchmarking import scoring as scoring_bench
from ppjax.data import chat, instructions, mixture
from ppjax.evaluation.multiple_choice import benchmarks
from ppjax.masking import pmask, topk
from ppjax.models import base_model, decoder
from ppjax.models import config as config_lib
from ppjax.personas import persona as persona_lib
from ppjax.personas import sources as persona_sources
from ppjax.planning import step_shape
from ppjax.synthesis import rewriting

WHAT = (
    'scoring',
    'rewriting',
    'benchmarks',
    'personas',
    'mask_step',
    'generate',
    'infer',
    'load',
    'costs',
)
_PERSONA = (
    'Hannes Quist is a lighthouse keeper who counts everything, sleeps by day, writes '
    'long letters to the harbour office and never says a word too many.'
)


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Flags of `python -m ppjax.bench`."""

    base_model: str = flags.setting(
        'smollm2-135m',
        'Model that both sides run; see python -m ppjax.train --help.',
        path=True,
    )
    instructions: str = flags.setting(
        'demo',
        'Queries, as for python -m ppjax.synthesize; demo:COUNT is possible.',
        path=True,
    )
    personas: str | None = flags.setting(
        None,
        'File of personas: the first is the target; the shipped references else.',
        path=True,
    )
    piqa: str | None = flags.setting(
        None, 'For benchmarks: rows, as for python -m ppjax.evaluate.', path=True
    )
    openbookqa: str | None = flags.setting(None, 'For benchmarks: rows.', path=True)
    mmlu: str | None = flags.setting(None, 'For benchmarks: rows.', path=True)
    mmlu_dev: str | None = flags.setting(
        None, 'For benchmarks: worked examples.', path=True
    )
    mmlu_shots: str = flags.setting(
        '0', 'For benchmarks: worked examples; several numbers are run in turn.'
    )
    names: str = flags.setting(
        ','.join(demo.personas()),
        'For personas: whose masks are learned; for mask_step: whose first.',
    )
    calibration: str = flags.setting(
        'demo:{persona}',
        'For personas and mask_step: calibration data, {persona} for the name.',
        path=True,
    )
    steps: int = flags.setting(
        24, 'For personas and mask_step: optimizer steps of each side.', least=1
    )
    batch_size: int = flags.setting(
        8,
        'For personas and mask_step: examples a step of each side; for infer, prompts '
        'at a time.',
        least=1,
    )
    sparsity: float = flags.setting(
        0.25,
        'For mask_step, and for infer without --mask: share of FFN channels removed.',
        within='[0, 1)',
    )
    align: int = flags.setting(
        64, 'For personas: kept channels are rounded to a multiple of this.', least=1
    )
    mask: str | None = flags.setting(
        None,
        'For infer: a .pmask of --base_model; by default any channels are kept.',
        path=True,
    )
    dtype: str = flags.setting(
        'float32',
        "For mask_step, generate, infer and load: of both sides' weights and "
        'activations.',
        choices=settings.DTYPES,
    )
    torch_compile: bool = flags.setting(
        False, 'For mask_step: PyTorch learns once more, compiled by torch.compile.'
    )
    batches: str = flags.setting(
        '1,8,64', 'For generate: prompts at a time, one number after the other.'
    )
    prompt_length: int = flags.setting(
        128, 'For generate and infer: tokens of each.', least=1
    )
    answer_length: int = flags.setting(
        64, 'For generate and infer: tokens of every answer.', least=2
    )
    rounds: int = flags.setting(
        3, 'For generate, infer and load: how often each side runs.', least=1
    )
    remat: str = flags.setting(
        'dots',
        'For mask_step: what the backward pass of ours recomputes.',
        choices=decoder.REMAT,
    )
    mesh: str | None = flags.setting(
        None,
        'For load: sizes of a mesh, as fsdp:8, of simulated devices, that random '
        'weights of a config.json are loaded onto and exported from, without PyTorch.',
    )
    curves: str = flags.setting(
        'persona=32,128,512;answer=16,64,256;batch=2,8,32;layers=0.25,0.5,1',
        'For costs: what is varied, one axis at a time, from --prompt_length tokens of '
        'persona, --answer_length, --batch_size and all layers.',
    )
    reference: bool = flags.setting(
        False, 'For costs: PyTorch takes the same steps too, from random weights.'
    )
    page: str | None = flags.setting(
        None, 'For costs: HTML file with the curves.', writes=True
    )
    persona: str | None = flags.setting(
        None,
        'For mask_step: a persona, as for python -m ppjax.synthesize, whose prompt '
        "takes the place of the calibration rows' own.",
    )
    output_dir: str = flags.setting(
        'runs/bench-personas',
        'For personas: a new folder that the runs go to.',
        path=True,
    )
    max_length: int = flags.setting(
        1024, 'Longer prompts, in tokens, are left out.', least=1
    )
    max_tokens: int = flags.setting(64, 'For rewriting: the longest reply.', least=1)
    date: str = flags.setting(
        settings.DATE, 'The date that chat templates which print one are told.'
    )
    result: str | None = flags.setting(
        None, 'JSON file to write the figures to.', writes=True
    )

    def __post_init__(self) -> None:
        ranges.check(self)


def _queries(cfg: BenchConfig) -> list[instructions.Instruction]:
    name, _, count = cfg.instructions.partition(':')
    if name == 'demo':
        rows = [
            instructions.Instruction(query, answer, query_id, name)
            for query_id, query, answer in demo.instructions()
        ]
        if count and not count.isdecimal():
            raise errors.InputError(f'demo:COUNT wants a number, got {count!r}.')
        return rows[: int(count)] if count else rows
    return list(mixture.mix(cfg.instructions).rows)


def _personas(cfg: BenchConfig) -> list[persona_lib.Persona]:
    if cfg.personas:
        return persona_sources.read_personas(cfg.personas)
    return [persona_lib.Persona(_PERSONA), *persona_sources.shipped_references()]


def _benchmarks(cfg: BenchConfig, base: base_model.BaseModel) -> dict[str, Any]:
    given = {name: getattr(cfg, name) for name in benchmarks.TASKS}
    tasks = {name: spec for name, spec in given.items() if spec}
    if not tasks:
        raise errors.InputError('Give rows with --piqa, --openbookqa or --mmlu.')
    shots = [part.strip() for part in cfg.mmlu_shots.split(',')]
    if not all(part.isdecimal() for part in shots):
        raise errors.InputError(
            f'--mmlu_shots must be numbers, got {cfg.mmlu_shots!r}.'
        )
    return multiple_choice.compare(
        base,
        tasks,
        mmlu_dev=cfg.mmlu_dev,
        mmlu_shots=[int(part) for part in shots],
        batch_tokens=2048,
    )


def _mask_step(
    cfg: BenchConfig, base: base_model.BaseModel, renderer: chat.ChatRenderer
) -> dict[str, Any]:
    name = cfg.names.split(',')[0].strip()
    source = cfg.calibration.replace('{persona}', name)
    rows = demo.read_rows(source, split='train')
    if cfg.persona:
        prompt = persona_sources.read_persona(cfg.persona).system_prompt
        rows = [row.with_system_prompt(prompt) for row in rows]
    examples, _ = chat.render_rows(renderer, rows, cfg.max_length)
    if len(examples) < cfg.batch_size:
        raise errors.InputError(
            f'--batch_size={cfg.batch_size}, and {source} has {len(examples)} rows of '
            f'up to {cfg.max_length} tokens.'
        )
    return mask_step.compare(
        base,
        examples,
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        sparsity=cfg.sparsity,
        dtype=cfg.dtype,
        remat=cfg.remat,
        torch_compile=cfg.torch_compile,
    )


def _generate(cfg: BenchConfig, base: base_model.BaseModel) -> dict[str, Any]:
    sizes = [part.strip() for part in cfg.batches.split(',')]
    if not all(part.isdecimal() and int(part) for part in sizes):
        raise errors.InputError(
            f'--batches must be numbers of at least 1, got {cfg.batches!r}.'
        )
    return decoding.compare(
        base,
        batches=[int(part) for part in sizes],
        prompt_length=cfg.prompt_length,
        answer_length=cfg.answer_length,
        rounds=cfg.rounds,
        dtype=cfg.dtype,
    )


def _infer(cfg: BenchConfig, base: base_model.BaseModel) -> dict[str, Any]:
    size = base.config.num_layers, base.config.d_ff
    if cfg.mask:
        persona_mask = pmask.load(cfg.mask)
        persona_mask.check_base(base.fingerprint(), *size)
        if persona_mask.granularity == pmask.BLOCKS:
            raise errors.InputError(
                f'--mask: {cfg.mask} is a mask of blocks; wanted one of channels.'
            )
        mask = persona_mask.mask
    else:
        keep = topk.keep_size(size[1], cfg.sparsity, 64 if size[1] % 64 == 0 else 1)
        # Which channels they are changes no time.
        mask = np.arange(size[1])[None] < np.full((size[0], 1), keep)
    return decoding.compare_pruned(
        base,
        mask,
        batch=cfg.batch_size,
        prompt_length=cfg.prompt_length,
        answer_length=cfg.answer_length,
        rounds=cfg.rounds,
        dtype=cfg.dtype,
    )


def _costs(cfg: BenchConfig) -> dict[str, Any]:
    hf_config = base_model.read_hf_config(cfg.base_model)
    layers = config_lib.from_hf_config(hf_config).num_layers
    return costs.measure(
        hf_config,
        step_shape.Shape(
            persona=cfg.prompt_length,
            answer=cfg.answer_length,
            batch=cfg.batch_size,
            layers=layers,
        ),
        costs.read_curves(cfg.curves, layers),
        sparsity=cfg.sparsity,
        dtype=cfg.dtype,
        remat=cfg.remat,
        rounds=cfg.rounds,
        reference=cfg.reference,
    )


def _compared(cfg: BenchConfig, what: str) -> dict[str, Any]:
    """The figures of one comparison."""
    if what == 'personas':
        return many_personas.compare(
            [name.strip() for name in cfg.names.split(',')],
            base_model=cfg.base_model,
            calibration=cfg.calibration,
            steps=cfg.steps,
            batch_size=cfg.batch_size,
            align=cfg.align,
            output_dir=cfg.output_dir,
        )
    if what == 'costs':
        return _costs(cfg)
    if what == 'load' and cfg.mesh:
        hf_config = base_model.read_hf_config(cfg.base_model)
        return sharded_load.measure(hf_config, dtype=cfg.dtype, mesh=cfg.mesh)
    base = base_model.open_base_model(cfg.base_model)
    if what == 'benchmarks':
        return _benchmarks(cfg, base)
    if what == 'generate':
        return _generate(cfg, base)
    if what == 'infer':
        return _infer(cfg, base)
    if what == 'load':
        return load.compare(base, rounds=cfg.rounds, dtype=cfg.dtype)
    renderer = chat.ChatRenderer(
        base.tokenizer(), date=cfg.date, vocab_size=base.config.vocab_size
    )
    if what == 'mask_step':
        return _mask_step(cfg, base, renderer)
    rows, personas = _queries(cfg), _personas(cfg)
    if what == 'rewriting':
        requests = rewriting.requests_for(personas[0], rows, with_reference=True)
        return rewriting_bench.compare(
            base, renderer, requests, max_tokens=cfg.max_tokens
        )
    return scoring_bench.compare(
        base,
        renderer,
        [persona.system_prompt for persona in personas],
        [row.query for row in rows],
        max_length=cfg.max_length,
    )


def main(cfg: BenchConfig, what: str) -> int:
    """Compares and prints."""
    compile_cache.enable()
    found = _compared(cfg, what)
    found |= {'settings': dataclasses.asdict(cfg), 'versions': versions.versions()}
    text = json.dumps(found, indent=2, ensure_ascii=False)
    print(text)
    if cfg.result:
        atomic.write_text(cfg.result, text + '\n')
        progress_lib.say(f'Written to {cfg.result}.')
    if what == 'costs' and cfg.page:
        atomic.write_text(cfg.page, costs_page.render(found))
        progress_lib.say(f'Page: {cfg.page}')
    return 0


if __name__ == '__main__':
    flags.run(BenchConfig, main, what=WHAT)
