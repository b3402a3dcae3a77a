"""All that is served, from the settings: base model, cast, engine, texts, page."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import pathlib

from ppjax.base import errors, progress
from ppjax.data import chat, stop_tokens
from ppjax.models import base_model as base_lib
from ppjax.models import int8_head, loading
from ppjax.parallel import sharding
from ppjax.serving import (
    cast,
    config,
    demo_masks,
    members,
    opening,
    programs,
    talk,
    watching,
)
from ppjax.serving.api import service as service_lib
from ppjax.serving.api import texts
from ppjax.serving.page import files


@contextlib.contextmanager
def open_service(cfg: config.ServeConfig) -> Iterator[service_lib.Service]:
    """Loads the model and begins to answer; ends both when it is left.

    What can fail quickly comes first: tokenizer, template, cast.

    Raises:
        InputError: if something that the settings name cannot be used.
    """
    base = base_lib.open_base_model(cfg.base_model or base_lib.SMOLLM2)
    context = min(cfg.max_context, base.config.max_position)
    if context < programs.BLOCK:
        raise errors.InputError(
            f'A context of {context} tokens is too short to serve; wanted '
            f'{programs.BLOCK} at least.'
        )
    mesh = sharding.inference_mesh(cfg.mesh) if cfg.mesh else None
    tokenizer = base.tokenizer()
    renderer = chat.ChatRenderer(
        tokenizer, date=cfg.date, vocab_size=base.config.vocab_size
    )
    own_texts = texts.Texts(
        tokenizer,
        date=cfg.date,
        vocab_size=base.config.vocab_size,
        stop_ids=stop_tokens.stop_ids(base.generation_config(), tokenizer),
    )
    folder = pathlib.Path(cfg.personas or '').expanduser()
    everybody = None
    if not cfg.demo:
        everybody = cast.Cast(base, [folder], user_name=cfg.user_name)
        _pins(everybody, cfg.pinned)
    model = loading.load_decoder(
        base.reader,
        base.config,
        dtype=cfg.dtype,
        int8_matrices=cfg.int8_base,
        mesh=mesh,
        progress=progress.counter('Loading tensors'),
    )
    model = int8_head.with_int8_head(model)
    if everybody is None:
        folder = demo_masks.folder_of(base)
        demo_masks.make(base, model, folder, mesh=mesh)
        everybody = cast.Cast(base, [folder], user_name=cfg.user_name)
    pins = _pins(everybody, cfg.pinned)
    everybody.pin(pins)
    engine = opening.open_engine(
        model,
        opening.Sizes(
            slots=cfg.slots,
            max_context=context,
            queue=cfg.queue,
            cache_bytes=cfg.cache_mib << 20,
        ),
        pins=pins,
        mesh=mesh,
        progress=progress.counter('Compiling programs'),
    )
    watcher = watching.Watcher(everybody)
    try:
        yield service_lib.Service(
            base=base.name,
            cast=everybody,
            engine=engine,
            texts=own_texts,
            converse=functools.partial(
                talk.conversation,
                client_system=cfg.system,
                template=talk.Template.of(renderer),
            ),
            page=service_lib.Page(files.read, files.HEADERS),
            limits=service_lib.Limits(
                body=cfg.max_body_kib << 10,
                messages=cfg.max_messages,
                choices=cfg.max_choices,
                max_tokens=cfg.longest,
            ),
            log=progress.say if cfg.log_texts else None,
        )
    finally:
        watcher.stop()
        engine.stop()


def _pins(everybody: cast.Cast, names: Sequence[str]) -> list[members.Member]:
    """Those whose smaller weights are made.

    Raises:
        InputError: for a name that there is not, or the base model's.
    """
    found = []
    for name in names:
        member = everybody.get(name)
        if member is None or member.is_dense:
            there = ', '.join(list(everybody.members())[1:6]) or 'nobody'
            raise errors.InputError(
                f'--pin: there is no persona {name!r} in the cast; there is {there}.'
            )
        found.append(member)
    return found
