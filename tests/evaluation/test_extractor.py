"""The extractor beside clean-fid's own code, and the grid of patches."""

import warnings

import numpy as np
import pytest
import torch
from finished import finished
from PIL import Image

from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.evaluation.distances.extractor import Extractor, open_extractor, torchscript
from sr_dist.evaluation.distances.extractor import inception as fid_inception
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.models import pretrained, trained
from sr_dist.recipe.labels import Labels

CPU = torch.device("cpu")


def loaded(folder):
    images = [np.array(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def clean_fids(folder, model, mode="clean"):
    from cleanfid.fid import get_folder_features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_folder_features(str(folder), model=model, num_workers=0, device=CPU, mode=mode, verbose=False)


def test_features_are_clean_fids_own(inception, photographs):
    from cleanfid.inception_torchscript import InceptionV3W

    folder = photographs(5)
    ours = fid_inception("clean", CPU)
    assert (ours.name, ours.weights_sha256) == ("inception", sha256(inception))
    rows = ours.whole(loaded(folder))
    assert rows.shape == (5, 2048)
    assert rows.std(0).max() > 0.01  # the features differ between images
    with torch.no_grad():
        np.testing.assert_allclose(rows, clean_fids(folder, InceptionV3W(str(inception.parent), download=False)), atol=1e-4)


@pytest.mark.slow
def test_the_other_mode_is_clean_fids_own_too(tmp_path, monkeypatch, photographs):
    """Its Inception with random weights under the published name."""
    from cleanfid import inception_pytorch

    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    with monkeypatch.context() as patched:
        patched.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(torch.nn.Module, "load_state_dict", lambda self, state: torch.save(self.state_dict(), path))
        torch.manual_seed(0)
        inception_pytorch.fid_inception_v3()
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"^fid: .* is damaged or another file"):
        fid_inception("legacy_pytorch", CPU)
    monkeypatch.setattr(pretrained, "verified", lambda path, *_: path)
    folder = photographs(2)
    rows = fid_inception("legacy_pytorch", CPU).whole(loaded(folder))
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: torch.load(path, weights_only=True))
    model = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()
    with torch.no_grad():
        theirs = clean_fids(folder, lambda x: model(x / 255)[0].squeeze(-1).squeeze(-1), "legacy_pytorch")
    np.testing.assert_allclose(rows, theirs, rtol=1e-4, atol=1e-5)


def test_a_file_cut_short_and_a_missing_one_are_named(inception, monkeypatch):
    inception.write_bytes(inception.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"^fid: '{inception}' is damaged or another file: its sha256 begins "):
        fid_inception("clean", CPU)
    inception.unlink()
    with pytest.raises(pretrained.MissingWeights, match=rf"put it at '{inception}'"):
        fid_inception("clean", CPU)


def test_an_extractor_of_the_users_own_is_called_by_its_file(stand_in, photographs):
    extractor = torchscript(stand_in, "clean", CPU)
    assert (extractor.name, extractor.weights_sha256) == ("toy", sha256(stand_in))
    about = extractor.describe()
    assert about["resize"] == "clean, to 299 x 299" and "299 x 299 without resizing, " in about["patches"]
    assert extractor.whole(loaded(photographs(3))).shape == (3, 12)


def test_a_finished_classifier_is_an_extractor_of_its_own_name(tmp_path, photographs):
    """It gets 8-bit images in the size it was trained on, without a detour over 299 pixels."""
    file = finished(tmp_path / "k.safetensors", Labels("class", ("a", "b", "c")), size=16)
    extractor = open_extractor(file, CPU)
    about = extractor.describe()
    assert (extractor.name, about["weights_sha256"]) == ("k", sha256(tmp_path / "k.safetensors"))
    assert about["network"] == "a classifier of 3 classes, features before its last layer (Linear)"
    assert about["resize"] == "bilinear, to 16 x 16, as it was trained"
    assert about["patches"] == "299 x 299 resized (bilinear, to 16 x 16, as it was trained), a grid in the middle of every image"
    images = loaded(photographs(3))
    expected = trained.open_classifier(file, "x").features(images)
    np.testing.assert_allclose(extractor.whole(images + 0.3 / 255), expected, rtol=1e-5, atol=1e-6)
    metrics = open_metrics(["fid", "kid"], CPU, extractor=extractor)
    assert list(metrics.better) == ["fd_k", "kd_k"] and metrics.missing == {}
    assert open_extractor(None, CPU) is None


def test_a_file_that_is_not_torchscript_or_fails_is_refused_at_once(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match=r"^extractor: '.*text\.pt' is not a TorchScript file"):
        torchscript(tmp_path / "text.pt", "clean", CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(7, 3), torch.rand(2, 7)).save(str(tmp_path / "linear.pt"))
        torch.jit.trace(torch.nn.Identity(), torch.rand(2, 7)).save(str(tmp_path / "same.pt"))
    with pytest.raises(UserError, match=r"^extractor: '.*linear\.pt' fails on images \(2, 3, 299, 299\)"):
        torchscript(tmp_path / "linear.pt", "clean", CPU)
    with pytest.raises(UserError, match=r"^extractor: 'same' returns \(2, 3, 299, 299\) for 2 images"):
        torchscript(tmp_path / "same.pt", "clean", CPU)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda images: images.mean(), r"returns \(\) for 2 images"),
        (lambda images: (images, images), "returns a tuple for 2 images"),
        (lambda images: images.flatten(1) / 0, "returns values that are not finite"),
    ],
)
def test_an_extractor_that_makes_something_else_is_refused(photographs, network, message):
    with pytest.raises(UserError, match=rf"^extractor: 'odd' {message}"):
        Extractor("odd", "", "clean", network, CPU).whole(loaded(photographs(2)))


def corners(images):
    """The upper left and lower right pixel of each image, red."""
    return torch.stack([images[:, 0, 0, 0], images[:, 0, -1, -1]], 1)


def test_patches_are_a_grid_in_the_middle_without_resizing():
    """Of 610 x 900: two rows from 6, three columns from 1; red counts rows, halved to fit in 8 bits."""
    red = (torch.arange(610)[:, None] % 200).expand(610, 900)
    images = torch.stack([red, red, red])[None].expand(2, -1, -1, -1) / 255
    patches = Extractor("corners", "", "clean", corners, CPU).patches(images)
    expected = [[top % 200, (top + 298) % 200] for top in (6, 6, 6, 305, 305, 305)]
    assert patches.tolist() == expected * 2
    across = (torch.arange(900)[None] % 200).expand(610, 900)
    patches = Extractor("corners", "", "clean", corners, CPU).patches(torch.stack([across] * 3)[None] / 255)
    assert patches.tolist() == [[left % 200, (left + 298) % 200] for left in (1, 300, 599)] * 2


@pytest.mark.parametrize("size", [(298, 900), (299, 298), (40, 40)])
def test_images_below_299_pixels_have_no_patch(size):
    assert len(Extractor("corners", "", "clean", corners, CPU).patches(torch.rand(2, 3, *size))) == 0


def test_the_network_gets_images_as_a_file_stores_them():
    seen = []

    def network(images):
        seen.append(images)
        return images.mean((2, 3))

    image = torch.full((1, 3, 299, 299), 100.4 / 255)
    image[:, 1], image[:, 2] = 1.5, -1.0
    Extractor("seen", "", "clean", network, CPU).patches(image)
    assert [channel.unique().tolist() for channel in seen[0][0]] == [[100], [255], [0]]
