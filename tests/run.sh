#!/usr/bin/env bash
# run.sh PROFILE: every test of the workspace, and at the end the names of what failed. Test programs wait more
# than they work: so many run beside each other, and each shows what it said when it is done. Some have the
# machine to themselves: those with a VM, one that measures memory, one that compares rates, and two whose bounds are
# short.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=$1
alone=(attack podman_machine qmp_vm reverse_ends ssh_backlog tap_loss vm vm_apart vm_ways)
# Of tests/windows.sh, which makes what it needs.
elsewhere=windows
processors=$(nproc)
at_once=$((processors < 4 ? 2 * processors : 8))
work=$(mktemp -d)

# A shell has its jobs ignore Ctrl-C, and what they start would too.
cargo_test() { env --default-signal=INT,QUIT cargo test --workspace --profile "$profile" "$@"; }

is_alone() { [[ " ${alone[*]} " == *" $1 "* ]]; }

# Runs the program, and then shows what it said, undisturbed by what others say.
run_beside() {
    if cargo_test --test "$1" >"$work/$1.running" 2>&1; then touch "$work/$1.passed"; fi
    [ -d "$work" ] || return 0
    mv "$work/$1.running" "$work/$1.said"
    flock "$work" cat "$work/$1.said"
}

# What had not ended when this was interrupted.
finish() {
    local log
    for log in "$work"/*.running; do
        [ ! -e "$log" ] || { echo "run.sh: not ended: $(basename "$log" .running)"; tail -n 3 "$log"; } >&2
    done
    rm -rf "$work"
}
trap finish EXIT

# cargo knows which programs there are.
list=$(cargo_test --no-run --color never 2>&1) || { echo "$list" >&2; exit 1; }
mapfile -t programs < <(sed -n 's|^ *Executable [^ ]*tests/\([^ /]*\)\(/main\)\?\.rs .*|\1|p' <<<"$list" | grep -vx "$elsewhere")
for program in "${alone[@]}"; do
    [[ " ${programs[*]} " == *" $program "* ]] || { echo "run.sh: there is no test program $program" >&2; exit 1; }
done

if cargo_test --no-fail-fast --lib --bins; then touch "$work/unit tests.passed"; fi
for program in "${programs[@]}"; do
    is_alone "$program" && continue
    while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n || true; done
    run_beside "$program" &
done
wait
for program in "${alone[@]}"; do
    if cargo_test --test "$program"; then touch "$work/$program.passed"; fi
done
# What src/sys does on macOS, on Linux: the daemon at work, but for what macOS has not or Linux does otherwise.
if cargo_test --features gvproxy/sys-macos --lib --test forwards --test tap_links --test tap_stall --test tap_tcp \
    --test tap_udp --no-fail-fast -- --skip guest::relay --skip two_live_in_one_process_and_leave_nothing \
    --skip what_does_not_listen_stays --skip an_abstract_source_has_no_file_and_exactly_its_name \
    --skip a_conflict_says_whose_the_port_is --skip sixty_four_guests_at_once \
    --skip gives_back_the_memory_of_what_is_over
then touch "$work/macOS's system calls.passed"; fi
if env --default-signal=INT,QUIT tests/windows.sh "$profile"; then touch "$work/programs for Windows.passed"; fi
if cargo_test --no-fail-fast --doc; then touch "$work/doc tests.passed"; fi

failed=()
for what in 'unit tests' "${programs[@]}" "macOS's system calls" 'programs for Windows' 'doc tests'; do
    [ -e "$work/$what.passed" ] || failed+=("$what")
done
[ ${#failed[@]} = 0 ] || { echo "run.sh: failed: ${failed[*]}" >&2; exit 1; }
