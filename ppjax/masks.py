"""`python -m ppjax.masks`: which channels different personas' masks share.

python -m ppjax.masks --masks=runs/sweep --output_dir=runs/masks
python -m ppjax.masks --masks='runs/cast/personas/*' --output_dir=runs/masks \\
    --embeddings=base
python -m ppjax.masks --operation=info --masks=jack.pmask
python -m ppjax.masks --operation=and --masks=jack.pmask,walt.pmask \\
    --output=both.pmask

Says what the masks of one base model have in common (the paper's Figures 4 and
5): masks.html with plots, masks.md, masks.csv (every pair) and masks.json.
Masks learned under one persona prompt are that persona's repetitions, told
apart by the seeds of their runs (or seed0 in a name), or else by the names of
their folders.

similarity         Jaccard over all layers, and layer by layer, beside what
                   masks of these widths share by chance
within and         means with 95-percent intervals over personas; masks of one
between personas   persona and two seeds are compared with those of two
                   personas and two seeds, as one seed may make masks alike by
                   itself
between seeds      Pearson's r of the similarities of all pairs of personas,
                   with two p values: of pairs taken for independent, as in the
                   paper, and with personas permuted (Mantel), as each is in
                   many pairs
which are alike    a heat map for each seed, a dendrogram (average linkage)
--embeddings       r with cosines between embeddings of the personas' texts:
                   base, the base model's mean last hidden states; local,
                   another model's (--embedding_model); openai, a server's
                   /v1/embeddings (--embedding_url)
--operation        instead of all that: info prints what mask files say; and,
                   or, xor of two masks or more, or diff of two, makes a mask,
                   --output=both.pmask
"""

import pathlib

from ppjax.analysis import config, runner
from ppjax.base import compile_cache, flags, progress


def main(cfg: config.MasksConfig) -> int:
    """Compares or combines masks, and prints what came of it."""
    compile_cache.enable()
    print(runner.run(cfg))
    if cfg.output_dir:
        progress.say(f'Page: {pathlib.Path(cfg.output_dir) / "masks.html"}')
    elif cfg.output:
        progress.say(f'Mask: {cfg.output}')
    return 0


if __name__ == '__main__':
    flags.run(config.MasksConfig, main)
