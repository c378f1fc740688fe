from pathlib import Path

import pytest

from sr_dist.core.formats import UnknownFormat, refuse_unknown


def test_a_file_without_a_number_has_the_format_of_0_1():
    refuse_unknown({}, 1, Path("old.json"), "name")
    with pytest.raises(UnknownFormat, match=r"^name: 'old\.json' has format 1, .* of unknown version; .* reads format 2; "):
        refuse_unknown({}, 2, Path("old.json"), "name")
