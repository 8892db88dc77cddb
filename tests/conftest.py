"""What tests of every kind share."""

import signal

import pytest

# What a shell starts in the background, or under nohup, is deaf to these, and so is everything that it starts: no test
# could interrupt a command. Whoever runs the tests so should see the same results.
for _number, _usual in {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGTERM: signal.SIG_DFL,
}.items():
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(scope="session")
def trainer():
    """Starts training processes with torch imported already; one for the whole session. See torch_zygote.py."""
    from training_jobs import Zygote

    zygote = Zygote("torch.distributed")
    yield zygote
    zygote.close()
