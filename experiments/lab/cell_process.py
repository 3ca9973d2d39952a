"""Run one cell: python -m experiments.lab.cell_process ROOT [CORE], with the cell on stdin."""

import os
import sys
from pathlib import Path

from experiments.lab.cells import Cell, run
from othink_jax.errors import UserError


def main() -> None:
    root, *core = sys.argv[1:]
    cell = Cell.from_json(sys.stdin.read())
    if core:
        # Before JAX starts: it makes a thread for each core that it may use.
        os.sched_setaffinity(0, {int(core[0])})
    from othink_jax import compilation_cache

    compilation_cache.enable()
    try:
        run(Path(root), cell)
    except UserError as error:
        print(f"{cell.name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
