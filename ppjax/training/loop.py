"""Mask learning from start to end: the story that `python -m ppjax.train` tells."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax import atomic, errors, run_directory
from ppjax import progress as progress_lib
from ppjax import versions as versions_lib
from ppjax.data import calibration, chat, order, packing
from ppjax.masking import pmask, score_init, topk
from ppjax.models import base_model, loading
from ppjax.models import decoder as decoder_lib
from ppjax.training import checkpoints as checkpoints_lib
from ppjax.training import config as config_lib
from ppjax.training import heldout as heldout_lib
from ppjax.training import metrics as metrics_lib
from ppjax.training import step as step_lib

# Channel activations settle long before this many examples.
_ACTIVATION_EXAMPLES = 128
_HELDOUT_MEASUREMENTS = 8

_MAKES = (
    'checkpoints',
    'metrics.jsonl',
    'tensorboard',
    'mask.pmask',
    'results/references.json',
    'results/start_mask.pmask',
    'results/likelihood.json',
)


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run learns from and is measured on, as tokens.

    Attributes:
        train: calibration examples.
        heldout: disjoint examples, or none.
        prefix: token ids that all of them start with.
        system_prompt: the persona prompt of the calibration rows.
        hashes: name -> sha256 of what was read.
    """

    train: list[chat.Example]
    heldout: list[chat.Example]
    prefix: tuple[int, ...]
    system_prompt: str
    hashes: dict[str, str]


def prepare_data(
    base: base_model.BaseModel,
    train_rows: list[calibration.Row],
    heldout_rows: list[calibration.Row],
    *,
    max_length: int,
    date: str,
) -> Data:
    """Renders rows and finds their common prefix.

    Raises:
        InputError: if a row cannot be rendered, none is left after the length
            filter, or a held-out conversation is also a calibration row.
    """
    seen = {json.dumps(row.messages): row.where for row in train_rows}
    for row in heldout_rows:
        if json.dumps(row.messages) in seen:
            raise errors.InputError(
                f'{row.where}: this held-out row is also a calibration row '
                f'({seen[json.dumps(row.messages)]}); it would not measure anything.'
            )
    renderer = chat.ChatRenderer(base.tokenizer(), date=date)
    train, dropped = chat.render_rows(renderer, train_rows, max_length)
    progress_lib.say(
        f'Calibration: {len(train)} examples, {dropped} over {max_length} tokens '
        'dropped.'
    )
    held: list[chat.Example] = []
    if heldout_rows:
        held, dropped = chat.render_rows(renderer, heldout_rows, max_length)
        progress_lib.say(f'Held-out: {len(held)} examples, {dropped} dropped.')
    prompts = {row.system_prompt for row in train_rows}
    if len(prompts) > 1:
        progress_lib.say(
            f'Note: the calibration rows have {len(prompts)} different system '
            'prompts; the mask file names the first.'
        )
    return Data(
        train=train,
        heldout=held,
        prefix=packing.common_prefix(train + held),
        system_prompt=train_rows[0].system_prompt,
        hashes={
            'base model': base.fingerprint(),
            'calibration': calibration.content_hash(train_rows),
            'heldout': calibration.content_hash(heldout_rows),
        },
    )


