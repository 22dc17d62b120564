#!/bin/sh
# Puts lifecycle, templates and Kibana's objects in place; again after a change. Needs curl.
#   ELASTICSEARCH_URL=http://127.0.0.1:9200 KIBANA_URL=http://127.0.0.1:5601 cluster/logging/setup.sh
# ELASTICSEARCH_USER and ELASTICSEARCH_PASSWORD where Elasticsearch asks for them.
set -eu
here=$(dirname "$0")
elasticsearch=${ELASTICSEARCH_URL:-http://127.0.0.1:9200}
credentials="${ELASTICSEARCH_USER:-}:${ELASTICSEARCH_PASSWORD:-}"

put() {
  curl --fail --silent --show-error --user "$credentials" -X PUT -H 'Content-Type: application/json' \
    --data-binary "@$here/elasticsearch/$2" "$elasticsearch/$1" >/dev/null
  echo "$1"
}

put _ilm/policy/soundstage lifecycle.json
put _component_template/soundstage-mappings mappings.json
put _component_template/soundstage-settings settings.json
put _index_template/soundstage index_template.json
if [ -n "${KIBANA_URL:-}" ]; then
  curl --fail --silent --show-error --user "$credentials" -H 'kbn-xsrf: true' \
    -F "file=@$here/kibana/objects.ndjson" "$KIBANA_URL/api/saved_objects/_import?overwrite=true" >/dev/null
  echo "$KIBANA_URL: data view, searches and dashboard"
fi
