#!/bin/sh
# Checks what has arrived, and joins each file whose parts are all here. Status 0: all files are whole; 2: some wait for
# parts of other transfers; 1: parts are damaged. bench.travel appends the calls.
cd "$(dirname "$0")/.." || exit 1
status=0
is() { [ -f "$2" ] && echo "$1  $2" | sha256sum --check --status; }
join() {  # FILE SHA256, then PART SHA256 of each part
    file=$1 sum=$2 waits='' damaged=''; shift 2
    if is "$sum" "$file"; then echo "$file is whole"; return; fi
    mkdir -p "$(dirname "$file")" && : > "$file.new" || { status=1; return; }
    while [ $# -gt 0 ]; do
        if is "$2" "$1"; then [ "$waits$damaged" ] || cat "$1" >> "$file.new"
        elif [ -d "${1%%/*}" ]; then damaged="$damaged $1"
        else waits="$waits $1"; fi
        shift 2
    done
    [ -z "$damaged" ] || { echo "$file: damaged, carry again:$damaged" >&2; status=1; }
    [ -z "$waits" ] || { echo "$file waits for$waits"; [ $status = 1 ] || status=2; }
    if [ "$waits$damaged" ]; then rm -f "$file.new"
    elif is "$sum" "$file.new"; then mv "$file.new" "$file" && echo "$file is whole"
    else rm -f "$file.new"; echo "$file cannot be joined of whole parts; is there room?" >&2; status=1; fi
}
