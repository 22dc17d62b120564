#!/bin/sh
# Runs once, before everything else: makes the secrets that are not there yet, one folder for each who may read it.
# Put files of your own there beforehand, and they stay. To see one: docker compose run --rm secrets show api-key
set -eu
folder=/secrets
if [ "${1:-make}" = show ]; then
  cat "$folder"/*/"$2"
  exit
fi
random() { python -c 'import secrets; print(secrets.token_hex(32), end="")'; }
make() { # FOLDER/NAME OWNER
  [ -s "$folder/$1" ] || random > "$folder/$1"
  chmod 0400 "$folder/$1" && chown "$2" "$folder/$1" "$(dirname "$folder/$1")"
}
make ray/ray-token 10001:10001
make grafana/admin-password 472:0
make nifi/password 1000:1000
make jenkins/admin-password 1000:1000
if [ ! -s "$folder/client/api-key" ]; then
  soundstage keys new compose --append "$folder/service/keys" > "$folder/client/api-key"
fi
chown -R 10001:10001 "$folder/service" "$folder/client"
chmod 0400 "$folder/service/keys" "$folder/client/api-key"
# Folders that others write into.
for name in inbox delivery quarantine; do mkdir -p "/media/$name"; done
chown 1000:1000 /media /media/* && chown 10001:10001 /ray/*
echo "secrets and folders are there"
