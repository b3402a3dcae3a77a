"""Character cards that carry a mask, as `export --card` writes them."""

import pathlib

from ppjax.base import errors
from ppjax.exporting import config as config_lib
from ppjax.exporting import source as source_lib
from ppjax.masking import pmask
from ppjax.personas import card_output, inputs, prompts, sources

FOLDER = 'card'


def write(
    cfg: config_lib.ExportConfig,
    source: source_lib.ExportSource,
    beside: pathlib.Path,
) -> pathlib.Path:
    """Writes the card of the settings with the mask of the source.

    Args:
        cfg: the settings: `card`, a card that is written back, or `new_card`.
        source: base and mask.
        beside: gets the folder `card`.

    Returns:
        The file.

    Raises:
        InputError: if the card cannot be written back, or stands where it would go.
    """
    added = pmask.in_card(source.persona_mask)
    folder = beside / FOLDER
    if cfg.card is None:
        text = _persona_text(cfg, source)
        assert cfg.new_card is not None
        target = folder / f'{_stem(cfg.new_card)}.json'
        _refuse_other(target, cfg)
        folder.mkdir(parents=True, exist_ok=True)
        card_output.write_new(card_output.new_card(cfg.new_card, text), target, added)
        return target
    card = pathlib.Path(cfg.card).expanduser()
    target = folder / card.name
    if target.exists() and target.samefile(card):
        raise errors.InputError(
            f'--card={cfg.card} is where the card would go; give the card that it was '
            'made from, or move it away.'
        )
    _refuse_other(target, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    card_output.write(card, target, added)
    return target


def _refuse_other(target: pathlib.Path, cfg: config_lib.ExportConfig) -> None:
    """Raises:
    InputError: if a card without a mask of ours stands there.
    """
    if not target.exists() or cfg.overwrite:
        return
    try:
        pmask.load(target)
    except errors.InputError as error:
        raise errors.InputError(
            f'{target} is there, and no card that was written here ({error}); move it '
            'away, or give --overwrite.'
        ) from None


def _persona_text(cfg: config_lib.ExportConfig, source: source_lib.ExportSource) -> str:
    """The text of --persona, or that of the prompt that the mask was learned under.

    Raises:
        InputError: if there is neither.
    """
    if cfg.persona is not None:
        return sources.read_persona(cfg.persona, notes=inputs.no_notes).text
    prompt = source.persona_mask.system_prompt
    text = prompts.persona_in(prompt) or prompt
    if not text:
        raise errors.InputError(
            '--new_card: this mask does not say whose it is; give the text with '
            '--persona.'
        )
    return text


def _stem(name: str) -> str:
    """A file's name for a character's."""
    return ''.join(c if c.isalnum() or c in ' -_' else '_' for c in name).strip()
