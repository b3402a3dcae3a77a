"""A run's inputs name its tokenizer and template, so that resume refuses others."""

import json
import shutil

from ppjax.learning import data
from ppjax.models import base_model


def test_a_changed_template_or_tokenizer_is_another_input(
    chatty_model, calibration_files, tmp_path
):
    rows = data.read_rows(str(calibration_files[0]), split='train')[:2]

    def hashes(folder) -> dict[str, str]:
        base = base_model.open_base_model(str(folder))
        found = data.prepare_data(base, rows, [], max_length=400, date='2026-01-01')
        return found.hashes

    want = hashes(chatty_model)
    folder = tmp_path / 'model'
    shutil.copytree(chatty_model, folder)
    assert hashes(folder) == want

    template = folder / 'chat_template.jinja'
    template.write_text(template.read_text() + '{# #}')
    assert hashes(folder) == want | {'tokenizer': hashes(folder)['tokenizer']}
    assert hashes(folder) != want

    shutil.copy(chatty_model / template.name, template)
    file = folder / 'tokenizer.json'
    whole = json.loads(file.read_text())
    whole['model']['merges'].pop()
    file.write_text(json.dumps(whole))
    assert hashes(folder) == want | {'tokenizer': hashes(folder)['tokenizer']}
    assert hashes(folder) != want
