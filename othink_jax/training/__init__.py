"""Training by each method: runs, their directories, the programs of a step, parallel devices."""
