#!/usr/bin/env bash
# Checks the model of the thread pool, pool.pml, with Spin, in every interleaving of a few threads. Then
# injects each known fault, which Spin must find. Installs Debian's Spin if it can.
# Usage: tools/soak/pool_model.sh [quick|long]
#   quick  every state of small sizes: half a minute and 700 MB (default, and used by CI)
#   long   larger sizes: a quarter of an hour and up to 6 GB
set -euo pipefail
cd "$(dirname "$0")"
model=$PWD/pool.pml
form=${1:-quick}

# Each size: callers, workers, calls of each caller, steps of a call, forks.
quick=("1 2 2 1 1" "1 2 1 2 1" "2 1 1 1 1" "2 2 1 1 0")
long=("2 1 1 2 1" "2 1 2 1 0" "1 3 1 1 1" "1 2 2 2 1" "2 1 1 2 2" "2 1 2 1 1" "2 2 1 1 1"
    "2 2 1 2 0" "1 3 2 1 1")
faults=(LATE_HANDLER BARRIER_WAITS_IN_CHILD ONE_BARRIER RESET_AFTER_COUNT SLEEP_WITHOUT_A_LOOK)

case $form in
quick) sizes=("${quick[@]}") megabytes=2000 ;;
long) sizes=("${quick[@]}" "${long[@]}") megabytes=6000 ;;
*)
    echo "pool_model.sh: found '$form', expected quick or long" >&2
    exit 2
    ;;
esac
if ! command -v spin >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null ||
        ! (apt-get update -qq && apt-get install -y -qq --no-install-recommends spin) \
            >/dev/null 2>&1; then
        echo "pool model: skipped: Spin is not installed and cannot be installed here"
        exit 0
    fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Arguments: a size, macros for Spin, macros for the C compiler, options for the checker. Writes the
# checker's output to the file "report".
check() {
    local size=$1 n_callers n_workers n_calls n_steps n_forks
    read -r n_callers n_workers n_calls n_steps n_forks <<<"$size"
    # No partial order reduction: Spin cannot apply it to processes that may stop for good, as the
    # parent's do in a forked child.
    spin -a -DN_CALLERS="$n_callers" -DN_WORKERS="$n_workers" -DN_CALLS="$n_calls" \
        -DN_STEPS="$n_steps" -DN_FORKS="$n_forks" $2 "$model" >spin.log
    ${CC:-cc} -O2 -DNOREDUCE -DSAFETY -DVECTORSZ=2048 $3 -o pan pan.c
    # -E: workers that wait for orders at the end are not a deadlock; the watcher finds real deadlocks.
    ./pan -E -m200000 $4 >report
}

for size in "${sizes[@]}"; do
    begin=$SECONDS kind="every state"
    check "$size" "" "-DCOLLAPSE -DMEMLIM=$megabytes" "" || true
    if grep -q "max memory limit\|out of memory" report; then
        # Too many states for the memory: check those that fit a hash table of 2 GB.
        kind="most states"
        check "$size" "" "-DBITSTATE" "-w34 -k3"
    fi
    if ! grep -q "errors: 0" report || grep -q "max search depth too small" report; then
        cat report
        echo "pool model: failed with callers, workers, calls, steps, forks $size" >&2
        exit 1
    fi
    n_states=$(awk '/states, stored/ { print $1; exit }' report)
    echo "$size: $kind ($n_states) in $((SECONDS - begin)) seconds"
done

for fault in "${faults[@]}"; do
    check "2 1 1 2 1" "-DFAULT_$fault" "-DCOLLAPSE -DMEMLIM=$megabytes" ""
    if ! grep -q "errors: 1" report; then
        cat report
        echo "pool model: the fault $fault was not found" >&2
        exit 1
    fi
done
echo "pool model, $form: no error; all ${#faults[@]} injected faults were found"
