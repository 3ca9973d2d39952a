"""Recovery of the last undamaged checkpoint."""

from typing import Any

from othink_jax.checkpoint.store import TrainingStore
from othink_jax.errors import UserError
from othink_jax.training import processes


def restore_last_intact(
    store: TrainingStore, like: Any
) -> tuple[tuple[Any, dict[str, Any]] | None, list[str]]:
    """Restore the last undamaged checkpoint.

    Later ones, which are damaged, are set aside, so that the run can write their steps again.

    Args:
      store: checkpoints of the run.
      like: see `TrainingStore.restore`.

    Returns:
      State and progress, or None if there is no checkpoint; and messages about damaged ones.

    Raises:
      UserError: there are checkpoints, but all are damaged. None of them is moved.
    """
    faults: dict[int, str] = {}
    for step in store.steps():  # latest first
        told = processes.all_gather(store.fault(step))
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
    processes.barrier("set aside")
    store.reload()
    return found, notes
