#!/usr/bin/env bash
# Checks the models of the thread pool (pool.pml) and of the running batch (batch.pml) with Spin, in every
# interleaving of a few threads. Then injects each known fault, which Spin must find. Installs Debian's
# Spin if it can.
# Usage: tools/soak/models.sh [quick|long] [pool|batch]
#   quick  every state of small sizes: about two minutes and 700 MB (default, and used by CI)
#   long   larger sizes: about an hour and up to 6 GB
set -euo pipefail
cd "$(dirname "$0")"
. ../ci/packages.sh
folder=$PWD
form=${1:-quick}
models=${2:-pool batch}

# The numbers of a size are the values of these names. A fault comes with the size that shows it.
pool_names=(N_CALLERS N_WORKERS N_CALLS N_STEPS N_FORKS GROUP_MEMBERS)
pool_quick=("1 2 2 1 1" "1 2 1 2 1" "2 1 1 1 1" "2 2 1 1 0" "1 2 1 1 1 2" "1 3 1 1 0 2")
pool_long=("2 1 1 2 1" "2 1 2 1 0" "1 3 1 1 1" "1 2 2 2 1" "2 1 1 2 2" "2 1 2 1 1" "2 2 1 1 1"
    "2 2 1 2 0" "1 3 2 1 1" "1 3 1 1 1 2" "1 2 2 2 1 2" "1 3 1 2 0 2")
pool_faults=("LATE_HANDLER 2 1 1 2 1" "BARRIER_WAITS_IN_CHILD 2 1 1 2 1" "ONE_BARRIER 2 1 1 2 1"
    "RESET_AFTER_COUNT 2 1 1 2 1" "SLEEP_WITHOUT_A_LOOK 2 1 1 2 1" "GROUP_DOES_NOT_WAIT 1 2 1 1 0 2")

batch_names=(N_CALLERS N_JOBS N_WAITERS N_TURNS N_TIMEOUTS N_INTERRUPTS N_CANCELS N_FORKS N_STEPS N_ROWS
    N_PAGES N_CACHED)
batch_quick=("2 1 0 1 1 1 0 0 1 9" "1 1 1 1 0 0 0 0 1 9" "2 1 0 1 0 0 1 0 1 9" "2 2 0 0 1 0 0 0 1 9"
    "2 1 0 0 1 0 0 1 1 9" "2 1 0 1 0 0 0 0 1 9 3 1" "2 2 0 0 0 0 0 0 1 9 2" "2 1 0 0 0 1 1 0 1 9 2" "1 1 0 2 1 1 0 0 1 9")
batch_long=("2 1 0 2 0 0 0 0 1 9" "1 2 1 0 0 0 0 0 1 9" "2 1 0 1 1 0 0 1 1 9" "2 2 0 0 1 1 1 0 2 1"
    "1 1 1 1 1 1 1 0 2 9" "3 1 0 1 0 0 0 0 1 9" "2 1 0 1 2 2 0 0 2 1" "2 1 0 2 1 1 1 0 1 9"
    "1 1 1 1 2 0 0 1 1 9" "1 2 1 1 1 1 0 0 1 9" "2 1 0 1 1 1 0 0 1 9 2" "1 1 1 0 0 0 1 0 1 9 3 1"
    "3 1 0 0 0 0 0 0 1 9 3" "2 1 0 0 0 0 0 0 2 1 2")
batch_faults=("LEAD_FOR_ANYBODY 2 1 0 1 1 1 0 0 1 9" "LEADER_SLEEPS 2 1 0 1 1 1 0 0 1 9"
    "LEAD_IS_KEPT 2 1 0 1 1 1 0 0 1 9" "LOOK_WITHOUT_THE_LOCK 2 1 0 1 1 1 0 0 1 9"
    "LEAVE_AT_ONCE 2 1 0 1 1 1 0 0 1 9" "LATE_IS_EXPECTED 2 1 0 1 1 1 0 0 1 9"
    "RESUME_WITHOUT_WAKING 1 1 1 1 0 0 0 0 1 9" "LOCK_IS_NOT_FORGOTTEN 2 1 0 0 1 0 0 1 1 9"
    "LEAD_IS_NOT_FORGOTTEN 2 1 0 0 1 0 0 1 1 9" "LEAVE_WAITS_IN_CHILD 2 1 0 0 1 0 0 1 1 9"
    "END_WHILE_JOINED 1 1 0 2 1 1 0 0 1 9" "NO_PREEMPTION 2 1 0 0 0 0 0 0 1 9 2" "PREEMPT_RESTING 2 1 0 0 0 0 0 0 1 9 2"
    "WAIT_WITH_THE_LOCK 2 1 0 0 0 0 0 0 1 9 2" "NOBODY_ASKS 2 1 0 0 0 0 0 0 1 9 3 2")

case $form in
quick) megabytes=2000 optimised=-O1 ;; # the compiler takes longer than the check
long) megabytes=6000 optimised=-O2 ;;
*)
    echo "models.sh: found '$form', expected quick or long" >&2
    exit 2
    ;;
esac
if ! command -v spin >/dev/null; then
    if ! install_packages spin; then
        echo "models: skipped: Spin is not installed and cannot be installed here"
        exit 0
    fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Arguments: a model, a size, macros for Spin, macros for the C compiler, options for the checker. Writes
# the checker's output to the file "report".
check() {
    local model=$1 macros=() i=0 number
    local -n names=${model}_names
    for number in $2; do
        macros+=("-D${names[i]}=$number")
        i=$((i + 1))
    done
    rm -f pan.c report
    # No partial order reduction: Spin cannot apply it to processes that may stop for good, as the
    # parent's do in a forked child.
    spin -a "${macros[@]}" $3 "$folder/$model.pml" >spin.log || return
    ${CC:-cc} -w -DNOREDUCE -DSAFETY -DVECTORSZ=2048 $4 -o pan pan.c
    # -E: threads that wait for orders at the end are not a deadlock; the watcher finds real deadlocks.
    ./pan -E -m400000 $5 >report
}

check_size() {
    local model=$1 size=$2 begin=$SECONDS kind="every state" n_states
    check "$model" "$size" "" "$optimised -DCOLLAPSE -DMEMLIM=$megabytes" "" || true
    if grep -q "max memory limit\|out of memory" report; then
        # Too many states for the memory: check those that fit a hash table of 2 GB.
        kind="most states"
        check "$model" "$size" "" "$optimised -DBITSTATE" "-w34 -k3"
    fi
    if ! grep -q "errors: 0" report || grep -q "max search depth too small" report; then
        cat report
        echo "$model model: failed with the size $size" >&2
        exit 1
    fi
    n_states=$(awk '/states, stored/ { print $1; exit }' report)
    echo "$model, $size: $kind ($n_states) in $((SECONDS - begin)) seconds"
}

check_fault() {
    local model=$1 fault=${2%% *} size=${2#* }
    check "$model" "$size" "-DFAULT_$fault" "-DCOLLAPSE -DMEMLIM=$megabytes" ""
    if ! grep -q "errors: 1" report; then
        cat report
        echo "$model model: the fault $fault was not found" >&2
        exit 1
    fi
}

for model in $models; do
    declare -n quick=${model}_quick long=${model}_long faults=${model}_faults
    sizes=("${quick[@]}")
    [ "$form" = quick ] || sizes+=("${long[@]}")
    for size in "${sizes[@]}"; do
        check_size "$model" "$size"
    done
    for fault in "${faults[@]}"; do
        check_fault "$model" "$fault"
    done
    echo "$model model, $form: no error; all ${#faults[@]} injected faults were found"
done
