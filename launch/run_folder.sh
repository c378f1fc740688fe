# shellcheck shell=bash disable=SC2154
# Sourced by scripts that read the markers of a run. They set `python`, the words that start Python.
run_folder() {  # RECIPE [--key=value ...] [--dry_run]: prints the run folder; needs no data
  local code='import sys
from sr_dist.core import cli
from sr_dist.recipe import checks
def work(words, options):
    options.pop("dry_run", None)
    print(checks.read_recipe(*cli.check_words(words, "RECIPE"), options).folder)
sys.exit(cli.run_words(work, str))'
  "${python[@]}" -c "$code" "$@"
}
