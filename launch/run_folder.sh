# shellcheck shell=bash disable=SC2154
# Sourced by scripts that read the markers of a run. They set `python`, the words that start Python.
check_recipe() {  # RECIPE [--key=value ...]: refuses what training would refuse before it starts, except for weights of another run
  local code='import sys
from sr_dist.core import cli
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.sections import AUTO
def work(words, options):
    path, = cli.check_words(words, "RECIPE")
    recipe = checks.read_recipe(path, options)
    if recipe.generator and recipe.generator.name == AUTO:
        return  # the network is that of weights that do not exist yet
    from sr_dist.training.needed_files import find_weights
    find_weights(checks.complete(data_checks.load(path, options)))
sys.exit(cli.run_words(work, str))'
  "${python[@]}" -c "$code" "$@"
}
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
