"""One cluster for all tests of this folder."""

import pytest
from cluster import Cluster, cluster, missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Cluster:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made
