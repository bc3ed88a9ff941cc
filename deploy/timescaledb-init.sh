#!/bin/sh
# Run once by the database's image on an empty volume: the role that the service writes as. What it
# may do with the table is granted by `ingest schema apply --role ingest`.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set password="$(cat "${SECRETS:-/run/secrets}/writer_password")" <<'SQL'
create role ingest login password :'password';
SQL
