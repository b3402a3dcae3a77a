"""The settings of `python -m ppjax.evaluate`."""

import dataclasses
import pathlib

from ppjax.base import errors, flags, ranges, run_directory, settings
from ppjax.chat_api import addresses
from ppjax.evaluation.multiple_choice import benchmarks

TASKS = (
    'likelihood',
    'plain',
    'answers',
    'judge',
    'fidelity',
    *benchmarks.TASKS,
    'efficiency',
    'failures',
    'multiturn',
)
# Of each task, what results/NAME.json is called.
RESULTS = {task: task for task in TASKS} | {
    'likelihood': 'persona_likelihood',
    'plain': 'plain_likelihood',
    'efficiency': 'measured_efficiency',
}
# System messages that held-out answers are measured under.
PROMPTS = ('full', 'short', 'none')
JUDGES = ('local', 'openai')
# What models are called in results where flags give no name.
DENSE, MASKED, PRUNED = 'dense', 'masked', 'pruned'


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, on which models, and where the figures go."""

    tasks: str = flags.setting(
        'likelihood,efficiency',
        f'What to measure, separated by commas: {", ".join(TASKS)}.',
    )
    output_dir: str = flags.setting(
        None,
        'Run directory: its base model, mask, export and held-out data are measured, '
        'and its report shows the results. Or a new folder, with --base_model.',
        path=True,
    )
    base_model: str | None = flags.setting(
        None,
        "The dense model; by default the run's. See python -m ppjax.train --help.",
        path=True,
    )
    mask: str | None = flags.setting(
        None,
        'A .pmask to apply to the dense model, which is measured as `masked`; or '
        'several, each with a name of its own: NAME=FILE,NAME=FILE.',
        path=True,
    )
    mask_sparsity: float | None = settings.mask_sparsity_setting()
    model: str | None = flags.setting(
        None,
        'Directory of an exported model, which is measured as `pruned`; or several, '
        'as NAME=DIR,NAME=DIR.',
        path=True,
    )
    persona: str | None = flags.setting(
        None,
        'For multiturn without --eval_sets: the persona, as for synthesize; the '
        'lorebook of a character card is what its dialogues are about.',
    )
    heldout: str | None = flags.setting(
        None,
        'Held-out JSONL for likelihood, answers, judge and fidelity; by default the '
        "run's.",
        path=True,
    )
    prompts: str = flags.setting(
        'full',
        'For likelihood: measure the same answers under the persona prompt (full, '
        'always), under --short_prompt (short) and without any (none), with commas '
        'between them, and what a shorter prompt saves.',
    )
    short_prompt: str | None = flags.setting(
        None, "For --prompts=short: that system message; by default the run's."
    )
    plain: str | None = flags.setting(
        None,
        'For plain, the likelihood of plain answers with no persona prompt: general '
        'instructions, as --instructions of synthesize takes them. Questions that the '
        'run learned from are left out.',
        path=True,
    )
    plain_examples: int = flags.setting(
        200, 'Of --plain, how many are measured, drawn with --seed.', least=1
    )
    eval_sets: str | None = flags.setting(
        None,
        'For answers, judge, fidelity, failures and multiturn: evaluation sets (JSON), '
        'or folders of them, separated by commas; the held-out questions otherwise.',
        path=True,
    )
    piqa: str | None = flags.setting(
        None,
        'Rows of PIQA: a file, hub (baber/piqa, validation) or tfds; each is '
        'downloaded only if named, and :COUNT takes the first rows.',
        path=True,
    )
    openbookqa: str | None = flags.setting(
        None,
        'Rows of OpenBookQA: a file, hub (allenai/openbookqa, main, test) or tfds.',
        path=True,
    )
    mmlu: str | None = flags.setting(
        None, 'Rows of MMLU: a file, or hub (cais/mmlu, all, test).', path=True
    )
    mmlu_dev: str | None = flags.setting(
        None, "MMLU's worked examples: a file, or hub (cais/mmlu, all, dev).", path=True
    )
    mmlu_shots: int = flags.setting(
        0,
        'Worked examples before each question of MMLU, 0 to 5.',
        within=f'[0, {benchmarks.MOST_SHOTS}]',
    )
    batch_tokens: int = flags.setting(
        2048, 'Tokens of benchmark questions that are run at a time.', least=1
    )
    batch_size: int = flags.setting(
        8, 'Answers that are written, or examples measured, at a time.', least=1
    )
    max_length: int = flags.setting(
        1024,
        'Held-out and plain examples longer than this, in tokens, are dropped and '
        'counted.',
        least=1,
    )
    max_new_tokens: int = flags.setting(
        2048,
        'For answers, judge, fidelity and multiturn: the longest answer, in tokens.',
        least=1,
    )
    questions: int | None = flags.setting(
        None,
        'For answers, judge, fidelity and failures: the first so many questions of '
        'each set.',
        least=1,
    )
    judge: str = flags.setting(
        'openai',
        'Who judges: an OpenAI-compatible server that sends probabilities (fidelity '
        'needs none), or a local model, whose probabilities of 0 to 100 are computed '
        'exactly.',
        choices=JUDGES,
    )
    judge_model: str | None = flags.setting(
        None, 'The judge: name of the model on the server, or as --base_model.'
    )
    judge_url: str | None = flags.setting(
        None,
        'Address of the judging server, as in http://localhost:8000/v1. The key is '
        'read from the environment, from OPENAI_API_KEY.',
    )
    judge_concurrency: int = flags.setting(
        8, 'Requests under way there at a time.', least=1
    )
    coherence: bool = flags.setting(
        False, 'Judge the coherence of answers too, by a prompt of its own.'
    )
    turns: int = flags.setting(
        10, 'For multiturn: answers of the persona a dialogue.', least=1
    )
    dialogues: int = flags.setting(
        4, 'For multiturn: dialogues a persona, each on a question of its set.', least=1
    )
    partner: str = flags.setting(
        'openai',
        'For multiturn: who talks with the persona; a server or a local model.',
        choices=JUDGES,
    )
    partner_model: str | None = flags.setting(
        None, 'The partner: name of the model on the server, or as --base_model.'
    )
    partner_url: str | None = flags.setting(
        None, "Address of the partner server; by default the judge's."
    )
    prompt_length: int = flags.setting(
        1024,
        'For efficiency: tokens of the prompt that FLOPs and times are for.',
        least=1,
    )
    answer_length: int = flags.setting(
        64,
        'For efficiency: tokens of the answer that FLOPs and times are for.',
        least=1,
    )
    timing: bool = flags.setting(
        True, 'For efficiency: also measure prefill and decoding on this machine.'
    )
    rounds: int = flags.setting(
        7,
        'For efficiency: rounds of timing, each of every model; the median counts.',
        least=1,
    )
    dtype: str = settings.dtype_setting()
    mesh: str | None = flags.setting(None, settings.MESH_HELP)
    seed: int = flags.setting(
        0,
        'Fixes the timed prompt, which --plain instructions are drawn, and what a '
        'dialogue partner is asked with.',
    )
    date: str | None = flags.setting(
        None,
        'The date that chat templates which print one are told; by default the '
        f"run's, elsewhere {settings.DATE}.",
    )
    overwrite: bool = flags.setting(
        False,
        'Measure again, even if the very same figures are there; logged answers and '
        'verdicts are used all the same.',
    )

    def __post_init__(self) -> None:
        settings.require_given(self, 'output_dir')
        unknown = [task for task in self.task_list if task not in TASKS]
        if unknown or not self.task_list:
            raise errors.InputError(
                f'--tasks must be some of {", ".join(TASKS)}, got {self.tasks!r}.'
            )
        for name in benchmarks.TASKS:
            if name in self.task_list and not getattr(self, name):
                raise errors.InputError(
                    f'--tasks={name} needs --{name}: a file of its rows, or hub to '
                    'download them.'
                )
        if unknown := [x for x in self.prompt_list if x not in PROMPTS]:
            raise errors.InputError(
                f'--prompts must be some of {", ".join(PROMPTS)}, got {unknown[0]!r}.'
            )
        if 'plain' in self.task_list and not self.plain:
            raise errors.InputError(
                '--tasks=plain needs --plain: instruction data, such as a file of '
                "Dolly's or Alpaca's rows."
            )
        if self.mmlu_shots and not self.mmlu_dev and 'mmlu' in self.task_list:
            raise errors.InputError('--mmlu_shots needs --mmlu_dev.')
        # Before hours of other tasks: it fails sooner.
        for role, tasks in (
            ('judge', ('judge', 'fidelity', 'failures', 'multiturn')),
            ('partner', ('multiturn',)),
        ):
            needed = [task for task in tasks if task in self.task_list]
            if needed and not getattr(self, f'{role}_model'):
                raise errors.InputError(
                    f'--tasks={needed[0]} needs --{role}_model: the name of a model on '
                    f'the server, or, with --{role}=local, a model as --base_model '
                    'takes it.'
                )
            url = getattr(self, f'{role}_url') or self.judge_url
            if needed and getattr(self, role) == 'openai' and not url:
                raise errors.InputError(
                    f'--{role}=openai needs --{role}_url, the address of the server.'
                )
        for name in ('judge_url', 'partner_url'):
            if url := getattr(self, name):
                addresses.checked(url, f'--{name}')
        ranges.check(self)
        if self.run.exists() and not self.run.is_dir():
            raise errors.InputError(f'--output_dir={self.output_dir} is a file.')
        if not self.is_run and not (self.base_model or self.model):
            raise errors.InputError(
                f'--output_dir={self.output_dir} is no run directory; name the models '
                'with --base_model (and --mask) or --model.'
            )
        names = [DENSE, *self.masks, *self.models]
        if twice := [name for name in names if names.count(name) > 1]:
            raise errors.InputError(
                f'--mask and --model call several models {twice[0]!r}.'
            )
        if self.mask and not (self.base_model or self.is_run):
            raise errors.InputError('--mask needs --base_model.')
        masked = self.mask or (self.is_run and not self.model)
        if self.mask_sparsity is not None and not masked:
            raise errors.InputError('--mask_sparsity needs --mask, or a run with one.')

    @property
    def task_list(self) -> list[str]:
        """The tasks asked for, each once, in the order of `TASKS`."""
        asked = [task.strip() for task in self.tasks.split(',') if task.strip()]
        known = [task for task in TASKS if task in asked]
        return known + [task for task in dict.fromkeys(asked) if task not in TASKS]

    @property
    def masks(self) -> dict[str, str]:
        """The mask files of `mask` by their names."""
        return _named('mask', self.mask, MASKED)

    @property
    def models(self) -> dict[str, str]:
        """The directories of `model` by their names."""
        return _named('model', self.model, PRUNED)

    @property
    def prompt_list(self) -> list[str]:
        """The parts of `prompts`."""
        return [name.strip() for name in self.prompts.split(',')]

    @property
    def run(self) -> pathlib.Path:
        """Where results go."""
        return pathlib.Path(self.output_dir).expanduser()

    @property
    def is_run(self) -> bool:
        """Whether that folder is a run of mask learning."""
        return (self.run / 'config.flags').is_file()

    @property
    def template_date(self) -> str:
        """`date`, or the run's."""
        recorded = run_directory.recorded(self.run, 'train', 'date')
        return self.date or recorded or settings.DATE


def _named(flag: str, paths: str | None, default: str) -> dict[str, str]:
    """`NAME=PATH,NAME=PATH`, or one path alone, which is called `default`.

    Raises:
        InputError: if one of several has no name.
    """
    if not paths:
        return {}
    if pathlib.Path(paths).expanduser().exists():
        return {default: paths}
    found: dict[str, str] = {}
    parts = [part.strip() for part in paths.split(',')]
    for part in parts:
        name, equals, path = part.partition('=')
        if not equals and len(parts) == 1:
            return {default: part}
        if not (equals and name and path) or '/' in name:
            raise errors.InputError(
                f'--{flag} names several models, and each needs a name before its '
                f'path, as in --{flag}=a=PATH,b=PATH; {part!r} has none.'
            )
        if name in found:
            raise errors.InputError(f'--{flag} calls several models {name!r}.')
        found[name] = str(pathlib.Path(path).expanduser())
    return found
