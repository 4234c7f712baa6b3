#!/usr/bin/env bash
# create-secrets.sh NAMESPACE TOKENS_FILE: the Secrets that the manifests name, with random values.
# Existing ones are kept. For external storage set BACKEND_URI, S3_ACCESS_KEY, S3_SECRET_KEY, REDIS_PASSWORD.
set -euo pipefail
namespace=${1:?namespace}
tokens=${2:?file made by ecg-agent tokens create}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
random() { openssl rand -hex 24; }
make() { # make NAME ARGUMENTS…; values go through files, never through the process list
  local name=$1
  shift
  kubectl -n "$namespace" get secret "$name" >/dev/null 2>&1 && { echo "$name: kept"; return; }
  kubectl -n "$namespace" create secret generic "$name" "$@"
}
value() { printf %s "$2" >"$folder/$1"; }

value postgres "$(random)"
value ray "$(random)"
value user admin
value admin "$(random)"
value flask "$(random)"
value access "${S3_ACCESS_KEY:-$(random)}"
value secret "${S3_SECRET_KEY:-$(random)}"
value redis "${REDIS_PASSWORD:-$(random)}"
value uri "${BACKEND_URI:-postgresql://mlflow:$(cat "$folder/postgres")@postgres:5432/mlflow}"
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $(cat "$folder/uri")
admin_username = admin
admin_password = $(cat "$folder/admin")
INI
cat >"$folder/s3.json" <<JSON
{"identities": [{"name": "mlflow", "actions": ["Admin", "Read", "Write", "List"],
  "credentials": [{"accessKey": "$(cat "$folder/access")", "secretKey": "$(cat "$folder/secret")"}]}]}
JSON

make ray-auth-token --from-file=auth_token="$folder/ray"
make ecg-agent-api-tokens --from-file=tokens="$tokens"
make mlflow-server --from-file=backend-uri="$folder/uri" --from-file=flask-key="$folder/flask" \
  --from-file=auth.ini="$folder/auth.ini" --from-file=s3-access-key="$folder/access" \
  --from-file=s3-secret-key="$folder/secret"
make mlflow-client --from-file=MLFLOW_TRACKING_USERNAME="$folder/user" \
  --from-file=MLFLOW_TRACKING_PASSWORD="$folder/admin"
make postgres --from-file=password="$folder/postgres"
make object-store --from-file=s3.json="$folder/s3.json"
make gcs-redis --from-file=password="$folder/redis"
