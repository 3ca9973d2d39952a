"""Find states of transformations inside the state of a composite optimizer."""

from typing import TypeVar

import jax
import optax

_S = TypeVar("_S")


def states_of(opt_state: optax.OptState, kind: type[_S]) -> list[_S]:
    """All states of one type, however deep `optax.chain` and wrappers have nested them."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]
