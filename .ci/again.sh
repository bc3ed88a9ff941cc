# Sourced by .ci/run, after timed.sh: at most 3 failed tests, and at most 2 red faults, get a second
# try, and it is told.
tries=() # the tests and faults that passed at their second try only

failed_tests() { # prints those that pytest's last run left as failed
    python3 -c '
import json, pathlib
kept = pathlib.Path(".pytest_cache/v/cache/lastfailed")
print(*json.loads(kept.read_text()) if kept.exists() else [], sep="\n", end="")'
}

tests() { # a command that ends in pytest's arguments: runs it, and what failed a second time, alone
    local code=0 failed=()
    rm -f .pytest_cache/v/cache/lastfailed
    timed "$@" || code=$?
    [[ $code -eq 1 ]] || return "$code" # with 1 it has ended in order, and tests failed
    mapfile -t failed < <(failed_tests)
    ((${#failed[@]} >= 1 && ${#failed[@]} <= 3)) || return "$code"
    printf 'ci: a second try, alone: %s\n' "${failed[@]}"
    timed "$@" -n 0 --last-failed --last-failed-no-failures=none || return
    tries+=("${failed[@]}")
}

faults() { # a command of ./run faults on one seed: runs it, and what is red a second time, alone
    local code=0 red=() said
    said=$(mktemp)
    timed "$@" > >(tee "$said") || code=$?
    wait $! # for tee
    mapfile -t red < <(sed -n 's/^RED after [0-9]* s: //p' "$said" | grep -oE '[A-Z]+[0-9]+')
    if grep -E ' RED ' "$said" | grep -qvE ' 0 lost +0 doubled '; then
        red=() # a reading is missing, or is there twice: that is never tried again
    fi
    rm "$said"
    [[ $code -eq 1 ]] && ((${#red[@]} >= 1 && ${#red[@]} <= 2)) || return "$code"
    printf 'ci: a second try, alone: %s\n' "${red[@]}"
    timed ./run faults --only "$(IFS=, && echo "${red[*]}")" --seed 1 || return
    tries+=("${red[@]}")
}

second_tries() { # says which failed once
    ((${#tries[@]} == 0)) || printf 'ci: FAILED ONCE, passed at the second try: %s\n' "${tries[@]}"
}
