"""`python -m ppjax.report`: what a run came to, as a page and in the terminal.

python -m ppjax.report --output_dir=runs/mine

Writes results/efficiency.json, results/samples.json and report.html into the
run directory, which may be of a run that is still learning.
"""

from ppjax.base import compile_cache, flags
from ppjax.evaluation import reporting


def main(cfg: reporting.ReportConfig) -> int:
    """Measures what is missing, writes the page, prints the gist."""
    compile_cache.enable()
    return reporting.report_on(cfg)


if __name__ == '__main__':
    flags.run(reporting.ReportConfig, main)
