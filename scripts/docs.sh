#!/usr/bin/env bash
# Builds the site: build/site/index.html, from README.md, docs/ and the docstrings of en/. A warning is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --tests
source .venv/bin/activate
export OMP_NUM_THREADS=1 # nothing is computed
rm -rf build/site build/doctrees # a page that Sphinx does not read again is not judged again
python -m sphinx --quiet --fail-on-warning -c docs -d build/doctrees . build/site
cp build/site/README.html build/site/index.html
printf '== site: %s\n' "file://$PWD/build/site/index.html"
