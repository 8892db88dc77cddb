"""A disk that stays full is told of, but not at every save."""

from gpusched.checkpoint.errors import Complaints


def test_the_same_trouble_is_told_less_and_less_often_whatever_its_numbers():
    told = []
    complaints = Complaints(told.append)
    for number in range(250):
        complaints.tell(f"disk full ({number} MiB free)")
    assert told == [
        "disk full (0 MiB free)",
        "disk full (9 MiB free) (for the 10th time)",
        "disk full (99 MiB free) (for the 100th time)",
    ]


def test_another_trouble_or_one_after_a_success_is_told_at_once():
    told = []
    complaints = Complaints(told.append)
    for sentence in ("full", "full", "read-only", "full"):
        complaints.tell(sentence)
    complaints.over()
    complaints.tell("full")
    assert told == ["full", "read-only", "full", "full"]
