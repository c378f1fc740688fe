"""The distance of embeddings, with a network made here: of sr and hr, or of sr and the vector of a class."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from batches import against
from processes import metrics, run, small_gan
from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.losses.content import embedding
from sr_dist.recipe.labels import LabelNames


class Means(nn.Module):
    """The mean of every colour: an embedding that can be worked out by hand."""

    def forward(self, images):
        return images.mean((2, 3))


class Square(nn.Module):
    """Takes images of 8 pixels alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 5)

    def forward(self, images):
        return self.linear(images.flatten(1))


@pytest.fixture
def scripted(tmp_path):
    def write(network, name="e.pt"):
        torch.jit.script(network).save(str(tmp_path / name))
        return str(tmp_path / name)

    return write


@pytest.fixture
def texts(tmp_path):
    def write(vectors, name="texts.json"):
        (tmp_path / name).write_text(vectors if isinstance(vectors, str) else json.dumps(vectors))
        return str(tmp_path / name)

    return write


def plain(*colours):
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, 4, 4).clone()


def test_the_distance_of_sr_and_hr_by_hand(scripted):
    """Red and yellow are 45 degrees apart, equal colours 0."""
    term = embedding.build(embedding.Config(model=scripted(Means())))
    sr, hr = plain([0.5, 0.0, 0.0], [0.1, 0.2, 0.3]).requires_grad_(), plain([0.5, 0.5, 0.0], [0.2, 0.4, 0.6])
    loss = term(sr, against(hr))
    assert loss.item() == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=1e-6)
    loss.backward()
    assert sr.grad[0].abs().sum() > 0 and torch.isfinite(sr.grad).all()
    assert not list(term.parameters()) or not any(p.requires_grad for p in term.parameters())


def test_the_distance_to_the_vector_of_the_class(scripted, texts):
    """The first image is of class 1, whose vector is green; the second has no class."""
    vectors = texts({"red": [1, 0, 0], "green": [0, 1, 0]})
    term = embedding.build(embedding.Config(model=scripted(Means()), texts=vectors))
    sr = plain([0.5, 0.5, 0.0], [0.9, 0.0, 0.0]).requires_grad_()
    loss = term(sr, against(torch.zeros_like(sr), label=[1, -1]))
    assert loss.item() == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=1e-6)
    loss.backward()
    assert not sr.grad[1].any()


def test_images_are_resized_and_grey_ones_become_three_channels(scripted):
    torch.manual_seed(0)
    network = Square()
    term = embedding.build(embedding.Config(model=scripted(network), size=8))
    sr, hr = torch.rand(2, 1, 24, 20), torch.rand(2, 1, 24, 20)
    small = [F.interpolate(x.expand(-1, 3, -1, -1), (8, 8), mode="bicubic", antialias=True) for x in (sr, hr)]
    expected = (1 - F.cosine_similarity(*map(network, small))).mean()
    torch.testing.assert_close(term(sr, against(hr)), expected)


def test_texts_must_be_those_of_the_shards(scripted, texts):
    config = embedding.Config(model=scripted(Means()), texts=texts({"red": [1, 0, 0], "green": [0, 1, 0]}))
    embedding.check_labels(config, LabelNames("data", ("red", "green"), ()))
    for classes in (("green", "red"), ("red",), ()):
        with pytest.raises(
            UserError, match=r"^objective\.content\.embedding\.texts: .*has other classes than the shards in 'data'"
        ):
            embedding.check_labels(config, LabelNames("data", classes, ()))


@pytest.mark.parametrize(
    "vectors", ["[1, 2]", "{", '{"a": [1], "b": [1, 2]}', '{"a": ["x"]}', "{}", '{"a": []}', '{"a": 3}'], ids=str
)
def test_texts_that_cannot_be_are_refused(scripted, texts, vectors):
    with pytest.raises(UserError, match=r"^objective\.content\.embedding\.texts: "):
        embedding.build(embedding.Config(model=scripted(Means()), texts=texts(vectors)))


def test_networks_that_cannot_be_are_refused(scripted, texts, tmp_path):
    for model, message in ((tmp_path / "no.pt", "nothing is at"), (texts({"a": [1]}), "is not a TorchScript file")):
        with pytest.raises(UserError, match=rf"^objective\.content\.embedding\.model: .*{message}"):
            embedding.build(embedding.Config(model=str(model)))
    flat = embedding.build(embedding.Config(model=scripted(nn.Flatten(0))))
    with pytest.raises(UserError, match=r"returns \(96,\) for 2 images, not one row for each"):
        flat(torch.rand(2, 3, 4, 4), against(torch.rand(2, 3, 4, 4)))
    wide = embedding.build(embedding.Config(model=scripted(Means()), texts=texts({"a": [1, 2]})))
    with pytest.raises(UserError, match=r"its vectors have 2 numbers, those of images 3"):
        wide(torch.rand(2, 3, 4, 4), against(torch.rand(2, 3, 4, 4)))


def test_a_gan_trains_with_it(scripted, photo_shards, tmp_path):
    content = f"{{l1: 1.0, embedding: {{weight: 0.1, model: {scripted(Square())}, size: 8}}}}"
    out, _ = run(0, "sr_dist.train", *small_gan(photo_shards, tmp_path, steps=2, data__batch=4, objective__content=content))
    assert all(0 < row["loss/embedding"] < 0.3 for row in metrics(tmp_path / "run"))
    assert "its code runs with all rights of this process" in out
