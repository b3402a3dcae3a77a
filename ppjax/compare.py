"""`python -m ppjax.compare`: persona masks and rival pruners on the same data.

python -m ppjax.compare --base_model=DIR --output_dir=runs/table \\
    --grid='method=dense,depth,mask;persona=jack,walt;recovery=none,general' \\
    --calibration='data/{persona}/train.jsonl' \\
    --heldout='data/{persona}/test.jsonl' --instructions=alpaca.json \\
    --train='--steps=60 --batch_size=8' --recover='--steps=60' \\
    --evaluate='--tasks=likelihood,answers,piqa --piqa=piqa.jsonl'

Makes and measures every cell of a grid of methods, personas, sparsities, ways
to recover and seeds, and lays them side by side as the paper's Tables 1, 4 and
10 to 14 do: compare.html with bars, answers and paired differences to the dense
model and to the best rival, compare.md, compare.csv and compare.json.
configs/small-table-1.flags is the paper's Table 1 for a laptop.

Methods are ours (one_shot, mask, ridge, mask+ridge), dense, and those of python
-m ppjax.prune; a rival is pruned by --instructions alone, or by the persona's
rows (--rival_texts=persona), and made once for all personas; so is a mask of
rows that another axis names (--calibration='rows/{rows_of}.jsonl'). recovery is
none, or general or persona rows and perhaps how (persona:full, general:gains;
LoRA by default): as many steps of the same rows for every method. persona:neeko
trains one set of blocks on the rows of all personas of the grid, as many steps
a persona, and measures each with the block that the gate picks for it; with
method=dense and persona:lora it is the paper's Table 13. Settings of mask
learning and names in braces in --calibration can be axes as well, and several
grids stand side by side with | between them.

Figures of a cell, item by item, are one file in cells/: a comparison can be
interrupted, extended by values, and gone on with elsewhere (--known_cells);
with --nokeep_models models go once they are measured. --curves measures
held-out answers while models learn, for a plot over the examples seen.
"""

import pathlib

from ppjax.base import compile_cache, flags, progress
from ppjax.comparing import config, runner


def main(cfg: config.CompareConfig) -> int:
    """Makes, measures and compares what the grid asks for."""
    compile_cache.enable()
    tables = runner.compare(cfg)
    if tables is not None:
        print(tables)
        progress.say(f'Page: {pathlib.Path(cfg.output_dir) / "compare.html"}')
    return 0


if __name__ == '__main__':
    flags.run(config.CompareConfig, main)
