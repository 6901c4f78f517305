# Sourced by the other scripts: makes .venv and installs the package under the pins.
# Does nothing when setup.py and constraints.txt have not changed since. JAX comes for
# CPUs; for others, into the same .venv: pip install 'jax[cuda12]' or 'jax[tpu]'.

install() {
  local python="${PYTHON:-python3}" stamp=".venv/.installed" want
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python: Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2
    exit 2
  fi
  want="$(cat setup.py pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1) $PWD"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    echo "== .venv is up to date"
    return
  fi
  echo "== installing into .venv (about 2 minutes; 1.7 GB)"
  local start=$SECONDS
  if ! "$python" -m venv .venv; then
    echo "error: $python cannot make a virtual environment; install python3-venv" >&2
    exit 2
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[test]'
  echo "$want" >"$stamp"
  echo "== installed in $((SECONDS - start)) s"
}
