# Sourced: makes a root of Debian that reaches what this machine reaches.

debian_root() { # SUITE FOLDER PACKAGES: from the package source of this machine
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '^http')
    debootstrap --variant=minbase --include="ca-certificates,python3,python3-venv,$3" "$1" "$2" \
        "$mirror" >"$2.log" 2>&1 || { tail "$2.log" >&2 && return 1; }
    rm "$2.log"
    cp /etc/apt/apt.conf.d/* "$2/etc/apt/apt.conf.d/"
    # A company's certificates and index, if this machine has some.
    cp --dereference /etc/ssl/certs/ca-certificates.crt "$2/etc/ssl/certs/"
    [[ ! -e /etc/pip.conf ]] || cp /etc/pip.conf "$2/etc/"
}
