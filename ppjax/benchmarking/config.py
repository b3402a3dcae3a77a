"""The settings of a comparison."""

import dataclasses

from ppjax import demo
from ppjax.base import flags, ranges, settings
from ppjax.models import decoder


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
        'File of personas: the first is the target; the shipped references else. For '
        'serve: their prompts are sent, and one model answers for all.',
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
    names: str | None = flags.setting(
        None,
        'For personas: whose masks are learned; for mask_step: whose first; by default '
        f"{', '.join(demo.personas())}. For serve: which of the server's models, the "
        'most asked first; by default all that have a parent.',
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
    int8_base: bool = flags.setting(
        False, "For generate: ours keeps the model's matrices in 8 bits."
    )
    torch_compile: bool = flags.setting(
        False, 'For mask_step: PyTorch learns once more, compiled by torch.compile.'
    )
    files: str | None = flags.setting(
        None,
        'For gguf: files that llama.cpp runs in turn, with commas between them; for '
        'serve, in place of --url, and for generate --reference=llama.cpp: the one that '
        'it serves.',
        path=True,
    )
    batches: str = flags.setting(
        '1,8,64', 'For generate: prompts at a time, one number after the other.'
    )
    prompt_length: int = flags.setting(
        128, 'For generate, infer and gguf: tokens of each.', least=1
    )
    answer_length: int = flags.setting(
        64,
        'For generate, infer and gguf: tokens of every answer; for serve, at most.',
        least=2,
    )
    rounds: int = flags.setting(
        3, 'For generate, infer, load and gguf: how often each side runs.', least=1
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
    reference: str | None = flags.setting(
        None,
        'For generate: the other side, PyTorch by default; llama.cpp serves the file of '
        '--files. For costs: pytorch takes the same steps too, from random weights.',
        choices=('pytorch', 'llama.cpp'),
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
    url: str | None = flags.setting(
        None,
        'For serve: address of a server with the API of OpenAI; the key, if it wants '
        'one, is read from the environment variable PPJAX_API_KEY.',
    )
    casts: str | None = flags.setting(
        None,
        'For serve: how many personas are asked, one number after the other, as '
        '1,8,64; by default all.',
    )
    rates: str | None = flags.setting(
        None,
        'For serve: requests a second, one number after the other, that come by '
        'chance whether others are answered or not.',
    )
    concurrency: int | None = flags.setting(
        None, 'For serve, instead of --rates: so many requests at a time.', least=1
    )
    requests: int = flags.setting(
        64, 'For serve: of every number of personas and rate.', least=1
    )
    zipf: float = flags.setting(
        1.0,
        'For serve: the persona that is the i-th in popularity has a share of the '
        'requests as i to the power of minus this; 0 asks all alike.',
        within='[0, 10]',
    )
    alone: int = flags.setting(
        16, 'For serve: so many questions are asked again at the end, one at a time.'
    )
    ignore_eos: bool = flags.setting(
        False,
        'For serve: answers go on to --answer_length, so that all are as long; by '
        'ignore_eos, which this server, llama.cpp and vLLM know.',
    )
    seed: int = flags.setting(0, 'For serve: fixes who is asked what, and when.')
    pid: int | None = flags.setting(
        None,
        "For serve: the server's process, whose memory is read; by default its "
        '/metrics are asked.',
        least=1,
    )
    slots: int = flags.setting(
        8, 'For serve with --files: answers that llama.cpp gives at a time.', least=1
    )
    result: str | None = flags.setting(
        None, 'JSON file to write the figures to.', writes=True
    )

    def __post_init__(self) -> None:
        ranges.check(self)

    @property
    def given_names(self) -> tuple[str, ...]:
        """Those of --names, each once; none where it was not given."""
        parts = [part.strip() for part in (self.names or '').split(',')]
        return tuple(dict.fromkeys(part for part in parts if part))

    @property
    def persona_names(self) -> tuple[str, ...]:
        """Those of --names, or the demo's."""
        return self.given_names or tuple(demo.personas())
