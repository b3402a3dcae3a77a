"""Mask files of random channels."""

import subprocess
import sys

from ppjax.masking import pmask


def test_each_is_a_persona_of_its_own(tiny_models, tmp_path):
    tiny = tiny_models('qwen2')
    command = [
        *(sys.executable, 'launch/random_masks.py', f'--base_model={tiny.path}'),
        *('--count=12', '--sparsity=0.5', f'--output_dir={tmp_path / "crowd"}'),
    ]
    subprocess.run(command, check=True)
    found = [
        pmask.load_for(path, tiny.base)
        for path in sorted((tmp_path / 'crowd').glob('*.pmask'))
    ]
    assert len({one.mask.tobytes() for one in found}) == 12
    assert len({one.system_prompt for one in found}) == 12
    assert {one.keep for one in found} == {26}
