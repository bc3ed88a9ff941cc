#!/bin/sh
# The image of the database runs this once, on an empty volume. It makes the role of the service.
# `ingest schema apply --role ingest` then gives the role its privileges on the table.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set password="$(cat "${SECRETS:-/run/secrets}/writer_password")" <<'SQL'
create role ingest login password :'password';
SQL
