"""What tests of every kind share."""

import pytest


@pytest.fixture(scope="session")
def trainer():
    """Starts training processes with torch imported already; one for the whole session. See torch_zygote.py."""
    from training_jobs import Zygote

    zygote = Zygote("torch.distributed")
    yield zygote
    zygote.close()
