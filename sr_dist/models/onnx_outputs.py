"""What an ONNX graph makes of images, computed in a process of its own: onnxruntime divides whole numbers by zero in some graphs,
which ends the process by a signal.

    python -m sr_dist.models.onnx_outputs FOLDER     graph.onnx, 0.lr.npy, 1.lr.npy, ... -> 0.sr.npy, 1.sr.npy, ...
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class GraphFailed(Exception):
    """The text names the kind of error; `done` images were computed before it."""

    def __init__(self, kind: str, done: int) -> None:
        super().__init__(kind)
        self.done = done


def outputs(graph: bytes, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of the output of a graph that takes images called `lr`."""
    with tempfile.TemporaryDirectory(prefix="sr_dist.onnx.") as name:
        folder = Path(name)
        (folder / "graph.onnx").write_bytes(graph)
        for number, image in enumerate(images):
            np.save(folder / f"{number}.lr.npy", image)
        done = subprocess.run([sys.executable, "-m", __name__, name], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            kind = signal.Signals(-done.returncode).name if done.returncode < 0 else (done.stderr.split() or ["no message"])[-1]
            raise GraphFailed(kind, len(list(folder.glob("*.sr.npy"))))
        return [np.load(folder / f"{number}.sr.npy") for number in range(len(images))]


def main(folder: Path) -> None:
    import onnxruntime  # an optional dependency

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only what is fatal: an error is in the exception too
    try:
        session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])
        for number in range(len(list(folder.glob("*.lr.npy")))):
            (made,) = session.run(None, {"lr": np.load(folder / f"{number}.lr.npy")})
            np.save(folder / f"{number}.sr.npy", made)
    except Exception as problem:  # its kinds of errors are private
        sys.exit(type(problem).__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
