"""Files and URLs from elsewhere: what they may name, how large they may be, and what is written about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import metrics, run, small_gan
from servers import serving

SECRET = "s3cret-Pa55"


@pytest.fixture
def url(photo_shards):
    """A server's address with a user name and a password in it."""
    with serving(photo_shards) as store:
        yield store.url.replace("://", f"://me:{SECRET}@")


def files_with(text: str, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_password_in_a_url_is_written_nowhere_and_may_change(url, photo_shards, tmp_path):
    """Mixed data sets, which the log names, with W&B, continued with another password, and evaluated."""
    sources = f"{{{url}: 1, {photo_shards}: 1}}"
    more = {"log.wandb": "offline", "data.cache": tmp_path / "cache", "data.batch": 4}
    printed = []
    for steps, address in ((2, sources), (3, sources.replace(SECRET, f"{SECRET}-new"))):
        printed += run(0, "sr_dist.train", *small_gan(address, tmp_path, steps=steps, data__validation=url, **more))
    printed += run(0, "sr_dist.evaluate", "bicubic", f"--data={url}", "--scale=2", "--metrics=psnr", "--cache=none", cwd=tmp_path)
    assert "me:" not in "".join(printed) and SECRET not in "".join(printed)
    assert files_with(SECRET, tmp_path) == []
    assert "://***@127.0.0.1" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert "://***@127.0.0.1" in (tmp_path / "run" / "log.txt").read_text()
    assert "://***@127.0.0.1" in json.loads((tmp_path / "run" / "environment.json").read_text())["command"]
    assert json.loads((tmp_path / "eval" / "report.json").read_text())["data"].startswith("http://***@127.0.0.1")
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3]


def test_errors_hide_passwords_and_a_hidden_one_is_asked_for(run_commands, tmp_path):
    gone = f"http://me:{SECRET}@127.0.0.1:1/x"
    hidden = small_gan("http://***@host/x", tmp_path)
    pipe = f"pipe:false http://me:{SECRET}@host/"
    failed, again, piped = run_commands(
        [("sr_dist.train", small_gan(words, tmp_path)) if isinstance(words, str) else ("sr_dist.train", words)
         for words in (f"{{{gone}: 1, {gone.replace('me', 'you')}: 2}}", hidden, pipe)]
    )  # fmt: skip
    assert "named twice" in failed.err and "'http://***@127.0.0.1:1/x'" in failed.err
    assert again.err == (
        "error: data.train: 'http://***@host/x' has *** where a user name and a password were; give the whole URL: "
        "--data.train=...\n"
    )
    assert "has no {} for" in piped.err
    assert not any(SECRET in answer.out + answer.err for answer in (failed, again, piped))
