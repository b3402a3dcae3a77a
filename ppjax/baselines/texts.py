"""What rivals go by: chats, general instructions, or plain text in pieces."""

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
import re

import numpy as np

from ppjax import demo
from ppjax.base import errors, json_lines, reading
from ppjax.base import progress as progress_lib
from ppjax.baselines import config as config_lib
from ppjax.data import calibration, chat
from ppjax.models import base_model
from ppjax.models import tokens as tokens_lib
from ppjax.synthesis import sources


@dataclasses.dataclass(frozen=True)
class Texts:
    """Where sequences are drawn from.

    Attributes:
        chats: rendered, the loss over their answers; none where there is plain text.
        documents: of plain text, token ids [n] each, with enough of them.
        length: of a piece of a document.
        system_prompt: of the chats, if they have one in common.
        digest: of all of it.
    """

    chats: list[chat.Example]
    documents: list[np.ndarray]
    length: int
    system_prompt: str
    digest: str

    def draw(self, count: int, seed: int) -> list[chat.Example]:
        """Some sequences, the same for the same seed.

        Of chats each is taken once, so that there may be fewer; of documents pieces at
        random offsets, the loss over all but the first token.
        """
        rng = np.random.default_rng(seed)
        if self.chats:
            return [self.chats[i] for i in rng.permutation(len(self.chats))[:count]]
        found = []
        for number in range(count):
            document = self.documents[rng.integers(len(self.documents))]
            start = int(rng.integers(len(document) - self.length + 1))
            piece = document[start : start + self.length]
            found.append(chat.Example(piece, 1, str(number)))
        return found


def read(cfg: config_lib.PruneConfig, base: base_model.BaseModel) -> Texts:
    """Reads what settings name.

    Raises:
        InputError: if there is none of use.
    """
    if cfg.text:
        return _plain(cfg, base)
    rows = _rows(cfg)
    renderer = chat.ChatRenderer(
        base.tokenizer(), date=cfg.date, vocab_size=base.config.vocab_size
    )
    positions = base.config.max_position
    examples, dropped = chat.render_rows(
        renderer, rows, cfg.max_length, positions=positions
    )
    limit = min(cfg.max_length, positions)
    progress_lib.say(f'Texts: {len(examples)} chats, {dropped.summary(limit)}.')
    prompts = {row.system_prompt for row in rows}
    return Texts(
        examples,
        [],
        0,
        prompts.pop() if len(prompts) == 1 else '',
        calibration.content_hash(rows),
    )


def _rows(cfg: config_lib.PruneConfig) -> list[calibration.Row]:
    if cfg.calibration:
        return demo.read_rows(cfg.calibration, split='train')
    assert cfg.instructions
    mixed = sources.mix_instructions(
        cfg.instructions, [], seed=cfg.seed, require_answer=True
    )
    progress_lib.say(mixed.summary)
    return sources.plain_chats(mixed)


def _plain(cfg: config_lib.PruneConfig, base: base_model.BaseModel) -> Texts:
    assert cfg.text
    length = min(cfg.usual.tokens, base.config.max_position)
    tokenizer = base.tokenizer()
    documents = []
    whole = hashlib.sha256()
    parts = cfg.text.split(',')
    texts = [text for part in parts for text in _documents(pathlib.Path(part))]
    for text in texts:
        whole.update(text.encode() + b'\0')
        ids = tokenizer.encode(text, add_special_tokens=True)
        tokens_lib.refuse_unembedded(ids, base.config.vocab_size, tokenizer)
        if len(ids) >= length:
            documents.append(np.asarray(ids, np.int32))
    progress_lib.say(
        f'Texts: {len(documents)} of {len(texts)} documents have {length} tokens.'
    )
    if not documents:
        raise errors.InputError(
            f'--text={cfg.text}: no document has {length} tokens; lower '
            '--sequence_length.'
        )
    return Texts([], documents, length, '', whole.hexdigest())


def _documents(path: pathlib.Path) -> Sequence[str]:
    reading.require_file(path, 'Text file')
    if path.suffix == '.jsonl':
        found = []
        for where, row in json_lines.read(path, 'Text file'):
            text = row.get('text') if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise errors.InputError(f'{where}: there is no "text".')
            found.append(text)
        return found
    text = reading.read_text(path, 'Text file').replace('\r\n', '\n')
    return [part for part in re.split(r'\n\s*\n', text) if part.strip()]
