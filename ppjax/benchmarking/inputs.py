"""What comparisons are made on: queries, personas, conversations."""

from ppjax import demo
from ppjax.base import errors, ranges
from ppjax.benchmarking import config
from ppjax.data import chat, instructions, mixture
from ppjax.models import base_model
from ppjax.personas import persona as persona_lib
from ppjax.personas import sources as persona_sources

_PERSONA = (
    'Hannes Quist is a lighthouse keeper who counts everything, sleeps by day, writes '
    'long letters to the harbour office and never says a word too many.'
)


def queries(cfg: config.BenchConfig) -> list[instructions.Instruction]:
    """Those of `--instructions`.

    Raises:
        InputError: if there are none such.
    """
    name, _, count = cfg.instructions.partition(':')
    if name != 'demo':
        return list(mixture.mix(cfg.instructions).rows)
    if count and not count.isdecimal():
        raise errors.InputError(f'demo:COUNT wants a number, got {count!r}.')
    return [
        instructions.Instruction(query, answer, query_id, name)
        for query_id, query, answer in demo.instructions()
    ][: ranges.whole(count) if count else None]


def personas(cfg: config.BenchConfig) -> list[persona_lib.Persona]:
    """The target, and the references after it."""
    if cfg.personas:
        return persona_sources.read_personas(cfg.personas)
    return [persona_lib.Persona(_PERSONA), *persona_sources.shipped_references()]


def renderer(cfg: config.BenchConfig, base: base_model.BaseModel) -> chat.ChatRenderer:
    """The model's chat template."""
    return chat.ChatRenderer(
        base.tokenizer(), date=cfg.date, vocab_size=base.config.vocab_size
    )
