"""What `queue` and `why` tell of jobs that cannot start yet, and of large arrays, with a real daemon."""

from __future__ import annotations


def test_of_a_job_whose_turn_it_is_not_nobody_is_said_to_be_ahead(place) -> None:
    runs = place.sh("sleep 600", gpus=2)
    place.running(runs)
    waits = place.sh("true")
    others = [place.sh("true", hold=True), place.sh("true", dependency=f"afterok:{waits}"), place.sh("true", begin=3e9)]
    assert place.client.why(waits)["devices"]
    for key in others:
        told = place.client.why(key)
        assert told["reason"] in ("JobHeldUser", "Dependency", "BeginTime")
        assert (told["ahead"], told["devices"], told["victims"]) == ([], [], [])
        assert "ahead of it" not in place.cli("why", key).out
    assert [job["job"] for job in place.client.jobs()] == [runs, waits, *others[1:], others[0]]
    place.client.cancel([runs, waits, *others])
    place.ended(runs)


def test_of_a_hundred_thousand_elements_each_knows_which_go_before_it(place) -> None:
    runs = place.sh("sleep 600", gpus=2, time_limit=1500.0)
    place.running(runs)
    array = place.submit("true", array="0-99999", time_limit=60.0)
    ahead = {key: place.client.why(f"{array}_{key}")["ahead"] for key in ("0", "1", "[3-5]", "99999")}
    assert {key: [row["job"] for row in rows] for key, rows in ahead.items()} == {
        "0": [], "1": [f"{array}_0"], "[3-5]": [f"{array}_[0-2]"], "99999": [f"{array}_[0-99998]"],
    }  # fmt: skip
    place.client.hold([f"{array}_[10-20]"])
    rows = place.client.jobs()
    assert [(row["job"], row["reason"]) for row in rows] == [
        (runs, None), (f"{array}_[0-9,21-99999]", "Resources"), (f"{array}_[10-20]", "JobHeldUser"),
    ]  # fmt: skip
    assert len(place.cli("queue").out.splitlines()) == 4
    place.client.cancel([runs, array])
    place.ended(runs)
