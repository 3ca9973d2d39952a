"""Randomised campaigns of faults, floods and strangers' files, for failures that no test names.

Each campaign is a module with its own command. `make soak` runs all of them. A campaign takes a
seed and a count, counts the outcomes, and writes both into a JSON record; the records of the last
run are committed in `results/`. A bad outcome ends the command with exit code 1.
"""
