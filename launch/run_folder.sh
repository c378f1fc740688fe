# shellcheck shell=bash disable=SC2154
# Sourced by scripts that wait for a run's markers. They set `python`, the words that start Python.
folder() {  # RECIPE [--key=value ...] [--dry_run] -> its run folder; needs no data
  local code='import sys; from sr_dist import door, recipe
def main(words, options):
    door.flag(options, "dry_run")
    print(recipe.stated(*door.only(words, "RECIPE"), options).folder)
sys.exit(door.run(main))'
  "${python[@]}" -c "$code" "$@"
}