class Run:
    """One mask learning run, resumable at any moment."""

    def __init__(
        self,
        cfg: config_lib.TrainConfig,
        base: base_model.BaseModel,
        data: Data,
        directory: run_directory.RunDirectory,
    ):
        self.cfg, self.base, self.data, self.directory = cfg, base, data, directory
        self.keep = topk.keep_size(base.config.d_ff, cfg.sparsity, cfg.align)
        lengths = np.array([len(example.tokens) for example in data.train])
        self.total = cfg.steps or max(
            1,
            round(cfg.epochs * order.steps_per_epoch(cfg.batch_size, len(data.train))),
        )
        self.batches = order.all_steps(cfg.seed, self.total, cfg.batch_size, lengths)
        self.layout = packing.plan_layout(
            data.train,
            self.batches,
            prefix=data.prefix,
            micro_batches=cfg.micro_batches,
        )
        self._say_plan(lengths)

    def _say_plan(self, lengths: np.ndarray) -> None:
        cfg, layout = self.cfg, self.layout
        shared = len(layout.prefix)
        row = layout.tokens_per_row * cfg.micro_batches
        real = np.mean([lengths[b].sum() - shared * len(b) for b in self.batches])
        padded = np.mean([lengths[b].max() * len(b) for b in self.batches])
        progress_lib.say(
            f'Keeping {self.keep} of {self.base.config.d_ff} channels in each of '
            f'{self.base.config.num_layers} layers '
            f'({1 - self.keep / self.base.config.d_ff:.1%} removed).'
        )
        progress_lib.say(
            f'{self.total} steps of {cfg.batch_size} examples. A step runs {row} '
            f"tokens, {shared} of them the shared prefix, {real:.0f} examples' own; "
            f'padded batches would run {padded:.0f}.'
        )

    def load_model(self) -> decoder_lib.Decoder:
        """Reads the base model's weights."""
        return loading.load_decoder(
            self.base.reader,
            self.base.config,
            dtype=jnp.dtype(self.cfg.dtype),
            progress=progress_lib.counter('Loading tensors'),
        )

    def activation_scores(self, model: decoder_lib.Decoder) -> jax.Array:
        """Standardised activation scores [L, F] on calibration examples."""
        chosen = np.random.default_rng(self.cfg.seed).permutation(len(self.data.train))
        examples = [self.data.train[i] for i in chosen[:_ACTIVATION_EXAMPLES]]
        progress = progress_lib.Progress('Channel activations', len(examples))
        sums: np.ndarray | float = 0.0
        tokens, done = 0.0, 0
        for part, count in heldout_lib.activation_sums(
            model, examples, self.data.prefix, self.cfg.batch_size
        ):
            sums, tokens = sums + part, tokens + count
            done = min(done + self.cfg.batch_size, len(examples))
            progress.update(done)
        progress.close()
        return score_init.activation_scores(
            jnp.asarray(sums, jnp.float32),
            jnp.float32(tokens),
            model.blocks.w_down[...],
        )

    def random_scores(self) -> jax.Array:
        """Random scores [L, F] of this run's seed."""
        return score_init.random_scores(
            jax.random.key(self.cfg.seed),
            self.base.config.num_layers,
            self.base.config.d_ff,
        )

    def start_scores(self, activation: jax.Array) -> jax.Array:
        """The scores that learning starts from."""
        chosen = (
            activation if self.cfg.score_init == 'activation' else self.random_scores()
        )
        return chosen * self.cfg.score_scale

    def mask_file(self, scores: jax.Array) -> pmask.PersonaMask:
        """The persona mask of some scores."""
        mask = np.asarray(topk.topk_mask(scores, self.keep)).astype(bool)
        prompt = self.data.system_prompt
        return pmask.PersonaMask(
            mask=mask,
            base_model=self.cfg.base_model,
            base_fingerprint=self.data.hashes['base model'],
            persona_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
            system_prompt=prompt,
        )


def measure_references(
    run: Run,
    model: decoder_lib.Decoder,
    heldout: heldout_lib.HeldOut,
    activation: jax.Array,
) -> dict[str, heldout_lib.Likelihood]:
    """Held-out likelihood of the dense model and of masks that were not learned.

    Kept in results/references.json, so that a resumed run need not measure again.
    """
    path = run.directory.path / 'results' / 'references.json'
    if path.exists():
        stored = json.loads(path.read_text('utf-8'))
        return {
            name: heldout_lib.Likelihood(np.array(nll), heldout.tokens)
            for name, nll in stored.items()
        }
    masks = {
        'dense': None,
        'random': topk.topk_mask(run.random_scores(), run.keep),
        'one_shot': topk.topk_mask(activation, run.keep),
    }
    found = {}
    progress = progress_lib.Progress('Held-out references', len(masks))
    for done, (name, mask) in enumerate(masks.items(), start=1):
        found[name] = heldout.measure(model, mask)
        progress.update(done, f'{name} {found[name].mean:.4f} nats/token')
    progress.close()
    atomic.write_json(path, {name: x.nll.tolist() for name, x in found.items()})
    return found


