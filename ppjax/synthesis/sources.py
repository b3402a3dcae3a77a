"""What data synthesis reads: persona, references, instructions, rewrites."""

from collections.abc import Callable, Sequence

from ppjax import demo
from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.data import calibration, chat, instructions, mixture
from ppjax.models import base_model
from ppjax.parallel import sharding
from ppjax.personas import evaluation_set, sources
from ppjax.personas import persona as persona_lib
from ppjax.synthesis import config as config_lib
from ppjax.synthesis import rewrite_file, rewrite_local, rewrite_openai, rewriting

DEMO = 'demo'
_DEMO_PREFIX = f'{DEMO}:'


def read_persona(
    cfg: config_lib.SynthesisSettings,
    notes: Callable[[str], None] = progress_lib.say,
) -> persona_lib.Persona | None:
    """The persona that `--persona` names, or None where `--role` does.

    Args:
        cfg: the settings.
        notes: takes one line for whatever a user should look at.

    Raises:
        InputError: if it is none.
    """
    if cfg.persona is None:
        return None
    if cfg.persona.startswith(_DEMO_PREFIX):
        name = cfg.persona.removeprefix(_DEMO_PREFIX)
        return persona_lib.Persona(demo.persona(name), name=name, source=cfg.persona)
    return sources.read_persona(
        cfg.persona,
        user_name=cfg.user_name,
        with_scenario=cfg.with_scenario,
        notes=notes,
    )


def read_references(
    cfg: config_lib.SynthesisSettings, target: persona_lib.Persona
) -> list[persona_lib.Persona]:
    """The personas that the target is compared with, itself left out.

    Raises:
        InputError: if the file holds no persona besides the target.
    """
    if cfg.reference_personas is None:
        found = sources.shipped_references()
    elif cfg.reference_personas == DEMO:
        found = [persona_lib.Persona(text) for text in demo.personas().values()]
    else:
        found = sources.read_personas(cfg.reference_personas)
    others = [persona for persona in found if persona.text != target.text]
    if not others:
        raise errors.InputError(
            f'--reference_personas={cfg.reference_personas} holds no persona besides '
            'the target itself; sensitivity needs others to compare it with.'
        )
    return others


def read_instructions(
    cfg: config_lib.SynthesisSettings, excluded: list[str]
) -> mixture.Mixture:
    """The instructions to select from, evaluation questions left out.

    Raises:
        InputError: naming source and row of the first bad one.
    """
    return mix_instructions(
        cfg.instructions,
        excluded,
        seed=cfg.seed,
        require_answer=cfg.rewrite_with_reference,
    )


def mix_instructions(
    spec: str, excluded: Sequence[str], *, seed: int, require_answer: bool
) -> mixture.Mixture:
    """As `mixture.mix`, with `demo` for the instructions that are shipped."""
    if spec == DEMO:
        shipped, barred = demo.instructions(), mixture.Exclusions(excluded)
        rows = tuple(
            instructions.Instruction(query, answer, query_id, DEMO)
            for query_id, query, answer in shipped
            if query not in barred
        )
        counts = mixture.SourceCounts(
            DEMO,
            read=len(shipped),
            excluded=len(shipped) - len(rows),
            kept=len(rows),
        )
        return mixture.Mixture(rows, (counts,))
    return mixture.mix(
        spec, seed=seed, exclude_queries=excluded, require_answer=require_answer
    )


def plain_chats(mixed: mixture.Mixture) -> list[calibration.Row]:
    """Instructions and their answers as chats without a system message."""
    return [
        calibration.Row(
            (
                {'role': 'user', 'content': row.query},
                {'role': 'assistant', 'content': row.answer},
            ),
            row.query_id,
            row.query_id,
        )
        for row in mixed.rows
    ]


def read_exclusions(cfg: config_lib.SynthesisSettings) -> list[str]:
    """The evaluation questions that must not be learned.

    Those of `--exclude_queries`, and of `--persona` where that is an evaluation set.

    Raises:
        InputError: naming the first file that is no evaluation set.
    """
    paths = cfg.exclude_queries.split(',') if cfg.exclude_queries else []
    questions = evaluation_set.all_questions(path.strip() for path in paths)
    return questions + own_questions(cfg)


def own_questions(cfg: config_lib.SynthesisSettings) -> list[str]:
    """The questions of `--persona` where that is an evaluation set, or none."""
    if cfg.persona is None or not cfg.persona.lower().endswith('.json'):
        return []
    try:
        return list(evaluation_set.read(cfg.persona).questions)
    except errors.InputError:
        return []  # A card, or personas as JSON.


def open_rewriter(
    cfg: config_lib.SynthesisSettings,
    base: base_model.BaseModel,
    renderer: chat.ChatRenderer,
) -> rewriting.Rewriter:
    """The backend that `--rewriter` names; not for 'none'.

    Raises:
        InputError: if it cannot be used.
    """
    if cfg.rewriter == 'openai':
        return rewrite_openai.OpenAIRewriter(
            str(cfg.server_url),
            str(cfg.server_model),
            concurrency=cfg.server_concurrency,
            max_tokens=cfg.rewrite_max_tokens,
            temperature=cfg.rewrite_temperature,
            notify=progress_lib.say,
        )
    if cfg.rewriter == 'local':
        return rewrite_local.LocalRewriter(
            base,
            renderer,
            max_tokens=cfg.rewrite_max_tokens,
            temperature=cfg.rewrite_temperature,
            batch_size=cfg.rewrite_batch_size,
            seed=cfg.seed,
            dtype=cfg.dtype,
            mesh=sharding.inference_mesh(cfg.mesh),
        )
    assert cfg.rewriter == 'file' and cfg.rewrites
    if cfg.rewrites.startswith(_DEMO_PREFIX):
        shipped = demo.rewrites(cfg.rewrites.removeprefix(_DEMO_PREFIX))
        rows = (
            (cfg.rewrites, {'query_id': query_id, 'rewrite': text})
            for query_id, text in shipped.items()
        )
        return rewrite_file.FileRewriter(cfg.rewrites, rows)
    return rewrite_file.FileRewriter(cfg.rewrites)
