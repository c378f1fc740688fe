"""The published weights, if this machine has them, beside clean-fid's, lpips' and torchvision's own numbers.

Run with `-m weights`. Without a file the test is skipped and names the place to put it.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sr_dist.core.batch import Batch
from sr_dist.data.degradations import bicubic
from sr_dist.data.image_pairs import Batches
from sr_dist.data.images import open_images
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.contact_sheet import to_pil
from sr_dist.evaluation.distances.extractor import INCEPTION
from sr_dist.evaluation.distances.frechet import from_moments, moments
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.evaluation.metrics import lpips
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.scoring import Scoring, score
from sr_dist.losses.content import vgg
from sr_dist.models import pretrained

pytestmark = pytest.mark.weights
CPU = torch.device("cpu")


def find_or_skip(name: str):
    try:
        return pretrained.find(name, "weights")
    except pretrained.MissingWeights as absent:
        pytest.skip(str(absent))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub("vgg16-397923af.pth")`: torchvision and lpips find the file in the hub, and download nothing."""
    folder = tmp_path / "hub" / "checkpoints"

    def put(name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(find_or_skip(name).resolve())
        monkeypatch.setattr("torch.hub._hub_dir", str(folder.parent))

    return put


def clean_fids_model(mode: str):
    from cleanfid import features, inception_pytorch
    from cleanfid.inception_torchscript import InceptionV3W

    path = find_or_skip(INCEPTION[mode])
    if mode == "clean":
        return InceptionV3W(str(path.parent), download=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: torch.load(path, weights_only=True))
        return features.feature_extractor(name="pytorch_inception", device=CPU, use_dataparallel=False)


def clean_fids_rows(folder, mode: str) -> np.ndarray:
    from cleanfid.fid import get_folder_features

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = clean_fids_model(mode)
        return get_folder_features(str(folder), model=model, num_workers=0, device=CPU, mode=mode, verbose=False)


@pytest.mark.parametrize("mode", sorted(INCEPTION))
def test_fid_and_kid_of_an_evaluation_are_clean_fids_of_the_files(mode, photographs, tmp_path):
    """Bicubic images written as files: clean-fid's features of this folder and of HR. Its own Fréchet distance is compared on 4
    projections of the 2048 features, because with fewer images than features it is not exact."""
    from cleanfid.fid import frechet_distance, kernel_distance

    find_or_skip(INCEPTION[mode])
    folder, restored, method = photographs(12, 96, 80), tmp_path / "restored", baseline("bicubic", 2)
    batches = Batches(open_images(str(folder)), 2, bicubic.build(bicubic.Config(), 2), 4)
    restored.mkdir()
    for batch in (batches[number] for number in range(len(batches))):
        for name, lr in zip(batch.names, batch.lr, strict=True):
            to_pil(method(lr[None])[0]).save(restored / f"{name}.png")
    metrics = open_metrics(["fid", "kid"], CPU, mode)
    same = (batches[number].hr for number in range(len(batches)))
    methods = {"bicubic": method, "HR itself": lambda lr: next(same)}
    scores = score(methods, batches, Scoring(protocol("matlab-y", 2), metrics, CPU))
    hr, sr = (clean_fids_rows(place, mode).astype(np.float64) for place in (folder, restored))
    assert hr.shape == (12, 2048)
    values, means = scores.means("bicubic"), hr.mean(0) - sr.mean(0)
    x, y = ((rows - rows.mean(0)) / np.sqrt(11) for rows in (hr, sr))
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert values["fid"] == pytest.approx(means @ means + (x**2).sum() + (y**2).sum() - 2 * root, rel=1e-3)
    assert values["kid"] == pytest.approx(kernel_distance(hr, sr, num_subsets=1, max_subset_size=12), rel=1e-4)
    assert 0 <= scores.means("HR itself")["fid"] <= 1e-6 * (x**2).sum()

    few = [rows @ np.random.default_rng(0).normal(size=(2048, 4)) for rows in (hr, sr)]
    theirs = frechet_distance(*(of(rows) for rows in few for of in (lambda rows: rows.mean(0), lambda rows: np.cov(rows.T))))
    assert from_moments(*map(moments, few)) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_packages_with_its_own_way_to_the_weights(net, hub, make_photo):
    from lpips import LPIPS

    hub(lpips.NEEDS[f"lpips_{net}"])
    lpips._network.cache_clear()
    hr, sr = (torch.from_numpy(np.stack([make_photo(i + at, 64, 72) for i in range(2)])) for at in (0, 5))
    hr, sr = (images.permute(0, 3, 1, 2).float() / 255 for images in (hr, sr))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = LPIPS(net=net, verbose=False)(2 * sr - 1, 2 * hr - 1).flatten().tolist()
        values = lpips.per_image(sr, hr, protocol("matlab-y", 2), grey=False)[f"lpips_{net}"]
    assert values == pytest.approx(expected, rel=1e-5)
    assert min(values) > 0.01
    assert lpips.per_image(hr, hr, protocol("matlab-y", 2), grey=False)[f"lpips_{net}"] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(("layer", "places", "activated"), [("conv2_2", 9, True), ("conv5_4", 36, True), ("conv5_4", 35, False)])
def test_the_content_loss_is_of_torchvisions_vgg19(layer, places, activated, hub, make_photo):
    """The first so many modules of torchvision's pre-trained network, on images normalised by its own transform."""
    from torchvision.models import VGG19_Weights, vgg19
    from torchvision.transforms.functional import normalize

    hub(vgg.FILE)
    body = vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features[:places].eval()
    images = [torch.from_numpy(make_photo(i, 48, 48)).permute(2, 0, 1)[None].float() / 255 for i in (0, 5)]
    with torch.no_grad():
        a, b = (body(normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])) / 12.75 for image in images)
        term = vgg.build(vgg.Config(layers=layer, activated=activated))
        value = term(images[0], Batch(images[0], images[1], torch.tensor([0]), ("a",)))
    assert value.item() == pytest.approx(F.mse_loss(a, b).item(), rel=1e-5)
