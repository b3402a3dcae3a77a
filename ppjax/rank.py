"""`python -m ppjax.rank`: answers of several models, ranked by people and judges.

python -m ppjax.rank --answers=ours=a.jsonl,rival=b.jsonl,third=c.jsonl \\
    --items=20 --output_dir=runs/study --serve
python -m ppjax.rank --output_dir=runs/study --judge=openai \\
    --judge_url=http://localhost:8000 --judge_model=NAME
python -m ppjax.rank --output_dir=runs/study --summary

Is the paper's human evaluation (appendix C): answers of several models to the
same questions, without names, in an order of their own for every participant
and question, are put in order by CoSER's anthropomorphism, character fidelity
and storyline quality. A file has one {"persona", "question", "answer"} a line;
what evaluate --tasks=judge left is taken as it is (--answers=runs/mine all its
models, ours=runs/mine:pruned one under another name). Only questions that all
models answer are used, and the others counted.

--serve prints the address of a page for people (--host=0.0.0.0 opens it to the
network): they drag, or use keys or buttons, on a phone as well; a code brings
them back to where they were. Nothing but the code and the orders is stored,
each question in one transaction of ranking.sqlite, as soon as it is sent. A
judge is asked for every ranking in two orders, one the reverse of the other,
and its ranks are averaged; replies that are no list of letters are counted,
never guessed at. What was interrupted goes on.

results/rank.md, rank.json and rankings.csv then have mean ranks with standard
deviations and bootstrap intervals (Tables 5 and 9), Spearman's correlation
between people and each judge, and how far a judge's rankings hang on the order
in which answers stand.
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
