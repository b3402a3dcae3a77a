"""`python -m ppjax.rank`: answers of several models ranked, by people and by judges.

python -m ppjax.rank --answers=ours=a.jsonl,rival=b.jsonl --output_dir=runs/study --serve
python -m ppjax.rank --output_dir=runs/study --judge=openai \\
    --judge_url=http://localhost:8000 --judge_model=NAME
python -m ppjax.rank --output_dir=runs/study --summary

People and judges put the answers, without their names and in an order of their own, in
order in CoSER's three dimensions. All rankings are in ranking.sqlite in the run
directory, each as soon as it is sent; what was interrupted goes on.
"""

from ppjax.base import flags, progress
from ppjax.ranking import config, pipeline


def main(cfg: config.RankConfig) -> int:
    """Serves the page, or judges and prints the tables."""
    if tables := pipeline.rank(cfg):
        print(tables, flush=True)
        progress.say(f'Results: {cfg.run / "results"}')
    return 0


if __name__ == '__main__':
    flags.run(config.RankConfig, main)
