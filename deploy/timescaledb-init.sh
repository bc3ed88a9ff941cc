#!/bin/sh
# The image of the database runs this once, on an empty volume. It makes the role of the service, and
# a role for Grafana that can only read. `ingest schema apply --role ingest` then makes the table. It
# gives the first role its privileges. The second may read this table, and each later one that the
# administrator makes in this schema, by the default below.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set password="$(cat "${SECRETS:-/run/secrets}/writer_password")" \
    --set reader="$(cat "${SECRETS:-/run/secrets}/reader_password")" <<'SQL'
create role ingest login password :'password';
create role ingest_reader login password :'reader' connection limit 10;
alter role ingest_reader set default_transaction_read_only = on;
alter role ingest_reader set statement_timeout = '10s';
alter default privileges in schema public grant select on tables to ingest_reader;
SQL
