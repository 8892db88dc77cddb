#!/usr/bin/env bash
# Run an old program that knows nothing of gpusched, but writes a restart file of its own every now and then.
#
#   bash legacy.sh 3000
#   gpusched submit --gpus 0 --grace 2m legacy.sh 3000
#   gpusched submit --gpus 0 -- gpusched checkpoint-exec --files restart -- bash legacy.sh --plain 3000
#
# The program stands for a solver that cannot be changed (here: heat in a rod that is hit by random sparks, in awk). It
# goes on from the file restart in its directory if there is one, and replaces that file every 100 steps. With --plain
# this script is only that program, and `gpusched checkpoint-exec` teaches it manners: at a stop it keeps the restart
# file, at the next start it puts it back. Without, it shows how to do the like by hand, and loses no step: it runs the
# program where checkpoints are kept, waits on SIGTERM for the *next* restart file, ends the program, says `saved` and
# exits with 85: "run me again". Run by hand it uses ./legacy.state. Where a restart file is written seldom, set
# LEGACY_PATIENCE below the grace period: after so many seconds the last one must do.
set -euo pipefail

plain=
[ "${1:-}" != --plain ] || { plain=yes && shift; }
last=${1:-3000}
pause=${2:-0.05} # seconds of waiting in every 100 steps, so that there is something to watch
patience=${LEGACY_PATIENCE:-30}
directory=${GPUSCHED_CHECKPOINT_DIR:-./legacy.state}

solver() {
    exec awk -v last="$last" -v pause="$pause" '
        function random() { seed = (seed * 16807) % 2147483647; return seed / 2147483647 }
        function keep(file,   i) {
            for (i = 0; i <= 40; i++) printf "%.17g\n", heat[i] > (file ".new")
            printf "%d\n%d\n", step, seed > (file ".new")
            close(file ".new")
            if (system("sync " file ".new && mv " file ".new " file) != 0) exit 1 # whole or not there
        }
        BEGIN {
            step = 0; seed = 42
            for (i = 0; i <= 40; i++) heat[i] = 0
            for (i = 0; (getline line < "restart") > 0; i++) {
                if (i <= 40) heat[i] = line + 0; else if (i == 41) step = line + 0; else seed = line + 0
            }
            print (i ? "solver: going on after step " step : "solver: starting")
            while (step < last) {
                for (i = 1; i < 40; i++) next_heat[i] = heat[i] + 0.2 * (heat[i - 1] - 2 * heat[i] + heat[i + 1])
                for (i = 1; i < 40; i++) heat[i] = next_heat[i]
                heat[1 + int(39 * random())] += random()
                if (++step % 100 == 0) { keep("restart"); system("exec sleep " pause " > /dev/null 2>&1") }
            }
            keep("result")
            for (i = 0; i <= 40; i++) sum += heat[i]
            printf "solver: done after %d steps, total heat %.17g\n", step, sum
        }'
}

[ -z "$plain" ] || solver # which takes the place of this script

mkdir -p "$directory"
cd "$directory"

version() { stat -c '%i %y' restart 2> /dev/null || echo none; } # another one whenever the file is replaced

stop=
trap 'stop=yes' TERM # only a flag; bash looks at it below, as soon as its `wait` is interrupted

solver &
program=$!
code=0
wait "$program" || code=$?
if [ -n "$stop" ] && [ "$code" -gt 128 ]; then # it was the signal that ended `wait`, not the program
    before=$(version)
    echo "asked to stop: waiting for the next restart file"
    end=$((SECONDS + patience))
    while [ "$(version)" = "$before" ] && [ "$SECONDS" -lt "$end" ] && kill -0 "$program" 2> /dev/null; do
        sleep 0.02
    done
    kill "$program" 2> /dev/null || true
    code=0
    wait "$program" || code=$? # 0 if it came to its end all the same
    if [ "$code" -ne 0 ] && [ -f restart ]; then
        step=$(sed -n 42p restart)
        echo "saved at step $step"
        if [ -n "${GPUSCHED_JOB_DIR:-}" ]; then
            printf '{"attempt": %s, "checkpoint": "%s", "step": %s, "at": %s}\n' \
                "${GPUSCHED_ATTEMPT:-0}" "$PWD/restart" "$step" "$(date +%s)" > "$GPUSCHED_JOB_DIR/saved.tmp"
            mv "$GPUSCHED_JOB_DIR/saved.tmp" "$GPUSCHED_JOB_DIR/saved"
        fi
        exit 85
    fi
fi
[ "$code" -ne 0 ] || rm -f restart # done: what is left is the file result
exit "$code"
