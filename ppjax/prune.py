"""`python -m ppjax.prune`: the methods that persona masks are compared with.

python -m ppjax.prune --method=llm_pruner --match=0.25 --base_model=DIR \\
    --instructions=alpaca.json --output_dir=runs/llm-pruner
python -m ppjax.prune --print_budget --match=0.25,0.5 --base_model=config.json
"""

from ppjax.base import compile_cache, flags, progress
from ppjax.baselines import budget_table, config, run
from ppjax.models import base_model
from ppjax.models import config as config_lib


def main(cfg: config.PruneConfig) -> int:
    """Prunes, or prints what would be left."""
    if cfg.print_budget:
        model = config_lib.from_hf_config(base_model.read_hf_config(cfg.base_model))
        print(budget_table.markdown(cfg, model))
        return 0
    compile_cache.enable()
    progress.say(f'Pruned model: {run.prune(cfg)}')
    return 0


if __name__ == '__main__':
    flags.run(config.PruneConfig, main, joined=True)