def write_likelihood(
    path: pathlib.Path,
    run: Run,
    models: dict[str, heldout_lib.Likelihood],
) -> None:
    """Writes results/likelihood.json: means, and every example's figures."""
    examples = [
        {'query_id': example.query_id, 'answer_tokens': example.num_answer_tokens}
        | {name: round(float(found.nll[i]), 6) for name, found in models.items()}
        for i, example in enumerate(run.data.heldout)
    ]
    atomic.write_json(
        path,
        {
            'heldout': {
                'source': run.cfg.heldout,
                'rows': len(examples),
                'answer_tokens': sum(e.num_answer_tokens for e in run.data.heldout),
            },
            'models': {name: {'nll': found.mean} for name, found in models.items()},
            'examples': examples,
            'settings': dataclasses.asdict(run.cfg),
            'versions': versions_lib.versions(),
        },
    )


def check_finite(
    metrics: step_lib.StepMetrics, step: int, names: Sequence[str]
) -> None:
    """Stops a run whose loss or gradient is no number any more.

    Raises:
        InputError: naming the step and its examples.
    """
    if np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm):
        return
    raise errors.InputError(
        f'Step {step}: loss {float(metrics.loss)}, gradient norm '
        f'{float(metrics.grad_norm)}. Its examples: {", ".join(names)}. Look at them, '
        'or lower --learning_rate; the same command goes on from the last checkpoint.'
    )


