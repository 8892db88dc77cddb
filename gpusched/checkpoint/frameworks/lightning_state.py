"""What a Lightning checkpoint leaves out and an exact resume needs, as one tree.

Random numbers, averages of self.log() in the middle of an epoch, torchmetrics, metrics that a scheduler monitors, the
gradients of an open accumulation window, and the loops' counters as they really were at this moment.
Reaches into Lightning's loops, because nothing public tells these things; `require` says so where they are not found.
Works for `lightning` and `pytorch_lightning` alike, and imports neither.
"""

import sys
from typing import Any, Dict, List

from gpusched.checkpoint.errors import CheckpointError
from gpusched.checkpoint.frameworks.extras import Extras
from gpusched.checkpoint.state import gradients, randomness

Tree = Dict[str, Any]
_FLAGS = ("_restarting", "_loaded_from_state_dict", "_resuming_from_checkpoint")
_LOGGED = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
_META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
_REDUCTIONS = ("mean", "sum", "max", "min")


def require(trainer: Any) -> None:
    """Raises CheckpointError if this Lightning keeps its state somewhere else than the versions tested."""
    places = ["fit_loop.epoch_loop.batch_progress.current.ready", "fit_loop.epoch_loop.val_loop.batch_progress"]
    places += ["fit_loop.epoch_loop._results", "fit_loop.epoch_progress.current.processed", "fit_loop._restarting"]
    for place in places + ["_logger_connector." + name for name in _LOGGED]:
        value: Any = trainer
        for name in place.split("."):
            value = getattr(value, name, _MISSING)
            if value is _MISSING:
                raise CheckpointError(
                    "This version of Lightning has no trainer.%s, so a run cannot be resumed exactly." % place,
                    "Use lightning 2.4 to 2.6, or leave GpuschedCallback out.",
                )


_MISSING = object()


def capture(trainer: Any, extras: Extras) -> Tree:
    """The state between two batches, or where a validation begins. Nothing in it changes when training goes on."""
    module, epoch_loop, connector = trainer.lightning_module, trainer.fit_loop.epoch_loop, trainer._logger_connector
    loops = {key: value for key, value in trainer.fit_loop.state_dict().items() if key != "state_dict"}
    open_window = epoch_loop._should_accumulate() or not module.automatic_optimization
    grads = gradients.capture({"model": module}, trainer.optimizers, open_window)
    return {
        "rng": randomness.capture(),
        "loops": loops,
        "results": [[key, _capture_result(one)] for key, one in epoch_loop._results.items()],
        "logged": {name: dict(getattr(connector, name)) for name in _LOGGED},
        "connector": {"first": connector._first_loop_iter, "fx": connector._current_fx},
        "extras": extras.capture(),
        "grads": dict(grads, values={name: value.detach().clone() for name, value in grads["values"].items()}),
        "should_stop": bool(trainer.should_stop),
    }


def restore(trainer: Any, tree: Tree, extras: Extras) -> List[str]:
    """Put it back at the same place of the loop, generators last. Returns sentences on what had nowhere to go."""
    module, epoch_loop, connector = trainer.lightning_module, trainer.fit_loop.epoch_loop, trainer._logger_connector
    trainer.fit_loop.load_state_dict(dict(tree["loops"], state_dict={}))
    _calm(trainer.fit_loop)
    device = module.device
    epoch_loop._results.clear()
    for key, saved in tree["results"]:
        epoch_loop._results[key] = _result(trainer, saved, device)
    for name in _LOGGED:
        setattr(connector, name, {key: _on(value, device) for key, value in tree["logged"][name].items()})
    connector._first_loop_iter, connector._current_fx = tree["connector"]["first"], tree["connector"]["fx"]
    notes = extras.restore(tree["extras"])
    lost = gradients.restore({"model": module}, trainer.optimizers, tree["grads"])
    notes += ["the gradient of %s was saved, and there is no such parameter" % name for name in lost]
    return notes + randomness.restore(tree["rng"])


def begin_validation_again(loops: Tree) -> None:
    """Change the loops' state in a checkpoint so that Lightning starts the interrupted validation once more.

    Lightning goes back into a validation whose counters say "one batch begun, none done".
    """
    begun = {"ready": 1, "completed": 0, "started": 1, "processed": 0}
    again = {"total": dict(begun), "current": dict(begun), "is_last_batch": False}
    loops["epoch_loop.val_loop.batch_progress"] = again


def _calm(loop: Any) -> None:
    """From here on the loop is one that was never interrupted: its own rules for restarts are not exact."""
    for flag in _FLAGS:
        if hasattr(loop, flag):
            setattr(loop, flag, False)
    loop.reset_restart_stage()
    for inner in vars(loop).values():
        if hasattr(inner, "_restarting"):
            _calm(inner)


def _capture_result(result: Any) -> Tree:
    """One entry of self.log(): an average in progress, or a torchmetrics object of the module."""
    meta, reduce_fx = result.meta, result.meta.reduce_fx
    saved = {name: getattr(meta, name) for name in _META}
    saved.update(dataloader_idx=meta.dataloader_idx, metric_attribute=meta.metric_attribute)
    saved.update(reduction=reduce_fx.__name__, builtin=reduce_fx.__module__ == "builtins")
    saved["sync"] = {"should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only, "op": meta.sync.op}
    state = {"has_reset": result.has_reset, "count": result._update_count, "cache": _plain(result._forward_cache)}
    if result.is_tensor:
        state["value"] = _plain(result.value)
        if meta.is_mean_reduction:
            state["size"] = _plain(result.cumulated_batch_size)
    return {"meta": saved, "is_tensor": result.is_tensor, "state": state}


def _result(trainer: Any, saved: Tree, device: Any) -> Any:
    import torch

    kinds = sys.modules[type(trainer.fit_loop.epoch_loop._results).__module__]
    meta, state = saved["meta"], saved["state"]
    if meta["reduction"] not in _REDUCTIONS:
        raise CheckpointError("The checkpoint has a metric reduced by %r." % meta["reduction"], "Update gpusched.")
    home: Any = sys.modules["builtins"] if meta["builtin"] else torch
    options = {name: meta[name] for name in (*_META, "dataloader_idx", "metric_attribute")}
    data = kinds._Metadata(reduce_fx=getattr(home, meta["reduction"]), **options)
    sync = meta["sync"]
    data.sync = kinds._Sync(
        _should=sync["should"], fn=trainer.strategy.reduce, rank_zero_only=sync["rank_zero_only"], _op=sync["op"]
    )
    result = kinds._ResultMetric(data, saved["is_tensor"]).to(device)
    if saved["is_tensor"]:
        result.value = _on(state["value"], device)
        if "size" in state:
            result.cumulated_batch_size = _on(state["size"], device)
    else:
        result.value = _attribute(trainer.lightning_module, meta["metric_attribute"])
    result.has_reset, result._update_count = state["has_reset"], state["count"]
    result._forward_cache = _on(state["cache"], device)
    return result


def _attribute(module: Any, path: str) -> Any:
    """The metric that was logged: Lightning knows it by its name among the modules, or by the name it was given."""
    inside = dict(module.named_modules())
    return inside[path] if path in inside else getattr(module, path)


def _plain(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value


def _on(value: Any, device: Any) -> Any:
    return value.to(device, copy=True) if hasattr(value, "detach") else value
