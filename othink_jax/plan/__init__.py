"""What a run takes on a machine that is not here, by the compiler of that machine."""
