#!/usr/bin/env bash
# instructions.sh [--update]: how many instructions netstack takes for each item of some scenarios, counted
# under valgrind and compared with instructions.txt; more than 10 % either way fails. `make instructions`
# (--update) writes the file anew.
#
# The count is the same in every run: hash seeds and time are arguments, the environment is empty, and libc
# takes its plainest memcpy, whatever the processor. Another compiler or libc changes it a little; when that
# is too much, this says so.
set -euo pipefail
cd "$(dirname "$0")/../.."

file=benches/netstack/instructions.txt
tolerance=10
scenarios=(to_host/1500/1 to_host/1500/64 to_host/1500/1+1000 to_host/65520/1
           to_guest/1500/1 to_guest/1500/64 to_guest/1500/1+1000 to_guest/65520/1
           request/1 request/64 open_close udp_to_host/1400/64 udp_to_guest/1400/64 drop)

command -v valgrind >/dev/null || { echo 'instructions.sh: valgrind is missing: tests/install.sh instructions' >&2; exit 1; }

here() {
    rustc -V | cut -d' ' -f1-2
    uname -m
    ldd --version | sed -n '1s/.* /libc /p'
}

cargo build --release -p netstack-bench
binary=${CARGO_TARGET_DIR:-target}/release/netstack-bench
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Prints the instructions per item of one scenario.
count() {
    # Rings are pages of their own, as in the daemon. The switches are glibc's names, old and new.
    env -i GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-AVX,-AVX2,-AVX_Usable,-AVX2_Usable,-ERMS,-FSRM \
        MALLOC_MMAP_THRESHOLD_=131072 \
        "$(command -v valgrind)" --tool=callgrind --toggle-collect='netstack_bench::counted' \
        --callgrind-out-file=/dev/null "$binary" --count "$1" >"$2.items" 2>"$2.log" ||
        { cat "$2.log" >&2; return 1; }
    awk -v items="$(cat "$2.items")" '/Collected : / { printf "%.1f\n", $NF / items }' "$2.log"
}

for i in "${!scenarios[@]}"; do
    value=$(count "${scenarios[i]}" "$work/$i")
    [ -n "$value" ] || { echo "instructions.sh: ${scenarios[i]}: valgrind counted nothing" >&2; exit 1; }
    echo "${scenarios[i]} $value"
done >"$work/now"

table() {
    awk -v tolerance="$tolerance" '
        BEGIN { printf "%-24s %12s %12s %9s\n", "instructions per item", "committed", "now", "change" }
        /^#/ { next }
        NR == FNR { before[$1] = $2; next }
        {
            seen[$1] = 1
            if (!($1 in before)) { printf "%-24s %12s %12.1f %9s\n", $1, "-", $2, "new  <"; bad = 1; next }
            change = ($2 / before[$1] - 1) * 100
            far = change > tolerance || change < -tolerance
            bad = bad || far
            printf "%-24s %12.1f %12.1f %+8.1f%%%s\n", $1, before[$1], $2, change, far ? "  <" : ""
        }
        END {
            for (name in before) if (!(name in seen)) { printf "%-24s no longer measured  <\n", name; bad = 1 }
            exit bad
        }' "$file" "$work/now"
}

status=0
if [ -e "$file" ]; then
    table || status=$?
elif [ "${1-}" != --update ]; then
    echo "instructions.sh: there is no $file: run 'make instructions'" >&2
    status=1
fi
if [ "${1-}" = --update ]; then
    {
        echo '# Instructions per item (benches/netstack/scenario.rs says what that is), written by: make instructions'
        echo "# $(here | paste -sd' ')"
        cat "$work/now"
    } >"$file"
    exit 0
fi
[ "$status" != 0 ] && [ -e "$file" ] || exit "$status"
was=$(sed -n '2s/^# //p' "$file")
now=$(here | paste -sd' ')
if [ "$was" != "$now" ]; then
    echo "The figures were taken with $was; this is $now. If the commit before this one differs as much," >&2
    echo "the tools do: take the figures again there with 'make instructions'." >&2
fi
echo "More than $tolerance % from $file. If that is what the change is for, 'make instructions' and commit the file." >&2
exit 1
