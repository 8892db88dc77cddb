#!/usr/bin/env bash
# Count to N, one number per second: how a program in any language becomes preemptible, without any library.
#
#   bash count.sh 30
#   gpusched submit count.sh 30
#
# The protocol: on SIGTERM write what is needed to continue into $GPUSCHED_CHECKPOINT_DIR and exit 85, which means
# "saved, run me again". At the start look there and continue. Run by hand without that variable, it uses ./count.state.
set -euo pipefail

last=${1:-30}
pause=${2:-1}
directory=${GPUSCHED_CHECKPOINT_DIR:-./count.state}
state=$directory/counter
mkdir -p "$directory"

save() {
    # a file that is whole or not there: write another name, bring it to the disk, rename
    printf '%s\n' "$number" > "$state.tmp"
    sync "$state.tmp"
    mv "$state.tmp" "$state"
}

stop=
sleeper=
# Only a flag, and no waiting out of the pause: the loop below decides where it is safe to stop.
trap 'stop=yes; kill $sleeper 2> /dev/null || true' TERM

number=0
if [ -f "$state" ]; then
    number=$(cat "$state")
    echo "resuming after $number"
fi

while [ "$number" -lt "$last" ]; do
    if [ -n "$stop" ]; then
        save
        echo "saved at $number"
        # The `saved` file tells gpusched which step is safe, for `gpusched show`; exit 85 alone would do.
        if [ -n "${GPUSCHED_JOB_DIR:-}" ]; then
            printf '{"attempt": %s, "checkpoint": "%s", "step": %s, "at": %s}\n' \
                "${GPUSCHED_ATTEMPT:-0}" "$state" "$number" "$(date +%s)" > "$GPUSCHED_JOB_DIR/saved.tmp"
            mv "$GPUSCHED_JOB_DIR/saved.tmp" "$GPUSCHED_JOB_DIR/saved"
        fi
        kill $sleeper 2> /dev/null || true # leave nobody behind, not even a pause
        exit 85
    fi
    number=$((number + 1))
    echo "$number"
    sleep "$pause" & # in the background: bash handles signals while it waits, not while a command runs
    sleeper=$!
    [ -n "$stop" ] || wait $sleeper || true # the signal may have come just before the pause
done

rm -f "$state"
echo "done"
