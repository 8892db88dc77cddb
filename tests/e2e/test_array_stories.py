"""Large arrays with the real daemon: one row until they start; shown, asked about, waited for, after a crash."""

from __future__ import annotations

from daemons import until

MANY = "0-99999%2"


def test_a_hundred_thousand_elements_wait_as_one_row_that_people_can_work_with(own):
    answer = own.client.submit(
        {"command": ["sleep", "600"], "cwd": str(own.work), "env": {}, "gpus": 0, "array": MANY}
    )
    key = answer["job"]
    assert (answer["count"], len(answer["ids"])) == (100_000, 1000)
    own.running(f"{key}_1")
    shown = own.cli("queue").out
    assert f"{key}_[2-99999%2]" in shown and "JobArrayTaskLimit" in shown
    assert own.client.status()["jobs"]["pending"] == 99_998
    folded = own.client.job(f"{key}_77777")
    assert (folded["job"], folded["state"], folded["array_count"]) == (f"{key}_77777", "PENDING", 1)
    assert [line["kind"] for line in folded["story"]] == ["submitted"]
    assert own.client.job(key)["count"] == 100_000

    assert own.cli("hold", f"{key}_[5-10]", f"{key}_77777").code == 0
    states = {e["array_indices"]: e["reason"] for e in own.client.job(key)["elements"] if e["state"] == "PENDING"}
    assert states["5-10"] == states["77777"] == "JobHeldUser"
    assert states["2-4,11-77776,77778-99999"] == "JobArrayTaskLimit"
    waits = own.sh("true", gpus=0, dependency=f"afternotok:{key}_5")
    refused = own.cli("cancel", f"{key}_[99990-100005]")
    assert refused.code != 0 and f"{key}_[100000-100005]" in refused.err

    own.kill9()
    own.start()
    assert own.client.job(f"{key}_7")["reason"] == "JobHeldUser"
    assert own.cli("cancel", key).code == 0
    assert own.ended(waits)["state"] == "COMPLETED"
    waited = own.cli("wait", key)
    assert waited.code == 130
    history = {job["job"] for job in own.client.history(keys=[key])}
    assert {f"{key}_0", f"{key}_1", f"{key}_[5-10%2]", f"{key}_77777"} <= history
    assert own.client.job(f"{key}_60000")["state"] == "CANCELLED"
    assert own.cli("why", f"{key}_60000").code == 0


def test_elements_that_have_ended_can_be_asked_for_while_the_array_lives_on(own):
    key = own.sh("exit $((GPUSCHED_ARRAY_TASK_ID % 80))", gpus=0, array="0-149,1000%8", hold=False)
    own.client.hold([f"{key}_1000"])
    until(lambda: own.client.status()["jobs"] == {"pending": 1, "running": 0}, lambda: own.cli("queue").out)
    elements = own.client.job(key)["elements"]
    assert {e["array_index"]: e["exit_code"] for e in elements if e["array_index"] < 1000} == {
        index: index % 80 for index in range(150)
    }
    first = own.job(f"{key}_0")
    assert (first["state"], own.sh("true", gpus=0, dependency=f"afterok:{key}_0") != "") == ("COMPLETED", True)
    assert own.cli("requeue", f"{key}_3").code == 0
    until(lambda: own.job(f"{key}_3")["attempt"] == 2 and own.job(f"{key}_3")["state"] == "FAILED", lambda: "")
    again = own.client.resubmit([key])[0]
    assert own.client.job(again["new"])["count"] == 151
    own.client.cancel([key, again["new"]])
    assert own.cli("wait", key).code == 130


def test_elements_wait_for_their_likes(own):
    first = own.sh("test $GPUSCHED_ARRAY_TASK_ID != 2; ", gpus=0, array="0-4")
    second = own.sh("true", gpus=0, array="0-4", dependency=f"aftercorr:{first}")
    assert own.cli("wait", second).code == 130
    assert [e["state"] for e in own.client.job(second)["elements"]] == [
        "COMPLETED", "COMPLETED", "CANCELLED", "COMPLETED", "COMPLETED",
    ]  # fmt: skip
