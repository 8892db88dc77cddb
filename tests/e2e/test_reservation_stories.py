"""Reservations from the command line, with a real daemon and real processes on simulated devices."""

from __future__ import annotations

import getpass
import json

import pytest
from daemons import until

ME = getpass.getuser()
SAVES = "trap 'exit 85' TERM; while :; do sleep 0.1; done"  # leaves with 85 when asked, and would go on when it returns


@pytest.fixture(autouse=True)
def nothing_reserved(place):
    yield
    names = [r["name"] for r in place.client.reservations()]
    if names:
        place.client.unreserve(names)


def made(place, name: str, *words: str, start: str = "now", duration: str = "1h") -> str:
    told = place.cli("admin", "reserve", name, "--start", start, "--duration", duration, *words)
    assert (told.code, told.err) == (0, "")
    return told.out


def listed(place, *words: str) -> list[dict]:
    return json.loads(place.cli("admin", "reservations", "--json", *words).out)["reservations"]


def test_a_reserved_device_is_for_those_who_say_so(place):
    said = made(place, "paper", "--devices", "0,1", "--users", ME, "--comment", "deadline")
    assert said.startswith(f"reservation paper: devices 0,1 are reserved for {ME}: ")
    other = place.sh("true")
    told = place.cli("submit", "--reservation", "paper", "--parsable", "--", "sh", "-c", SAVES)
    own = told.out.strip()
    assert place.running(own)["reservation"] == "paper"
    why = place.client.why(other)
    assert why["reason"] == "Reservation"
    assert f"devices 0,1 are reserved for {ME} from" in why["text"]
    (row,) = listed(place)
    assert (row["state"], row["jobs"], row["users"], row["comment"]) == ("active", [own], [ME], "deadline")
    assert [device["index"] for device in row["devices"]] == [0, 1]
    shown = place.cli("gpus").out.splitlines()
    assert all(f"reserved for {ME}: " in line and "(paper)" in line for line in (shown[1], shown[-1]))
    assert [device["state"] for device in place.client.devices()["devices"]] == ["busy", "reserved"]
    assert "reservation  paper" in place.cli("show", own).out
    assert "paper" in place.cli("admin", "reservations").out
    told = place.cli("admin", "unreserve", "paper")
    assert told.out == "reservation paper: taken back; 1 job of it is ordinary now\n"
    assert place.ended(other)["state"] == "COMPLETED"
    assert place.running(own)["reservation"] is None
    assert [(r["name"], r["state"]) for r in listed(place, "--all")] == [("paper", "over")]
    place.client.cancel([own])
    place.ended(own)
    (again,) = place.client.resubmit([own])
    assert again["ok"], again
    assert place.running(again["new"])["reservation"] is None
    place.client.cancel([again["new"]])


def test_at_its_beginning_a_stranger_saves_leaves_and_goes_on_elsewhere(place):
    stranger = place.sh(SAVES)
    at = place.running(stranger)["devices"][0]["index"]
    said = made(place, "class", "--devices", str(at), start="now+1s")
    assert f"job {stranger} runs there now: whoever still does at the beginning is asked to save and leave" in said
    job = until(lambda: (j := place.job(stranger))["attempt"] == 2 and j["state"] == "RUNNING" and j)
    assert job["devices"][0]["index"] == 1 - at
    assert any("reserved from now on (reservation class)" in line for line in place.story(stranger))
    place.client.cancel([stranger])


def test_a_reservation_outlives_the_daemon_that_made_it(own):
    made(own, "night", "--count", "1", "--repeat", "daily", start="now+2h")
    made(own, "today", "--devices", "1", "--users", ME)
    before = listed(own)
    own.restart()
    assert listed(own) == before
    assert [(r["name"], r["state"], r["repeat"]) for r in before] == [
        ("today", "active", None), ("night", "to come", "daily"),
    ]  # fmt: skip
    key = own.sh("true", reservation="today")
    assert own.ended(key)["attempts"][0]["devices"][0]["index"] == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--devices", "7"], 2, "there is no device '7'"),
        (["--devices", "0", "--users", "nobody-of-that-name"], 2, "knows no user 'nobody-of-that-name'"),
        (["--count", "3"], 2, "this machine has 2 devices, not 3"),
        (["--devices", "0", "--count", "1"], 2, "say which devices, or how many"),
        (["--devices", "0,,1"], 2, "names nothing in one place"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence_and_a_hint(place, words, code, text):
    told = place.cli("admin", "reserve", "x", "--start", "now", "--duration", "1h", *words)
    assert told.code == code
    assert text in told.err.splitlines()[0]
    assert told.err.splitlines()[1].startswith("  ")
    assert listed(place) == []


def test_times_that_make_no_sense_are_refused(place):
    for start, duration, text in (
        ("2001-01-01T09:00", "1h", "in the past"),
        ("soon", "1h", "begin time 'soon' cannot be read"),
        ("now", "0", "no length or no end"),
    ):
        told = place.cli("admin", "reserve", "x", "--devices", "0", "--start", start, "--duration", duration)
        assert (told.code, text in told.err) == (2, True), told


def test_a_second_reservation_of_the_same_device_and_an_unknown_one_are_refused(place):
    made(place, "one", "--devices", "0")
    told = place.cli("admin", "reserve", "two", "--devices", "0", "--start", "now", "--duration", "1h")
    assert (told.code, "device 0 is reserved at that time already: one for maintenance" in told.err) == (1, True)
    told = place.cli("admin", "unreserve", "one", "three")
    assert (told.code, told.out) == (3, "reservation one: taken back\n")
    assert "there is no reservation 'three'" in told.err
    told = place.cli("submit", "--reservation", "one", "--", "true")
    assert (told.code, "unknown reservation 'one'" in told.err) == (2, True)


def test_a_job_that_waits_is_moved_into_a_reservation_by_update(place):
    made(place, "later", "--devices", "0", "--users", ME, start="now+2h")
    key = place.sh("true", hold=True)
    assert place.cli("update", key, "--reservation", "later").code == 0
    place.client.release([key])
    why = place.client.why(key)
    assert (why["reason"], why["text"].startswith("its reservation later is from ")) == ("Reservation", True)
    assert place.cli("update", key, "--reservation", "").code == 0
    assert place.ended(key)["state"] == "COMPLETED"


def test_a_failed_device_of_a_reservation_is_told(own):
    made(own, "paper", "--devices", "0", "--users", ME)
    own.faults.write_text(json.dumps({"devices": {"0": {"lost": True}}}))
    until(lambda: listed(own)[0]["trouble"])
    assert "device 0: " in own.cli("admin", "reservations").out
    own.faults.write_text("{}")
