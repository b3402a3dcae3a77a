"""What `export --gguf` writes: a masked base, or a directory that was exported."""

import pathlib

from ppjax.base import progress, run_directory
from ppjax.exporting import config as config_lib
from ppjax.exporting import model_card
from ppjax.exporting import source as export_source
from ppjax.exporting.gguf import export, metadata
from ppjax.masking import apply
from ppjax.personas import inputs, sources
from ppjax.personas import persona as persona_lib

# Of folders and files that say nothing of who is in them.
_ANYBODY = ('', 'hf', 'mask', 'gguf', 'model')


def of_mask(
    cfg: config_lib.ExportConfig, source: export_source.ExportSource, prompt: str
) -> export.Source:
    """The model that a mask leaves.

    Args:
        cfg: the settings.
        source: base and mask.
        prompt: the persona prompt that goes with it.
    """
    file = pathlib.Path(cfg.mask or cfg.from_keep_indices or cfg.output_dir)
    base = source.base
    persona = _persona(cfg, None if not cfg.from_run else pathlib.Path(cfg.output_dir))
    origin = metadata.Origin(
        base=metadata.base_name(base),
        persona=_name(persona, file),
        license=model_card.inherited_license(base.reader),
        system_prompt=prompt,
        identity=source.identity('float32'),
        greeting=persona.greeting if persona else '',
    )
    return export.Source(
        source.pruned, base.tokenizer(), base.generation_config(), origin
    )


def of_directory(cfg: config_lib.ExportConfig, path: pathlib.Path) -> export.Source:
    """A model that stands in a directory.

    Raises:
        InputError: if there is none.
    """
    model, prompt = apply.open_exported(str(path))
    if cfg.system_prompt is not None:
        prompt = cfg.system_prompt
    run = path.resolve().parent
    persona = _persona(cfg, run)
    origin = metadata.Origin(
        base=model_card.named_base(model.reader.path) or metadata.base_name(model),
        persona=_name(persona, path.resolve()),
        license=model_card.inherited_license(model.reader),
        system_prompt=prompt,
        identity={'model_fingerprint': model.fingerprint()},
        greeting=persona.greeting if persona else '',
    )
    return export.Source(model, model.tokenizer(), model.generation_config(), origin)


def _persona(
    cfg: config_lib.ExportConfig, run: pathlib.Path | None
) -> persona_lib.Persona | None:
    """That of --persona, or the one that a run was made of where it still is there.

    Raises:
        InputError: if --persona is none.
    """
    if cfg.persona is not None:
        return sources.read_persona(cfg.persona, notes=progress.say)
    named = run and run_directory.recorded(run, 'synthesize', 'persona')
    if not named or not pathlib.Path(named).is_file():
        return None
    try:
        return sources.read_persona(named, notes=inputs.no_notes)
    except ValueError:  # Not the file that it was.
        return None


def _name(persona: persona_lib.Persona | None, file: pathlib.Path) -> str:
    """A short name: a card's, or that of the first folder or file that has one."""
    named = metadata.slug(persona.name) if persona else ''
    if named:
        return named
    file = file.expanduser().absolute()
    stems = (
        file.stem if file.is_file() else file.name,
        *(p.name for p in file.parents),
    )
    return next((metadata.slug(x) for x in stems if x.lower() not in _ANYBODY), '')
