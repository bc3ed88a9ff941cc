# Sourced by .ci/run: runs steps, and tells at the end what took how long.
steps=()
now='' # the step that runs, and when it began
now_began=0

timed() { # a command: runs it, notes its time, and fails as it does
    local code=0
    now="$*" now_began=$SECONDS
    echo "ci: $now"
    "$@" || code=$?
    echo "ci: $now took $((SECONDS - now_began)) s, exit $code"
    steps+=("$((SECONDS - now_began))|$code|$now")
    now=''
    return "$code"
}

table() { # prints all steps until now; the one that was cut short has no exit code
    local step took code
    [[ -z $now ]] || steps+=("$((SECONDS - now_began))|cut|$now")
    printf '\nci: %7s  %4s  %s\n' seconds exit step
    for step in ${steps[@]+"${steps[@]}"}; do
        IFS='|' read -r took code step <<<"$step"
        printf 'ci: %7d  %4s  %s\n' "$took" "$code" "$step"
    done
    printf 'ci: %7d  %4s  %s\n' "$SECONDS" '' 'all together'
}
