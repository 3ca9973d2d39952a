"""Campaigns that look for what no test names: faults, floods and strangers' files, at random.

Each file is one campaign with its own command. `make soak` runs all of them. A campaign takes a
seed and a count, counts the outcomes, and writes both into a JSON record; the records of the last
run are committed in `results/`. An outcome that must not happen ends the command with exit code 1.
"""