def optimise(
    run: Run,
    model: decoder_lib.Decoder,
    state: step_lib.TrainState,
    first: int,
    heldout: heldout_lib.HeldOut | None,
    checkpoints: checkpoints_lib.Checkpoints,
    log: metrics_lib.MetricsLog,
    optimizer: tuple[Any, Any],
) -> tuple[step_lib.TrainState, int, heldout_lib.Likelihood | None]:
    """Takes steps `first` to the last.

    Returns:
        (state, steps done, the last mask's held-out likelihood if it was measured).

    Metrics are fetched one step late, so that the host packs the next batch while
    the device works. A checkpoint is saved only of a state known to be finite.
    """
    cfg = run.cfg
    transform, schedule = optimizer
    train_step = step_lib.make_train_step(
        transform, keep=run.keep, layout=run.layout, remat=cfg.remat
    )
    every = cfg.heldout_every or max(1, -(-run.total // _HELDOUT_MEASUREMENTS))
    last = min(run.total, cfg.stop_after or run.total)
    progress = progress_lib.Progress('Mask learning', last, initial=first)
    if first < last:
        progress_lib.say('Compiling the step; the first one takes longest.')
    began = time.monotonic()
    held_note = ''

    def report(done: int, metrics: step_lib.StepMetrics) -> None:
        nonlocal began
        fetched = jax.device_get(metrics)
        batch = run.batches[done - 1]
        names = [run.data.train[i].query_id for i in batch]
        check_finite(fetched, done, names)
        spent, began = time.monotonic() - began, time.monotonic()
        tokens = sum(run.data.train[i].num_answer_tokens for i in batch)
        if done % cfg.log_every == 0 or done == last:
            log.write(
                'train',
                done,
                loss=fetched.loss,
                grad_norm=fetched.grad_norm,
                flip_fraction=fetched.flip_fraction,
                learning_rate=float(schedule(done - 1)),
                examples_per_s=len(batch) / spent,
                answer_tokens_per_s=tokens / spent,
            )
        progress.update(
            done,
            f'loss {fetched.loss:.3f} flips {fetched.flip_fraction:.2%} '
            f'{len(batch) / spent:.2f} ex/s{held_note}',
        )
        run.directory.status(step=done, total_steps=run.total)

    pending: tuple[int, step_lib.StepMetrics] | None = None
    found: heldout_lib.Likelihood | None = None
    for index in range(first, last):
        batch = packing.pack(run.data.train, run.batches[index], run.layout)
        state, metrics = train_step(state, model, batch)
        if pending is not None:
            report(*pending)
        pending = (index + 1, metrics)
        done = index + 1
        saves = done % cfg.checkpoint_every == 0 or done == last
        measures = heldout is not None and (done % every == 0 or done == run.total)
        if saves or measures:
            report(*pending)
            pending = None
        if saves:
            checkpoints.save(done, state)
        if measures and heldout is not None:
            found = heldout.measure(model, topk.topk_mask(state.scores, run.keep))
            log.write('heldout', done, heldout_nll=found.mean)
            held_note = f' held-out {found.mean:.4f}'
            began = time.monotonic()
    progress.close()
    checkpoints.wait()
    return state, last, found


def learn_mask(
    cfg: config_lib.TrainConfig,
    train_rows: list[calibration.Row],
    heldout_rows: list[calibration.Row],
    *,
    stage: str | None = None,
) -> pathlib.Path | None:
    """Learns a persona mask in a run directory.

    Args:
        cfg: the settings.
        train_rows: the calibration rows that `cfg.calibration` names.
        heldout_rows: those that `cfg.heldout` names, or none.
        stage: its name, where it is one of a run of several.

    Returns:
        The mask file, or None if `cfg.stop_after` came first.

    Raises:
        InputError: for anything wrong with the settings, the files or the disk, or
            a loss that is not finite.
    """
    base = base_model.open_base_model(cfg.base_model)
    data = prepare_data(
        base, train_rows, heldout_rows, max_length=cfg.max_length, date=cfg.date
    )
    directory = run_directory.RunDirectory(cfg.output_dir, stage=stage)
    found = directory.open(
        cfg,
        data.hashes,
        resumable=config_lib.RESUMABLE,
        overwrite=cfg.overwrite,
        makes=_MAKES,
    )
    with directory.stage('train'):
        run = Run(cfg, base, data, directory)
        finished = directory.path / 'mask.pmask'
        if finished.exists():
            progress_lib.say(f'{finished} is there already; nothing is left to do.')
            directory.done(step=run.total, total_steps=run.total)
            return finished
        checkpoints = checkpoints_lib.Checkpoints(directory.path / 'checkpoints')
        try:
            return _learn(run, found, checkpoints)
        finally:
            checkpoints.close()


def _learn(
    run: Run, found: bool, checkpoints: checkpoints_lib.Checkpoints
) -> pathlib.Path | None:
    cfg, path = run.cfg, run.directory.path
    optimizer, schedule = step_lib.make_optimizer(
        learning_rate=cfg.learning_rate,
        weight_decay=cfg.weight_decay,
        warmup=cfg.warmup,
        num_steps=run.total,
    )
    first = checkpoints.latest() or 0
    if found:
        progress_lib.say(f'Resuming {path} at step {first} of {run.total}.')
    model = run.load_model()

    heldout = None
    references: dict[str, heldout_lib.Likelihood] = {}
    need_start = first == 0 and cfg.score_init == 'activation'
    need_references = bool(run.data.heldout) and not (
        (path / 'results' / 'references.json').exists()
    )
    activation = run.random_scores()  # Only read where it is replaced below.
    if need_start or need_references:
        activation = run.activation_scores(model)
    if run.data.heldout:
        heldout = heldout_lib.HeldOut(run.data.heldout, run.data.prefix, cfg.batch_size)
        references = measure_references(run, model, heldout, activation)

    scores = run.start_scores(activation)
    state = step_lib.TrainState(scores, optimizer.init(scores))
    if first:
        state = checkpoints.restore(first, state)
    else:
        pmask.save(path / 'results' / 'start_mask.pmask', run.mask_file(scores))
    log = metrics_lib.MetricsLog(path, resume_step=first)
    try:
        state, done, learned = optimise(
            run,
            model,
            state,
            first,
            heldout,
            checkpoints,
            log,
            (optimizer, schedule),
        )
    finally:
        log.close()
    if done < run.total:
        run.directory.status(state='paused', step=done, total_steps=run.total)
        progress_lib.say(f'Paused after step {done}; the same command goes on.')
        return None
    if heldout is not None:
        # A run killed between its last checkpoint and here has not measured yet.
        learned = learned or heldout.measure(
            model, topk.topk_mask(state.scores, run.keep)
        )
        write_likelihood(
            path / 'results' / 'likelihood.json', run, references | {'learned': learned}
        )
    pmask.save(path / 'mask.pmask', run.mask_file(state.scores))
    run.directory.done(step=done, total_steps=run.total)
    return path / 'mask.pmask'
