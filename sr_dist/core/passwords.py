"""Hides the user names, passwords and tokens of URLs in everything that a command writes: messages, logs, files, trackers.

    https://me:secret@host/data      ->  https://***@host/data
    https://host/data?token=secret   ->  https://host/data?token=***

`UserError`, `first_line`, `config.plain`, `cli.run` (for `sys.argv`) and the logger call this. What writes a URL in another
way calls it itself: the reports of `evaluate`, `shards.show`. Only what opens a URL uses it whole.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from sr_dist.core.printable import printable

HIDDEN = "://***@"
SECRET_NAME = r"[\w.%~-]*(?:token|signature|secret|credential|password|passwd|auth)[\w.%~-]*|[\w.%~-]*key(?:id)?|sig|pwd"
QUERY = re.compile(rf"([?&;](?:{SECRET_NAME})=)[^\s&;#'\"]+", re.IGNORECASE)  # of signed URLs of S3, GCS and Azure, too
USER_INFO = re.compile(r"://[^\s/?#]*@")


def without_passwords(text: str) -> str:
    return re.sub(r"\S+", lambda word: _hidden(word[0]), text) if "://" in text else text


def has_hidden(text: str) -> bool:
    """Whether a password or token of a URL was hidden, so that nobody can open it any more."""
    return HIDDEN in text or any(match[0].endswith("=***") for match in QUERY.finditer(text))


def _hidden(word: str) -> str:
    """All up to the last @ is hidden where a colon comes before it, because a password may have a / or # as it is.

    Otherwise there is no password, and an @ may be a part of the path (`hf://datasets/a/b@main/`).
    """
    word = QUERY.sub(r"\1***", word) if "://" in word else word
    start, _, rest = word.partition("://")
    before, at, place = rest.rpartition("@")
    return f"{start}{HIDDEN}{place}" if at and ":" in before else USER_INFO.sub(HIDDEN, word)


def tree_without_passwords(tree: Any) -> Any:
    """The same for all keys and values of nested sections and lists."""
    if isinstance(tree, dict):
        return {tree_without_passwords(key): tree_without_passwords(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [tree_without_passwords(value) for value in tree]
    return without_passwords(tree) if isinstance(tree, str) else tree


def _hide_in_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(without_passwords(record.getMessage())), ()
    return True


logging.getLogger("sr_dist").addFilter(_hide_in_record)  # all of the package's records are logged directly to this logger
