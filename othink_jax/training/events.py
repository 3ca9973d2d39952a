"""Event files for TensorBoard, written row by row in the training thread."""

import io
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from othink_jax.markup import cell_in_markdown
from othink_jax.training.samples import Samples


class EventFile:
    """One file of scalars, texts and images; needs the extra `tensorboard`.

    tensorboardX's own `SummaryWriter` writes from a thread. If a full disk kills that thread, the
    run hangs within the next eleven values. Here an error is raised where it happens.
    """

    def __init__(self, path: Path) -> None:
        """Create the file; raises ImportError without tensorboardX, OSError as `open` does."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._event, self._start = Event, SessionLog.START
        self._records = RecordWriter(str(path))
        self._write(file_version="brain.Event:2")

    @classmethod
    def of_now(cls, directory: Path) -> "EventFile":
        """Create a file with a name that TensorBoard finds; also makes the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        second, host = int(time.time()), socket.gethostname()
        while (path := directory / f"events.out.tfevents.{second}.{host}").exists():
            second += 1  # TensorBoard reads the files in the order of their names
        return cls(path)

    def begin(self, step: int) -> None:
        """Tell TensorBoard to discard values from this step on of earlier files in the directory.

        A run that was killed repeats the steps after its last checkpoint.
        """
        self._write(step=step, session_log={"status": self._start})

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Write the values of a step, by name; raises OSError on a full disk."""
        values = [{"tag": name, "simple_value": value} for name, value in numbers.items()]
        self._write(step=step, summary={"value": values})

    def add_text(self, name: str, text: str, step: int) -> None:
        """Write a text in Markdown; raises as `add` does."""
        from tensorboardX import summary

        self._write(step=step, summary=summary.text(name, text))

    def add_samples(self, samples: Samples) -> None:
        """Write completions as a table, and the images that its cells name; raises as `add`."""
        tags = [
            [f"samples/prompt_{row}_image_{i}" for i in range(len(images))]
            for row, images in enumerate(samples.images)
        ]
        columns, rows = samples.table(tags)
        lines = [columns, ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self.add_text("samples", text, samples.step)
        values = [
            {"tag": tag, "image": _encoded(image)}
            for names, images in zip(tags, samples.images, strict=True)
            for tag, image in zip(names, images, strict=True)
        ]
        self._write(step=samples.step, summary={"value": values})

    def close(self) -> None:
        """Close the file; all added values are on disk already."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


def _cell(value: Any) -> str:
    """A cell of a Markdown table."""
    if value is None:
        return ""
    return cell_in_markdown(f"{value:.4g}" if isinstance(value, float) else str(value))


def _encoded(image: Image.Image) -> dict[str, Any]:
    """An image as the fields of TensorBoard's image message."""
    file = io.BytesIO()
    image.save(file, "PNG")
    sizes = {"height": image.height, "width": image.width, "colorspace": len(image.getbands())}
    return {**sizes, "encoded_image_string": file.getvalue()}
