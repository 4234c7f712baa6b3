#!/usr/bin/env bash
# create-secrets.sh NAMESPACE TOKENS_FILE: the Secrets that the manifests name.
#
# What is there is kept; what is missing is made from the values that the others hold already, so that
# passwords on both sides of a connection agree, and else from random ones. For external storage set
# BACKEND_URI, S3_ACCESS_KEY, S3_SECRET_KEY, REDIS_PASSWORD.
set -euo pipefail
namespace=${1:?namespace}
tokens=${2:?file made by ecg-agent tokens create}
[ -r "$tokens" ] || { echo "cannot read $tokens" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cluster() { kubectl -n "$namespace" "$@"; }
# asked once, and fails with kubectl: a cluster that does not answer is not one without Secrets
there=$(cluster get secret -o name)
exists() { grep -qx "secret/$1" <<<"$there"; }
held() { # held SECRET KEY: its value
  cluster get secret "$1" -o go-template="{{index .data \"$2\" | base64decode}}"
}
fail() {
  echo "Secret $1 has no $2 as this script writes it; $3 has to be made by hand to fit it" >&2
  exit 1
}
# values go through files, never through the process list
value() { printf %s "$2" >"$folder/$1"; }
either() { # either FILE VALUE…: the first that is not empty, else a random one
  local file=$1 one
  shift
  for one in "$@" "$(openssl rand -hex 24)"; do
    [ -z "$one" ] || { value "$file" "$one"; return; }
  done
}
make() {
  local name=$1
  shift
  if exists "$name"; then echo "secret/$name kept"; return; fi
  cluster create secret generic "$name" "$@" --dry-run=client -o json | cluster create --validate=false -f -
}

uri='' admin='' postgres='' access='' secret=''
if exists mlflow-server; then
  uri=$(held mlflow-server backend-uri)
  admin=$(held mlflow-server auth.ini | sed -n 's/^admin_password *= *//p' | sed 's/%%/%/g')
  access=$(held mlflow-server s3-access-key)
  secret=$(held mlflow-server s3-secret-key)
  postgres=$(sed -n -E 's#^postgresql://mlflow:([^@]*)@postgres:5432/mlflow$#\1#p' <<<"$uri")
  exists mlflow-client || [ -n "$admin" ] || fail mlflow-server "admin_password" mlflow-client
elif exists mlflow-client; then
  admin=$(held mlflow-client MLFLOW_TRACKING_PASSWORD)
fi
if exists postgres; then
  [ -n "$postgres" ] || postgres=$(held postgres password)
fi
if exists object-store && [ -z "$access" ]; then
  access=$(held object-store s3.json | sed -n 's/.*"accessKey": *"\([^"]*\)".*/\1/p')
  secret=$(held object-store s3.json | sed -n 's/.*"secretKey": *"\([^"]*\)".*/\1/p')
  [ -n "$access" ] && [ -n "$secret" ] || fail object-store keys mlflow-server
fi

value user admin
either admin "$admin"
either postgres "$postgres"
either access "$access" "${S3_ACCESS_KEY:-}"
either secret "$secret" "${S3_SECRET_KEY:-}"
either uri "$uri" "${BACKEND_URI:-}" "postgresql://mlflow:$(cat "$folder/postgres")@postgres:5432/mlflow"
either redis "${REDIS_PASSWORD:-}"
either ray
either flask
# an ini file reads a lone % as the start of a name
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $(sed 's/%/%%/g' "$folder/uri")
admin_username = admin
admin_password = $(sed 's/%/%%/g' "$folder/admin")
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
