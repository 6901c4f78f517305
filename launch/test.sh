#!/usr/bin/env bash
# The whole check: install if needed, then every test that is not marked slow.
#   bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
install
exec .venv/bin/python -m pytest --numprocesses auto --dist loadfile --durations=15 "$@"
