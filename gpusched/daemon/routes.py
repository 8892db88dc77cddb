"""The one table of what the API offers: method, path, verb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from gpusched.api.server import Call, Handler
from gpusched.daemon.service import Service
from gpusched.daemon.verbs import devices, jobs, limits, priority, requests, reservations, resubmit, status, submit, why

Verb = Callable[[Service, Call], Awaitable[dict[str, Any]]]

ROUTES: dict[tuple[str, str], Verb] = {
    ("GET", "/v1/status"): status.status,
    ("POST", "/v1/daemon/stop"): status.stop,
    ("POST", "/v1/jobs"): submit.submit,
    ("GET", "/v1/last"): submit.last,
    ("GET", "/v1/jobs"): jobs.queue,
    ("GET", "/v1/jobs/{job}"): jobs.show,
    ("GET", "/v1/jobs/{job}/why"): why.why,
    ("GET", "/v1/jobs/{job}/wait"): jobs.wait,
    ("GET", "/v1/history"): jobs.history,
    ("GET", "/v1/priorities"): priority.priorities,
    ("GET", "/v1/shares"): priority.shares,
    ("GET", "/v1/devices"): devices.devices,
    ("GET", "/v1/limits"): limits.limits,
    ("GET", "/v1/reservations"): reservations.reservations,
    ("POST", "/v1/reservations"): reservations.reserve,
    ("POST", "/v1/reservations/remove"): reservations.unreserve,
    ("POST", "/v1/jobs/update"): requests.update,
    ("POST", "/v1/jobs/resubmit"): resubmit.resubmit,
    **{("POST", f"/v1/jobs/{verb}"): partial(requests.request, verb=verb) for verb in requests.REQUESTS},
}


def routes(service: Service) -> dict[tuple[str, str], Handler]:
    return {where: partial(verb, service) for where, verb in ROUTES.items()}
