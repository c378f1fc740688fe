"""What may follow the end of a tar: zeros."""

from __future__ import annotations

HEADER = 512  # bytes


def problem_at_end(end: int, more: int | None) -> str:
    """What is wrong with a tar that ends at byte `end`; `more` is the place of the next byte that is not zero."""
    if more is None:
        return ""
    if more < end + HEADER:
        return f"the header at byte {end} is damaged"
    return (
        f"it ends at byte {end}, but more follows at byte {more}: a second tar behind the first, as "
        "`cat a.tar b.tar` makes, or damage; programs read only the first tar, so give each its own file"
    )
