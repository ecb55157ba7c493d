#!/bin/sh
# Which part of src imports which: prints the arrows, and fails where they go round in a circle, or where one
# of the lowest parts imports more than it may.
set -eu
cd "${1:-$(dirname "$0")/..}"

arrows=$(find src -name '*.rs' ! -name tests.rs ! -path src/main.rs ! -path src/lib.rs ! -path 'src/bin/*' -exec awk '
    FNR == 1 { part = FILENAME; sub("^src/", "", part); sub("[/.].*", "", part); tests = 0 }
    /^mod tests \{/ { tests = 1 }
    tests { next }
    { sub("//.*", "") }
    {
        while (match($0, /crate::[a-z_0-9]+/)) {
            name = substr($0, RSTART + 7, RLENGTH - 7)
            if (name != part) print part, name
            $0 = substr($0, RSTART + RLENGTH)
        }
    }' {} + | sort -u)
[ "$(echo "$arrows" | wc -l)" -gt 50 ] || { echo 'imports: found none' >&2; exit 1; }
echo "$arrows" | awk '{ to[$1] = to[$1] " " $2 } END { for (part in to) print part ":" to[part] }' | sort

failed=
# What would be overlooked above.
if grep -rn --include='*.rs' 'crate::{' src; then
    echo 'imports: one line for each part of the crate' >&2
    failed=1
fi
# The part, and all that it may import.
while read -r part may; do
    for name in $(echo "$arrows" | awk -v part="$part" '$1 == part { print $2 }'); do
        case " $may " in
        *" $name "*) ;;
        *) echo "imports: $part may not import $name" >&2; failed=1 ;;
        esac
    done
done <<'MAY'
addr sys text
config addr agent cli disk text
dial addr sys
link sys
listen addr disk sys text
permits logging sys
relay sys
supervise
vsock sys text
MAY
if ! circle=$(echo "$arrows" | tsort 2>&1 >/dev/null); then
    echo "$circle" | sed 's/^tsort: -: input contains a loop:/imports: a circle:/; s/^tsort: /    /' >&2
    failed=1
fi
[ -z "$failed" ]
