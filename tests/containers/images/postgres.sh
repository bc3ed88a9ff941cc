#!/bin/sh
# What the image of the database does at its start, as far as deploy/compose.yaml needs it.
set -eu
as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
install --directory --owner postgres --group postgres --mode 0700 "$PGDATA"
install --directory --owner postgres --group postgres /run/postgresql
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    $as_postgres initdb --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" \
        --auth-local trust --auth-host scram-sha-256 --encoding UTF8 --locale C.UTF-8
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "shared_preload_libraries = 'timescaledb'" >>"$PGDATA/postgresql.conf"
    $as_postgres pg_ctl --wait start --options "-c listen_addresses=''"
    $as_postgres createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    $as_postgres psql --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
        --command "create extension timescaledb"
    for script in /docker-entrypoint-initdb.d/*.sh; do
        [ ! -e "$script" ] || $as_postgres sh "$script"
    done
    $as_postgres pg_ctl --wait stop
fi
exec $as_postgres postgres -c listen_addresses='*'
