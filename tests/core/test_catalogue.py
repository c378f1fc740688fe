"""The table of published files: complete, with one name for each file, and mistakes in a table of one's own are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sr_dist.core import catalogue, plugins
from sr_dist.core.catalogue import advice, lookup, names_of, read, weights_file
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES

FILES = [file for entry in read().values() for file in entry.files]


def test_every_file_that_a_part_of_the_package_needs_is_in_the_table():
    needed = set()
    for kind in ("content", "classifier", "metric"):
        for name in plugins.names(PACKAGES[kind]):
            path = Path(__file__).parents[2].joinpath(*PACKAGES[kind].split("."), f"{name}.py")
            needed |= set(re.findall(r"[\w-]+-[0-9a-f]{8}\.pth|inception-[\d-]+\.pt", path.read_text()))
    assert {"vgg19-dcbb9e9d.pth", "resnet18-f37072fd.pth", "inception-2015-12-05.pt"} <= needed
    assert [name for name in needed if not weights_file(name)] == []
    assert {entry.kind for name, entry in read().items() if lookup(read(), name) in ("vgg19", "inception")} == {"features"}


def test_names_aliases_and_places_are_unique():
    words = [word for name, entry in read().items() for word in (name, *entry.aliases)]
    assert len(words) == len(set(words)) and all(word == word.lower() for word in words)
    places = [file.place for file in FILES]
    assert len(places) == len(set(places))


def test_a_digest_has_a_source_and_a_sha256_in_a_name_is_the_tables():
    assert [file.name for file in FILES if file.checked and not file.source] == []
    for file in FILES:
        if in_name := re.search(r"-([0-9a-f]{8})\.pth$", file.name):
            assert file.sha256.startswith(in_name[1]), file.name


def test_a_name_may_be_an_alias_or_a_file_with_or_without_its_suffix():
    for word in ("realesrgan_x4plus", "RealESRGAN_x4plus", "RealESRGAN_x4plus.pth"):
        assert lookup(read(), word) == "realesrgan_x4plus"
    assert names_of(read(), "Set5,vgg19,urban100") == ["benchmark", "vgg19"]
    assert advice("vgg19-dcbb9e9d.pth") == "python -m sr_dist.fetch vgg19" and advice("mine.pth") == ""
    with pytest.raises(UserError, match="NAME: unknown name 'vgg91'; did you mean 'vgg19'"):
        names_of(read(), "vgg91")


def test_weights_and_their_names():
    assert weights_file("vgg19-dcbb9e9d.pth").bytes == 574673361
    assert weights_file("DIV2K_train_HR.zip") is None
    assert catalogue.weights_of("realesrgan_x2plus") == ["RealESRGAN_x2plus.pth"] and catalogue.weights_of("mnist") == []


GOOD = "{kind: weights, licence: MIT, purpose: p, next: n, files: [%s]}"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("{address: 'file:///etc/passwd'}", "no http or https address"),
        ("{address: 'https:///b'}", "no http or https address"),
        ("{address: 'https://me:secret@a/b'}", r"'https://\*\*\*@a/b': no name and password are sent"),
        ("{address: 'https://a/'}", "ends without a file's name"),
        ("{address: 'https://a/..'}", "ends without a file's name"),
        ("{address: 'https://a/b', path: ../b}", "leads out of the folder"),
        ("{address: 'https://a/b', unpack: /b}", "leads out of the folder"),
        ("{address: 'https://a/b', sha256: xyz}", "8 to 64 hexadecimal digits"),
        ("{address: 'https://a/b', md5: 00}", "md5 has 32"),
        ("{address: 'https://a/b', shaa256: 00}", "shaa256: unknown key; did you mean 'own.files.0.sha256'"),
        ("{bytes: 3}", "address: this key is missing"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, file, text):
    table = tmp_path / "table.yaml"
    table.write_text(f"own: {GOOD % file}\n")
    with pytest.raises(UserError, match=f"^table: .*table.yaml': own.*{text}"):
        read(table)


def test_an_entry_that_is_no_section_is_named(tmp_path):
    (tmp_path / "table.yaml").write_text("own: text\n")
    with pytest.raises(UserError, match=r"table\.yaml': own: is no section"):
        read(tmp_path / "table.yaml")
