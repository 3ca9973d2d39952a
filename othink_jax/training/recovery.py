"""The last checkpoint that is whole."""

from typing import Any

from othink_jax.checkpoint.store import TrainingStore
from othink_jax.errors import UserError
from othink_jax.training import processes


def last_whole(
    store: TrainingStore, like: Any
) -> tuple[tuple[Any, dict[str, Any]] | None, list[str]]:
    """State and progress of the last checkpoint that can be read, and what was wrong with others.

    Damaged ones that are later than it are set aside, so that the run can write their steps again.

    Args:
      store: of the run.
      like: as of `TrainingStore.restore`.

    Returns:
      None in the place of state and progress where there is no checkpoint.

    Raises:
      UserError: there are checkpoints, and all are damaged. None is then moved.
    """
    faults: dict[int, str] = {}
    for step in store.steps():
        told = processes.exchange(store.fault(step))
        fault = next((fault for fault in told if fault), None)
        if fault is None:
            try:
                found = store.restore(like, step)
                break
            except UserError as error:
                fault = str(error)
        faults[step] = fault
    else:
        if faults:
            raise UserError(f"no checkpoint of this run is whole: {'; '.join(faults.values())}")
        return None, []
    notes = []
    for damaged, fault in faults.items():
        place = store.place(damaged)
        if processes.first():
            store.set_aside(damaged)
        notes.append(f"{fault}. It is now {place}; the run goes on from step {step}")
    processes.exchange("set aside")
    store.reload()
    return found, notes
