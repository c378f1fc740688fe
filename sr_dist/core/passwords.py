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
NEXT_URL = re.compile(r"(?<=[,;'\"(){}\[\]=<>|])(?=[a-z][a-z0-9+.-]{0,15}://)", re.IGNORECASE)
PARAMETER = re.compile(r"([?&;#]([\w.%~-]+)=)([^\s&;#'\"]*[^\s&;#'\",.:)\]}>])")  # without the punctuation of a sentence after it
SECRET_NAME = re.compile(  # of signed URLs of S3, GCS and Azure, too
    r"token|signature|secret|credential|password|passwd|auth(?!ors?(?![a-z]))|key(?:id)?$|^(?:sig|pwd)$", re.IGNORECASE
)
USER_INFO = re.compile(r"://[^\s/?#]*@")
PLAIN_HOST = re.compile(r"(?:\[[\da-f:.]+\]|[^/?#@:]+)(?::\d{1,5})?(?:$|[/?#][^@]*[?&#][\w.%~-]+=)", re.IGNORECASE)
"""A host, and no @ before a parameter: what comes after that is no user info. Else the digits may begin a password."""


def without_passwords(text: str) -> str:
    """Takes time in proportion to the text, which may come from a server: no pattern begins again inside of what it has read."""
    return re.sub(r"\S+", lambda word: _hidden_in_word(word[0]), text) if "://" in text else text


def has_hidden(text: str) -> bool:
    """Whether a password or token of a URL was hidden, so that nobody can open it any more."""
    return HIDDEN in text or any(match[3] == "***" and SECRET_NAME.search(match[2]) for match in PARAMETER.finditer(text))


def _hidden_in_word(word: str) -> str:
    return "".join(map(_hidden, NEXT_URL.split(word))) if "://" in word else word


def _hidden(url: str) -> str:
    """All up to the last @ is hidden where a colon comes before it, because a password may have a / or # as it is.

    Otherwise there is no password, and an @ may be a part of the path (`hf://datasets/a/b@main/`).
    """
    if "://" not in url:
        return url
    url = PARAMETER.sub(lambda match: f"{match[1]}***" if SECRET_NAME.search(match[2]) else match[0], url)
    start, _, rest = url.partition("://")
    if PLAIN_HOST.match(rest):
        return url
    before, at, place = rest.rpartition("@")
    return f"{start}{HIDDEN}{place}" if at and ":" in before else USER_INFO.sub(HIDDEN, url)


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
