"""Sources whose inputs are more than images in folders: small made data sets in the layouts that are downloaded."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pytest
from made_shards import built, contents, keys_of, rejects_of
from PIL import Image
from scipy.io import savemat

from sr_dist.core.errors import UserError
from sr_dist.data.format import attribute_values


def rows(shards, *columns):
    """{key: values of these columns}"""
    index = shards.index(0)
    return {key.decode(): tuple(index[c][i].item() for c in columns) for i, key in enumerate(index["key"])}


# --------------------------------------------------------------------------------------------------------------- mnist


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


DIGITS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
LABELS = np.array([5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5], np.uint8)


def write_mnist(folder, part, packed, images=DIGITS, labels=LABELS):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in ((f"{part}-images-idx3-ubyte", idx(images)), (f"{part}-labels-idx1-ubyte", idx(labels))):
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize(("part", "name", "packed", "below"), [
    ("train", "train", False, "."), ("train", "train", True, "MNIST/raw"), ("test", "t10k", True, "."),
])  # fmt: skip
def test_digits_come_with_their_class(tmp_path, part, name, packed, below):
    write_mnist(tmp_path / "in" / below, name, packed)
    shards = built("mnist", tmp_path / "in", tmp_path / "out", part=part)
    assert shards.manifest.classes == tuple("0123456789")
    assert rows(shards, "class", "width", "height") == {f"{part}-{i:05d}": (int(d), 28, 28) for i, d in enumerate(LABELS)}
    members = contents(shards)
    for i, digit in enumerate(LABELS):
        image = Image.open(io.BytesIO(members[f"{part}-{i:05d}.png"]))
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), DIGITS[i])
        assert members[f"{part}-{i:05d}.cls"] == str(digit).encode()


def test_digits_of_the_other_part_are_pointed_out(tmp_path):
    write_mnist(tmp_path, "t10k", True)
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte .*; --part=test would find files"):
        built("mnist", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("damage", "message"), [
    (lambda d: d[:-1], "is cut short"), (lambda d: b"\0\0\x09" + d[3:], "not an idx file"), (lambda d: b"", "not an idx file"),
    (lambda d: d[:4] + b"\xff" * 12 + d[16:], "is cut short"), (lambda d: gzip.compress(d)[:-30], "cannot be read"),
])  # fmt: skip
def test_damaged_idx_files_are_refused(tmp_path, damage, message):
    write_mnist(tmp_path, "train", False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(damage(idx(DIGITS)))
    with pytest.raises(UserError, match=f"^INPUT: '.*train-images-idx3-ubyte' .*{message}"):
        built("mnist", tmp_path, tmp_path / "out")


def test_labels_that_are_not_as_many_as_images_are_refused(tmp_path):
    write_mnist(tmp_path, "train", False, labels=LABELS[:-1])
    with pytest.raises(UserError, match=r"has 11 labels, .* 12 images"):
        built("mnist", tmp_path, tmp_path / "out")


# -------------------------------------------------------------------------------------------------------------- celeba

NAMES = ["Eyeglasses", "Male", "No_Beard", "Wearing_Hat", "Young", "Smiling", "Bald", "Bangs", "Blurry"]
VALUES = np.random.default_rng(1).choice([-1, 1], (6, len(NAMES)))


def write_celeba(root, images, count_line=True, csv=False, listed=6, below=""):
    (root / below).mkdir(parents=True, exist_ok=True)
    lines = [f"{i + 1:06d}.jpg {'  '.join(map(str, VALUES[i]))}" for i in range(listed)]
    text = "\n".join([*([str(listed)] if count_line else []), " ".join(NAMES) + " ", *lines]) + "\n"
    if csv:
        text = "\n".join([",".join(["image_id", *NAMES]), *(",".join(line.split()) for line in lines)])
    (root / below / f"list_attr_celeba.{'csv' if csv else 'txt'}").write_text(text)
    parts = [f"{i + 1:06d}.jpg {i % 3}" for i in range(6)]
    (root / "list_eval_partition.txt").write_text("\n".join(parts))
    (root / "img_align").mkdir()
    for i, data in enumerate(images):
        (root / "img_align" / f"{i + 1:06d}.jpg").write_bytes(data)


@pytest.fixture
def faces(make_photo, image_bytes):
    return [image_bytes(make_photo(i, 40, 34), "JPEG") for i in range(6)]


@pytest.mark.parametrize("form", [{}, {"count_line": False}, {"csv": True}, {"below": "Anno"}])
def test_faces_come_with_their_attributes(tmp_path, faces, form):
    write_celeba(tmp_path / "in", faces, **form)
    shards = built("celeba", tmp_path / "in", tmp_path / "out")
    assert list(shards.manifest.attributes) == NAMES
    index, members = shards.index(0), contents(shards)
    assert index["attributes"].dtype.itemsize == 2
    bits = attribute_values(index["attributes"], len(NAMES))
    for row, key in enumerate(index["key"]):
        number = int(key.decode().rpartition("/")[2]) - 1
        assert bits[row].tolist() == (VALUES[number] == 1).tolist()
        assert json.loads(members[key.decode() + ".json"]) == {
            "attributes": dict(zip(NAMES, (VALUES[number] == 1) * 1, strict=True))
        }
        assert members[key.decode() + ".jpg"] == faces[number]
    assert len(index) == 6


def test_a_part_of_the_faces(tmp_path, faces):
    write_celeba(tmp_path / "in", faces)
    for number, part in enumerate(("train", "validation", "test")):
        shards = built("celeba", tmp_path / "in", tmp_path / part, part=part)
        assert sorted(keys_of(shards)) == [f"img_align/{i:06d}" for i in (1 + number, 4 + number)]


def test_faces_without_attributes_are_rejected_and_faces_in_two_folders_refused(tmp_path, faces):
    write_celeba(tmp_path / "in", faces, listed=5)
    shards = built("celeba", tmp_path / "in", tmp_path / "out")
    assert shards.manifest.samples == 5
    assert rejects_of(tmp_path / "out") == {"img_align/000006": "the list of attributes does not name it"}
    (tmp_path / "in" / "other").mkdir()
    (tmp_path / "in" / "other" / "000001.jpg").write_bytes(faces[0])
    with pytest.raises(UserError, match=r"two images are called '000001\.jpg'.*--images=FOLDER"):
        built("celeba", tmp_path / "in", tmp_path / "out2")
    assert built("celeba", tmp_path / "in", tmp_path / "out3", images="other").manifest.samples == 1


@pytest.mark.parametrize(("text", "message"), [
    ("", "does not begin with the names"), ("2\n", "does not begin with the names"),
    ("A B\n1.jpg 1\n", "line 2: needs a name and 2"),
    ("A B\n1.jpg 1 2\n", "line 2: needs a name and 2"), ("A A\n", "does not begin with the names"),
])  # fmt: skip
def test_a_list_that_is_no_list_is_refused(tmp_path, faces, text, message):
    write_celeba(tmp_path / "in", faces)
    (tmp_path / "in" / "list_attr_celeba.txt").write_text(text)
    with pytest.raises(UserError, match=f"^INPUT: .*{message}"):
        built("celeba", tmp_path / "in", tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- pairs


def write_pairs(hr, lr, make_photo, names, sizes, scale=4):
    """HR and LR images under the names given for each."""
    for number, ((hr_name, lr_name), (height, width)) in enumerate(zip(names, sizes, strict=True)):
        for folder, name, size in ((hr, hr_name, (width, height)), (lr, lr_name, (width // scale, height // scale))):
            if name:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(make_photo(number, height, width)).resize(size).save(folder / name)


PAIRS = [("0801.png", "0801x4.png"), ("b_HR.png", "b_LR.jpg"), ("z.png", "z.png"), ("Canon_001_HR.png", "Canon_001_LR4.png")]
SIZES = [(40, 60), (60, 40), (44, 44), (80, 36)]


def pair_sizes(shards):
    return rows(shards, "width", "height", "lr_width", "lr_height")


def test_pairs_are_matched_by_name_whatever_their_order_and_endings(tmp_path, make_photo):
    write_pairs(tmp_path / "a", tmp_path / "b", make_photo, PAIRS, SIZES)
    shards = built("pairs", tmp_path / "a", tmp_path / "out", lr=str(tmp_path / "b"))
    assert shards.manifest.scale == 4
    assert pair_sizes(shards) == {
        "0801": (60, 40, 15, 10), "b": (40, 60, 10, 15), "z": (44, 44, 11, 11), "Canon_001": (36, 80, 9, 20),
    }  # fmt: skip
    members = contents(shards)
    assert members["0801.png"] == (tmp_path / "a" / "0801.png").read_bytes()
    assert members["0801.lr.png"] == (tmp_path / "b" / "0801x4.png").read_bytes()
    assert Image.open(io.BytesIO(members["b.lr.png"])).format == "PNG"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_webdataset_reads_pairs(tmp_path, make_photo):
    import webdataset

    write_pairs(tmp_path / "a", tmp_path / "b", make_photo, PAIRS, SIZES)
    shards = built("pairs", tmp_path / "a", tmp_path / "out", lr=str(tmp_path / "b"))
    for sample in webdataset.WebDataset(str(shards.paths()[0]), shardshuffle=False):
        hr, lr = (Image.open(io.BytesIO(sample[suffix])) for suffix in ("png", "lr.png"))
        assert hr.size == (lr.width * 4, lr.height * 4)


def test_pairs_in_folders_hr_and_lr_and_in_one_folder(tmp_path, make_photo):
    names = [("a.png", "a.png"), ("b.png", "b.png")]
    write_pairs(tmp_path / "in" / "HR", tmp_path / "in" / "LR", make_photo, names, SIZES[:2], scale=2)
    both = pair_sizes(built("pairs", tmp_path / "in", tmp_path / "out", scale="2"))
    assert both == {"a": (60, 40, 30, 20), "b": (40, 60, 20, 30)}
    names = [("a_SRF_2_HR.png", "a_SRF_2_LR.png"), ("b_SRF_2_HR.png", "b_SRF_2_LR.png")]
    write_pairs(tmp_path / "one", tmp_path / "one", make_photo, names, SIZES[:2], scale=2)
    one = pair_sizes(built("pairs", tmp_path / "one", tmp_path / "out2", scale="2"))
    assert list(one.values()) == [both[key[0]] for key in one]


def test_pairs_without_partner_or_of_other_sizes_are_listed(tmp_path, make_photo):
    names = [*PAIRS, ("alone.png", None), (None, "lost.png")]
    write_pairs(tmp_path / "a", tmp_path / "b", make_photo, names, [*SIZES, (40, 40), (40, 40)])
    Image.fromarray(make_photo(9, 11, 10)).save(tmp_path / "b" / "z.png")
    for name in ("twice_HR.png", "twice.png"):
        Image.fromarray(make_photo(9, 40, 40)).save(tmp_path / "a" / name)
    shards = built("pairs", tmp_path / "a", tmp_path / "out", lr=str(tmp_path / "b"))
    assert sorted(keys_of(shards)) == ["0801", "Canon_001", "b"]
    assert rejects_of(tmp_path / "out") == {
        "alone": "no LR image has this name", "lost": "no HR image has this name", "twice": "2 HR images are called 'twice'",
        "z": "the pair is not 4 times apart: HR 44 x 44, LR 10 x 11",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^on_bad: '.*' \(\w+\): "):
        built("pairs", tmp_path / "a", tmp_path / "out2", lr=str(tmp_path / "b"), on_bad="fail")


@pytest.mark.parametrize("options", [{}, {"resize": "32"}])
def test_the_file_that_is_no_image_is_listed_be_it_hr_or_lr(tmp_path, make_photo, options):
    write_pairs(tmp_path / "a", tmp_path / "b", make_photo, [(f"{i}.png", f"{i}.png") for i in range(4)], SIZES)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    (tmp_path / "b" / "1.png").write_bytes(b"")
    (tmp_path / "b" / "2.png").unlink()
    bitmap = tmp_path / "b" / "2.bmp"
    Image.fromarray(make_photo(2, 11, 11)).save(bitmap)
    bitmap.write_bytes(bitmap.read_bytes()[:-9])  # only decoding detects this
    built("pairs", tmp_path / "a", tmp_path / "out", lr=str(tmp_path / "b"), **options)
    lines = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    paths = {row["key"]: row["path"] for row in lines}
    assert paths == {"0": "0.png", "1": str(tmp_path / "b" / "1.png"), "2": str(bitmap)}
    Image.fromarray(make_photo(0, 40, 60)).save(tmp_path / "a" / "0.png")
    with pytest.raises(UserError, match=rf"^on_bad: '{tmp_path}/b/(1\.png|2\.bmp)' "):
        built("pairs", tmp_path / "a", tmp_path / "out2", lr=str(tmp_path / "b"), on_bad="fail")


def test_pairs_of_any_size_are_resized_to_the_scale(tmp_path, make_photo):
    write_pairs(tmp_path / "a", tmp_path / "b", make_photo, PAIRS, SIZES, scale=3)
    shards = built("pairs", tmp_path / "a", tmp_path / "out", lr=str(tmp_path / "b"), resize="32", resize_mode="squash")
    assert set(pair_sizes(shards).values()) == {(32, 32, 8, 8)}


def test_pairs_of_which_none_fit_are_refused(tmp_path, make_photo):
    write_pairs(tmp_path / "a", tmp_path / "b", make_photo, [("a.png", "b.png")], [(40, 40)])
    with pytest.raises(UserError, match=r"^INPUT: no HR image has the name of an LR image"):
        built("pairs", tmp_path / "a", tmp_path / "out", lr=str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"^lr: no folder"):
        built("pairs", tmp_path / "a", tmp_path / "out", lr=str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"^lr: .*give --lr=FOLDER"):
        built("pairs", tmp_path / "a", tmp_path / "out")
    with pytest.raises(UserError, match=r"^lr: '.*/a' is INPUT; leave --lr out"):
        built("pairs", tmp_path / "a", tmp_path / "out", lr=f"{tmp_path}/a/.")


# -------------------------------------------------------------------------------------------------------- imagenet_val

VAL = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 5)]


@pytest.fixture
def val(tmp_path, make_photo, image_bytes):
    (tmp_path / "in").mkdir()
    for number, name in enumerate(VAL):
        (tmp_path / "in" / f"{name}.JPEG").write_bytes(image_bytes(make_photo(number, 32, 32), "JPEG"))
    return tmp_path / "in"


WNIDS = ["n02000002", "n01000001", "n02000002", "n03000003"]


@pytest.mark.parametrize(("text", "synsets", "classes", "labels"), [
    ("".join(f"{n}.JPEG {w}\n" for n, w in zip(VAL, WNIDS, strict=True)), None, sorted(set(WNIDS)), [1, 0, 1, 2]),
    ("ImageId,PredictionString\n" + "".join(f"{n},{w} 1 2 3 4 \n" for n, w in zip(VAL[::-1], WNIDS[::-1], strict=True)), None,
     sorted(set(WNIDS)), [1, 0, 1, 2]),
    ("".join(f"{n}.JPEG {i}\n" for n, i in zip(VAL, [2, 0, 2, 3], strict=True)), None, list("0123"), [2, 0, 2, 3]),
    ("3\n1\n3\n2\n", None, list("012"), [2, 0, 2, 1]),
    ("3\n1\n3\n2\n", "n01000001 kit fox\nn03000003 x\nn02000002 y\n", ["n01000001", "n02000002", "n03000003"], [1, 0, 1, 2]),
])  # fmt: skip
def test_validation_images_get_their_class_from_every_form_of_truth(val, tmp_path, text, synsets, classes, labels):
    (tmp_path / "truth.txt").write_text(text)
    options = {"truth": str(tmp_path / "truth.txt")}
    if synsets:
        (tmp_path / "synsets.txt").write_text(synsets)
        options["synsets"] = str(tmp_path / "synsets.txt")
    shards = built("imagenet_val", val, tmp_path / "out", **options)
    assert list(shards.manifest.classes) == classes
    assert rows(shards, "class") == {name: (label,) for name, label in zip(VAL, labels, strict=True)}


@pytest.mark.parametrize(("text", "message"), [
    ("n01000001\nn02\n", "line 2: 'n02' is not a wnid"), ("n01000001\nn02000002\nn01000001\n", "names n01000001 twice"),
])  # fmt: skip
def test_synsets_that_cannot_be_are_refused(val, tmp_path, text, message):
    (tmp_path / "truth.txt").write_text("1\n2\n1\n2\n")
    (tmp_path / "synsets.txt").write_text(text)
    with pytest.raises(UserError, match=f"^synsets: '.*' {message}"):
        built("imagenet_val", val, tmp_path / "out", truth=str(tmp_path / "truth.txt"), synsets=str(tmp_path / "synsets.txt"))


@pytest.mark.parametrize(("text", "message"), [
    ("1\n2\n", "has 2 lines for 4 images"), ("1\n2\n0\n1\n", "line 3: '0' is not a number from 1 to 2"),
    ("a b\n", "row 1: needs the name"), (f"{VAL[0]} n00000001\n{VAL[1]} 3\n", "has both wnids and numbers"),
    (f"{VAL[0]} 3\nx\n", "row 2: needs the name"),
])  # fmt: skip
def test_a_truth_that_cannot_be_is_refused(val, tmp_path, text, message):
    (tmp_path / "truth.txt").write_text(text)
    with pytest.raises(UserError, match=f"^truth: '.*' {message}"):
        built("imagenet_val", val, tmp_path / "out", truth=str(tmp_path / "truth.txt"))


def test_a_truth_must_be_given_and_exist(val, tmp_path):
    with pytest.raises(UserError, match=r"^truth: this key is missing"):
        built("imagenet_val", val, tmp_path / "out")
    with pytest.raises(UserError, match=r"^truth: '.*' cannot be read"):
        built("imagenet_val", val, tmp_path / "out", truth=str(tmp_path / "no"))


# ------------------------------------------------------------------------------------------------------- imagenet_tars


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def imagenet(tmp_path, make_photo, image_bytes):
    """The three files of ImageNet with five images of training and four of validation, and the same images unpacked."""
    root, unpacked = tmp_path / "in", tmp_path / "unpacked"
    photos = {
        wnid: {f"{wnid}_{n}.JPEG": image_bytes(make_photo(n + int(wnid[-1]), 32, 32), "JPEG") for n in numbers}
        for wnid, numbers in {"n03000003": (7, 100), "n01000001": (10, 9), "n02000002": (1,)}.items()
    }
    for wnid, files in photos.items():
        (unpacked / wnid).mkdir(parents=True)
        for name, data in files.items():
            (unpacked / wnid / name).write_bytes(data)
    root.mkdir()
    inner = {f"{wnid}.tar": tar_of(files) for wnid, files in photos.items()}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    images = {f"{name}.JPEG": image_bytes(make_photo(number, 32, 32), "JPEG") for number, name in enumerate(VAL)}
    (tmp_path / "val").mkdir()
    for name, data in images.items():
        (tmp_path / "val" / name).write_bytes(data)
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(dict(reversed(images.items()))))
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    synsets = np.array([(1, "n01000001", "kit fox", 0), (2, "n03000003", "x", 0), (3, "n02000002", "y", 0),
                        (4, "n00000004", "above all", 3)], kind)  # fmt: skip
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    kit = {"ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
           "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"3\n1\n3\n2\n"}  # fmt: skip
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(kit, "w:gz"))
    return root


def test_imagenets_tars_give_the_shards_of_the_unpacked_images(imagenet, tmp_path):
    packed = built("imagenet_tars", imagenet, tmp_path / "a")
    folders = built("class_folders", tmp_path / "unpacked", tmp_path / "b")
    assert [shard.sha256 for shard in packed.manifest.shards] == [shard.sha256 for shard in folders.manifest.shards]
    assert packed.manifest.classes == folders.manifest.classes == ("n01000001", "n02000002", "n03000003")
    assert rows(packed, "class") == rows(folders, "class") and len(rows(packed, "class")) == 5
    (tmp_path / "truth.txt").write_text("3\n1\n3\n2\n")
    (tmp_path / "synsets.txt").write_text("n01000001\nn03000003\nn02000002\n")
    packed = built("imagenet_tars", imagenet, tmp_path / "c", part="validation")
    truth = {"truth": str(tmp_path / "truth.txt"), "synsets": str(tmp_path / "synsets.txt")}
    folder = built("imagenet_val", tmp_path / "val", tmp_path / "d", **truth)
    assert [shard.sha256 for shard in packed.manifest.shards] == [shard.sha256 for shard in folder.manifest.shards]
    assert packed.manifest.classes == folder.manifest.classes
    assert rows(packed, "class") == {name: (label,) for name, label in zip(VAL, [1, 0, 1, 2], strict=True)}


@pytest.mark.parametrize(
    ("name", "content", "part", "message"),
    [
        ("ILSVRC2012_img_train.tar", None, "train", "no ILSVRC2012_img_train.tar in '"),
        ("ILSVRC2012_img_train.tar", b"no tar" * 200, "train", "'.*' cannot be read as a tar: "),
        ("ILSVRC2012_img_train.tar", tar_of({"fox.tar": b""}), "train", "'.*' holds 'fox.tar', which is not the tar of a class"),
        ("ILSVRC2012_img_val.tar", tar_of({"a.JPEG": b""}), "validation", "'.*' has 1 images, but '.*' has the classes of 4"),
        ("ILSVRC2012_devkit_t12.tar.gz", None, "validation", "no ILSVRC2012_devkit_t12.tar.gz in '.*'; it has the classes"),
        ("ILSVRC2012_devkit_t12.tar.gz", tar_of({"a": b""}), "validation", "'.*' is not the development kit of ILSVRC 2012"),
        ("ILSVRC2012_devkit_t12.tar.gz", b"junk", "validation", "'.*' is not the development kit of ILSVRC 2012"),
    ],
    ids=str,
)  # fmt: skip
def test_imagenets_files_that_cannot_be_are_refused(imagenet, tmp_path, name, content, part, message):
    (imagenet / name).unlink()
    if content is not None:
        (imagenet / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^INPUT: {message}"):
        built("imagenet_tars", imagenet, tmp_path / "out", part=part)


def test_a_cut_tar_of_imagenet_rejects_what_is_cut(imagenet, tmp_path):
    path = imagenet / "ILSVRC2012_img_val.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"^INPUT: "):
        built("imagenet_tars", imagenet, tmp_path / "out", part="validation")
