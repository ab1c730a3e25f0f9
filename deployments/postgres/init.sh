#!/bin/bash
# Once, when the volume is made: a role and a database for each of those that keep something here.
set -euo pipefail

database() {  # role password database...
  psql -v ON_ERROR_STOP=1 -qU postgres -d postgres -v role="$1" -v password="$2" <<<"CREATE ROLE :\"role\" LOGIN PASSWORD :'password';"
  for name in "${@:3}"; do
    psql -v ON_ERROR_STOP=1 -qU postgres -d postgres -v role="$1" -v name="$name" \
      <<<"CREATE DATABASE :\"name\" OWNER :\"role\" ENCODING 'UTF8' TEMPLATE template0; REVOKE CONNECT ON DATABASE :\"name\" FROM PUBLIC;"
  done
}

database mlflow "$MLFLOW_DB_PASSWORD" mlflow mlflow_auth
database prefect "$PREFECT_DB_PASSWORD" prefect
database towline "$LEDGER_DB_PASSWORD" towline  # last: the health check asks for it
