# Sourced by .ci/run: runs steps, and prints at the end how long each took.
steps=()
now='' # the step that runs
now_began=0 # when it began

timed() { # a command: runs it, notes its time, and returns its exit code
    local code=0
    now="$*" now_began=$SECONDS
    echo "ci: $now"
    "$@" || code=$?
    echo "ci: $now took $((SECONDS - now_began)) s, exit $code"
    steps+=("$((SECONDS - now_began))|$code|$now")
    now=''
    return "$code"
}

table() { # prints all steps so far; a step that was cut short has no exit code
    local step took code
    [[ -z $now ]] || steps+=("$((SECONDS - now_began))|cut|$now")
    printf '\nci: %7s  %4s  %s\n' seconds exit step
    for step in ${steps[@]+"${steps[@]}"}; do
        IFS='|' read -r took code step <<<"$step"
        printf 'ci: %7d  %4s  %s\n' "$took" "$code" "$step"
    done
    printf 'ci: %7d  %4s  %s\n' "$SECONDS" '' 'all together'
}
