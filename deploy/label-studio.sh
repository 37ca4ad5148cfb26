#!/bin/sh
# Start Label Studio in a container: secrets come as files and go into this process's environment only; nothing is sent home.
#
#   LABEL_STUDIO_PASSWORD_FILE, POSTGRE_PASSWORD_FILE, SECRET_KEY_FILE -> the variables without _FILE
set -eu
for name in LABEL_STUDIO_PASSWORD POSTGRE_PASSWORD SECRET_KEY; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then
    value=$(cat "$file")
    export "$name=$value"
  fi
done
export LABEL_STUDIO_USERNAME="${LABEL_STUDIO_USERNAME:-bridge@sutdol.local}"
export LABEL_STUDIO_DEBUG=false
export LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK=true
export LABEL_STUDIO_COLLECT_ANALYTICS=false
export LABEL_STUDIO_LATEST_VERSION_CHECK=false
export LABEL_STUDIO_SENTRY_DSN='' LABEL_STUDIO_FRONTEND_SENTRY_DSN='' SENTRY_DSN='' FRONTEND_SENTRY_DSN=''
# Its own guard against requests to inner addresses stays on; here answers are found by polling (docs/THREATS.md).
export LABEL_STUDIO_SSRF_PROTECTION_ENABLED=true
exec label-studio start --no-browser --internal-host "${LABEL_STUDIO_LISTEN:-0.0.0.0}" --port "${LABEL_STUDIO_PORT:-8080}"
