"""Memory and least time of a run on an absent machine, from that machine's own compiler."""
