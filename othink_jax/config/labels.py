"""Notes and tags of a run: they do not affect what the run does, and may change at any time."""

from othink_jax.config.checks import require
from othink_jax.errors import quoted, writable

LABELS = ("notes", "tags")  # the settings of a run that are labels only
_LONGEST_TAG = 64  # characters; Weights & Biases takes no more


def checked_notes(notes: str) -> str:
    """Notes of a run, of any number of lines, without white space around them.

    Raises:
      UserError: they are not UTF-8 text.
    """
    require(writable(notes) == notes, f"--notes is not UTF-8 text: {quoted(notes)}")
    return notes.replace("\r\n", "\n").strip()


def checked_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Tags of a run, each once, in the order given.

    Raises:
      UserError: a tag is empty or too long, or holds white space, a comma or what is not printable.
    """
    for tag in tags:
        require(
            0 < len(tag) <= _LONGEST_TAG,
            f'--tags "{quoted(tag)}": a tag has from 1 to {_LONGEST_TAG} characters',
        )
        require(
            tag.isprintable() and " " not in tag and "," not in tag,
            f'--tags "{quoted(tag)}": a tag is one word; several are --tags FIRST SECOND',
        )
    return tuple(dict.fromkeys(tags))
