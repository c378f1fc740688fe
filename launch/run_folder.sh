# shellcheck shell=bash disable=SC2154
# Sourced by scripts that wait for a run's markers. They set `python`, the words that start Python.
folder() {  # RECIPE [--key=value ...] [--dry_run] -> its run folder; needs no data
  local code='import sys
from sr_dist.core import cli
from sr_dist.recipe import checks
def work(words, options):
    options.pop("dry_run", None)
    print(checks.stated(*cli.only(words, "RECIPE"), options).folder)
sys.exit(cli.run_words(work, str))'
  "${python[@]}" -c "$code" "$@"
}
