# shellcheck shell=bash disable=SC2154
# Sourced by scripts that wait for a run's markers. They set `python`, the words that start Python.
folder() {  # RECIPE [--key=value ...] -> its run folder; needs no data
  local code='import sys; from sr_dist import door, recipe
sys.exit(door.run(lambda words, options: print(recipe.stated(*door.only(words, "RECIPE"), options).folder)))'
  "${python[@]}" -c "$code" "$@"
}
