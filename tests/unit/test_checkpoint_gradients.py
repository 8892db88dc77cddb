"""Whether a parameter has a gradient matters after a step, too: momentum and weight decay move those that have one."""

import pytest

from gpusched.checkpoint import Run
from gpusched.checkpoint.state import gradients

torch = pytest.importorskip("torch", reason="needs the extra gpusched[torch]")


class Stop(Exception):
    pass


def train(folder, to_none, stop_after=None):
    """Two layers that are used in turns. The weights at the end, or Stop after a step that was saved."""
    torch.manual_seed(1)
    model = torch.nn.ModuleList([torch.nn.Linear(3, 1) for _ in range(2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    run = Run(model, optimizer, directory=folder, every_seconds=None)
    for _ in run.epochs(1):
        for step in run.batches(range(8)):
            optimizer.zero_grad(set_to_none=to_none)
            model[step % 2](torch.ones(2, 3)).sum().backward()
            optimizer.step()
            run.step()
            if run.steps == stop_after:
                assert run.save()
                raise Stop
    return [one.tolist() for one in model.parameters()]


@pytest.mark.parametrize("to_none", [False, True])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_parameter_that_a_step_does_not_use_moves_as_it_would_have(tmp_path, to_none, step):
    expected = train(tmp_path / "straight", to_none)
    with pytest.raises(Stop):
        train(tmp_path / "stopped", to_none, stop_after=step)
    assert train(tmp_path / "stopped", to_none) == expected


def test_what_no_optimizer_clears_keeps_its_gradient_and_the_rest_a_zero_one():
    kept, cleared, none = (torch.nn.Linear(2, 1, bias=False) for _ in range(3))
    model = torch.nn.ModuleList([kept, cleared, none])
    optimizer = torch.optim.SGD([*cleared.parameters(), *none.parameters()], lr=0.1)
    (kept(torch.ones(2)) + cleared(torch.ones(2))).sum().backward()
    saved = gradients.capture({"": model}, [optimizer], window=False)
    assert list(saved["values"]) == ["0.weight"] and saved["zero"] == ["1.weight"]
    model.zero_grad()
    assert gradients.restore({"": model}, [optimizer], saved) == []
    assert kept.weight.grad.tolist() == [[1.0, 1.0]]
    assert cleared.weight.grad.tolist() == [[0.0, 0.0]] and none.weight.grad is None


def test_inside_a_window_every_gradient_is_kept_and_one_without_a_parameter_is_told():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2)).sum().backward()
    saved = gradients.capture({"": model}, [optimizer], window=True)
    assert sorted(saved["values"]) == ["bias", "weight"] and saved["zero"] == []
    saved["values"]["gone"] = torch.ones(1)
    assert gradients.restore({"": model}, [optimizer], saved) == ["gone"]
