"""DDP's bucket trap, shown and cured: on three and four ranks a resume is exact with the cure, and not without it."""

import json

import pytest
from ddp_buckets import CASES
from gangs import Gang
from training_jobs import HERE, Zygote

pytest.importorskip("torch", reason="needs the extra gpusched[torch]")
HARMLESS = ("find_unused_parameters", "before the first step")  # here nothing differs to begin with
SOME = ("plain", "5 MB in several buckets", "static_graph")
SHOWN = [(3, name) for name in CASES] + [(4, name) for name in SOME]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    zygote, results = Zygote("torch.distributed"), {}
    try:
        for size, names in ((2, ("plain",)), (3, ()), (4, SOME)):
            gang = Gang(zygote, tmp_path_factory.mktemp(f"ranks-{size}"), HERE / "ddp_buckets.py")
            assert gang.run(size, str(gang.folder / "found"), *names) == [0] * size, gang.output
            results[size] = json.loads((gang.folder / "found").read_text())
    finally:
        zygote.close()
    return results


@pytest.mark.parametrize("size, name", SHOWN)
def test_a_resumed_ddp_adds_gradients_as_before_the_stop(found, size, name):
    undisturbed, _, cured, told = found[size][name]
    assert cured == undisturbed
    assert told == []


@pytest.mark.parametrize("size, name", [(size, name) for size, name in SHOWN if name not in HARMLESS])
def test_without_the_cure_the_bits_differ(found, size, name):
    undisturbed, untreated, _, _ = found[size][name]
    assert untreated != undisturbed


def test_two_ranks_hide_the_trap(found):
    for undisturbed, untreated, cured, _ in found[2].values():
        assert undisturbed == untreated == cured
