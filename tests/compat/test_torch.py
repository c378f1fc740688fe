"""The private names and the error texts of torch and torchvision that the package uses."""

from __future__ import annotations

import inspect
import io
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._functorch import config as functorch
from torch.utils.data import DataLoader


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_grad_scale_and_found_inf(kind):
    """training/ddp.py sets them on fused optimizers, as torch's GradScaler does: an update is skipped where found_inf is 1."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1, fused=True)
    for overflow, moved in ((1.0, False), (0.0, True)):
        weight.grad = torch.ones(3)
        before = weight.detach().clone()
        vars(optimizer).update(grad_scale=None, found_inf=torch.tensor(overflow))
        optimizer.step()
        assert (not weight.equal(before)) == moved
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    assert steps == ([] if kind is torch.optim.SGD else [1]), "a skipped update must not count"


def test_foreach_lerp():
    """training/ema.py interpolates lists of tensors in place."""
    averages, weights = [torch.zeros(2), torch.ones(1)], [torch.ones(2), torch.zeros(1)]
    torch._foreach_lerp_(averages, weights, 0.25)
    assert averages[0].tolist() == [0.25, 0.25] and averages[1].tolist() == [0.75]


def test_fake_tensor_mode_and_cdata():
    """tools/memory.py counts the bytes of tensors without data, each storage once by its `_cdata`."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # as tools/memory.py imports it

    with FakeTensorMode(allow_non_fake_inputs=True):
        whole = torch.empty(4, 5)
        view = whole[1:]
    assert view.shape == (3, 5)
    assert whole.untyped_storage()._cdata == view.untyped_storage()._cdata
    assert whole.untyped_storage()._cdata != torch.empty(4, 5).untyped_storage()._cdata
    assert whole.untyped_storage().nbytes() == 80


def test_batch_norm_and_check_input_dim():
    """training/batch_norm.py takes the place of every kind of batch normalization."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, _BatchNorm)

    class Any(_BatchNorm):
        def _check_input_dim(self, input):
            pass

    x = torch.randn(4, 2, 3)
    assert Any(2)(x).equal(nn.BatchNorm1d(2)(x))


def test_dump_snapshot():
    """training/out_of_memory.py writes what is in the memory of a GPU."""
    assert "filename" in inspect.signature(torch.cuda.memory._dump_snapshot).parameters


def test_workers_and_shutdown_workers():
    """data/loader.py ends the workers of a DataLoader's iterator."""
    iterator = iter(DataLoader(range(8), batch_size=None, num_workers=2))
    assert next(iterator) == 0
    workers = iterator._workers
    assert len(workers) == 2 and all(worker.pid and worker.is_alive() for worker in workers)
    iterator._shutdown_workers()
    assert not any(worker.is_alive() for worker in workers)


def test_new_shared():
    """data/shared_batches.py allocates shared memory of a size in bytes."""
    storage = torch.UntypedStorage._new_shared(16, device="cpu")
    tensor = torch.empty(0, dtype=torch.uint8).set_(storage).view(4, 4)
    assert tensor.is_shared() and tensor.numel() == 16


def test_decode_jpeg():
    """data/reader.py calls the operator with the bytes, the mode, and whether to apply EXIF orientation."""
    from torchvision.io import ImageReadMode  # registers the operator

    file = io.BytesIO()
    Image.fromarray(np.full((8, 6, 3), 128, np.uint8)).save(file, format="JPEG")
    data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    for mode, channels in ((ImageReadMode.RGB, 3), (ImageReadMode.GRAY, 1)):
        assert torch.ops.image.decode_jpeg(data, mode.value, False).shape == (channels, 8, 6)
    with pytest.raises(RuntimeError):
        torch.ops.image.decode_jpeg(data[:20], ImageReadMode.RGB.value, False)


class Dies(torch.utils.data.Dataset):
    def __getitem__(self, index: int) -> int:
        os._exit(3)

    def __len__(self) -> int:
        return 4


def test_the_error_of_a_dead_worker_says_so():
    """data/loader.py recognizes it by these words."""
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(iter(DataLoader(Dies(), batch_size=None, num_workers=1)))


def test_the_error_of_a_forbidden_pickle_names_the_class(tmp_path):
    """models/weights_files.py reads the name after GLOBAL."""
    torch.save({"recipe": os.path.join}, tmp_path / "weights.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL posixpath\.join"):
        torch.load(tmp_path / "weights.pth", weights_only=True)


def test_compiled_backward_passes_can_be_told_to_keep_their_buffers():
    """training/networks.py does where health measures the gradients of single terms."""
    assert functorch.donated_buffer in (True, False)
