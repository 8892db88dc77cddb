"""A program that knows nothing of gpusched, under checkpoint-exec and a real daemon."""

from __future__ import annotations

import sys

from daemons import until

# Writes its state when it is asked to, by a signal of its own choice, and leaves with a code of its own choice.
PROGRAM = """
number=$(cat state 2> /dev/null || echo 0); echo "from $number"
trap 'echo $number > state; exit 9' USR1
while [ ! -e finish ]; do number=$((number + 1)); sleep 0.02; done
echo "reached $number"
"""


def starts(output):
    """The lines in which the program says where it begins; the wrapper's own may have the same word in them."""
    return [line for line in output.splitlines() if line.startswith("from ")]


def test_a_program_of_any_kind_is_saved_preempted_and_resumed(place, tmp_path):
    (tmp_path / "program.sh").write_text(PROGRAM)
    wrapper = [sys.executable, "-m", "gpusched.checkpoint.wrap", "--files", str(tmp_path / "state")]
    command = [*wrapper, "--signal", "USR1", "--saved-code", "9", "--", "bash", "program.sh"]
    told = place.cli("submit", "--parsable", "-D", str(tmp_path), "-g", "0", "--", *command)
    job = told.out.strip()
    until(lambda: "from 0" in place.output(job) and place.job(job)["watching"], lambda: place.story(job))
    (tmp_path / "state").write_text("1")
    assert place.cli("checkpoint", job).code == 0  # what is in its files goes there without a stop
    until(lambda: (place.job(job)["saved"] or {}).get("step") == 1, lambda: place.story(job))
    assert place.cli("preempt", job).code == 0
    until(lambda: len(starts(place.output(job))) == 2, lambda: [*place.story(job), place.output(job)])
    (tmp_path / "finish").touch()
    ended = place.ended(job)
    assert (ended["state"], ended["attempt"]) == ("COMPLETED", 2), place.story(job)
    first = ended["attempts"][0]
    assert first["outcome"]["code"] == 85 and first["saved"]["step"] == 2
    words = [line.split() for line in place.output(job).splitlines()]
    numbers = {"from": [], "reached": []}
    for word, number in [line for line in words if line[0] in numbers]:
        numbers[word].append(int(number))
    assert numbers["from"][0] == 0 and 1 <= numbers["from"][1] <= numbers["reached"][0], words
